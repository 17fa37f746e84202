"""Works through rows with an endpoint and writes each down as it is finished.

Rows are done side by side in threads, the requests of one row after each other; only the main thread writes. Knows
nothing about what is asked or what is made of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from rlft.endpoint.client import Asker, Endpoint, OutOfBudget, RequestFailed
from rlft.errors import RunError
from rlft.synthesis.config import RunConfig
from rlft.synthesis.ledger import Ledger
from rlft.synthesis.report import Progress
from rlft.synthesis.rows import LeftOut, Outcome, SourceRow

Worker = Callable[[SourceRow, Asker], Outcome]
MIN_FINISHED = 20  # rows before the share of those that failed says anything
POLL_S = 1.0  # how often progress is looked at while no row is finished


def work(
    worker: Worker, run: RunConfig, rows: Sequence[SourceRow], endpoint: Endpoint, ledger: Ledger, progress: Progress
) -> None:
    """Do all rows that are not done. Whatever ends it, what was finished is written down, and what was spent.

    Raises RunError when more than run.max_failed_fraction of the rows failed, and whatever ends the asking.
    """
    todo = iter([row for row in rows if not ledger.is_done(row)])
    askers: dict[str, Asker] = {}  # of rows that are not written down
    pending: dict[Future[Outcome], SourceRow] = {}
    ended: OutOfBudget | None = None
    num_finished = num_failed = 0
    pool = ThreadPoolExecutor(max_workers=endpoint.max_concurrent, thread_name_prefix="ask")
    try:
        while True:
            while ended is None and len(pending) < endpoint.max_concurrent and (row := next(todo, None)):
                askers[row.id] = Asker(endpoint, run.seed, row.id)
                pending[pool.submit(_one, worker, row, askers[row.id])] = row
            if not pending:
                break
            for future in wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
                row = pending.pop(future)
                try:
                    outcome = future.result()
                except OutOfBudget as error:  # others may still finish with what they have
                    ended = error
                    continue
                ledger.add(row, outcome, askers.pop(row.id).usage)
                num_finished, num_failed = num_finished + 1, num_failed + bool(outcome.failed)
            progress.show(ledger.counts(), ledger.usage, endpoint.cost(ledger.usage))
            if num_finished >= MIN_FINISHED:
                _check_failed(num_failed, num_finished, run.max_failed_fraction, ledger)
        if ended is not None:
            raise ended
        num_failed = ledger.counts().failed.total()
        _check_failed(num_failed, len(rows), run.max_failed_fraction, ledger)
    finally:
        endpoint.stop()
        pool.shutdown(cancel_futures=True)
        with contextlib.suppress(RunError):  # a full disk: what ended the loop has told so
            _save(pending, askers, ledger)


def _one(worker: Worker, row: SourceRow, ask: Asker) -> Outcome:
    """In a thread of the pool."""
    try:
        return worker(row, ask)
    except LeftOut as reason:
        return Outcome(left_out={str(reason): 1})
    except RequestFailed as failure:
        return Outcome(failed=failure.kind, detail=str(failure))


def _save(pending: dict[Future[Outcome], SourceRow], askers: dict[str, Asker], ledger: Ledger) -> None:
    """Write down rows that were finished while the others were ended, and what the others took."""
    for future, row in pending.items():
        if not future.cancelled() and future.exception() is None:
            ledger.add(row, future.result(), askers.pop(row.id).usage)
    for asker in askers.values():
        ledger.add_usage(asker.usage)


def _check_failed(num_failed: int, num_rows: int, max_failed_fraction: float, ledger: Ledger) -> None:
    if num_failed <= max_failed_fraction * num_rows:
        return
    raise RunError(
        f"{num_failed} of {num_rows} rows failed, more than run.max_failed_fraction {max_failed_fraction:g} allows; "
        f"for instance {ledger.example_failure()}. Once that is mended, the same command tries them again."
    )
