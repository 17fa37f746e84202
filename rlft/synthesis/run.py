"""A job from its configuration to its output: checks everything, then works through the rows and writes each down.

Rows are done side by side in threads, the requests of one row after each other; only the main thread writes. Knows
nothing about what is asked or over what wire.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TextIO

from rlft.errors import RunError
from rlft.synthesis.config import (
    COMMANDS,
    DistillJob,
    Job,
    PreferJob,
    ReviseJob,
    content_settings,
    load_job,
)
from rlft.synthesis.constitution import Constitution, load_constitution
from rlft.synthesis.critique import reviser
from rlft.synthesis.distill import Verifier, distiller
from rlft.synthesis.endpoint import Asker, Endpoint, OutOfBudget, RequestFailed
from rlft.synthesis.ledger import Ledger
from rlft.synthesis.preferences import check_columns, labeller
from rlft.synthesis.report import Progress, Summary
from rlft.synthesis.rows import LeftOut, Outcome, Source, SourceRow, load_source

Worker = Callable[[SourceRow, Asker], Outcome]
MIN_FINISHED = 20  # rows before the share of those that failed says anything
POLL_S = 1.0  # how often progress is looked at while no row is finished


def run_job(command: str, file: str, overrides: Sequence[str] = (), stream: TextIO | None = None) -> Summary:
    """Do what a job's YAML file says, or go on with it. `command`: one of COMMANDS. Progress goes to `stream` (stderr).

    Raises UserError for bad input and RunError when it cannot go on; also then, and when it is interrupted, the output
    and OUT.summary.json hold everything that was finished."""
    job = load_job(COMMANDS[command], file, overrides)
    source = load_source(job.data)
    worker, settings = _worker(job, source)
    assert job.run.out is not None, "checked by find_problems"
    ledger = Ledger(
        Path(job.run.out).expanduser(), {"command": command, **content_settings(job), **settings}, source.rows
    )
    progress = Progress(len(source.rows), ledger.num_resumed, stream or sys.stderr)
    try:
        for note in _notes(source, ledger):
            progress.tell(note)
        endpoint = Endpoint(job.endpoint, max_cost=job.run.max_cost, tell=progress.tell)
        endpoint.charge(ledger.usage)
        try:
            _work(worker, job, source.rows, endpoint, ledger, progress)
        except BaseException:
            with contextlib.suppress(RunError):  # a full disk, of which the error itself tells already
                progress.tell(_finish(command, ledger, endpoint, len(source.rows), progress).text())
            raise
        return _finish(command, ledger, endpoint, len(source.rows), progress)
    finally:
        ledger.close()


def _worker(job: Job, source: Source) -> tuple[Worker, dict[str, Any]]:
    """What makes the rows of this job, and the settings that are not in its own file."""
    if isinstance(job, ReviseJob):
        constitution = load_constitution(job.revise.constitution, "revise", job.revise.num_principles)
        return reviser(job.revise, constitution, job.run.seed), _contents(constitution)
    if isinstance(job, PreferJob):
        constitution = load_constitution(job.prefer.constitution, "prefer")
        for row in source.rows:
            check_columns(job.prefer, row)
        return labeller(job.prefer, constitution, job.run.seed), _contents(constitution)
    assert isinstance(job, DistillJob)
    verifier = Verifier(job.rewards.functions) if job.rewards.functions else None
    if verifier is not None:
        for row in source.rows:
            verifier.check_columns(row)
    return distiller(job.distill, verifier), {}


def _contents(constitution: Constitution) -> dict[str, Any]:
    return {"the constitution": constitution.model_dump(mode="json")["principles"]}


def _notes(source: Source, ledger: Ledger) -> list[str]:
    notes = [source.description]
    if source.dropped_columns:
        notes.append(f"note: JSON cannot hold the columns {', '.join(source.dropped_columns)}; rows come without them")
    if ledger.num_resumed:
        notes.append(f"going on with {ledger.out}: {ledger.num_resumed} of {len(source.rows)} prompts are done")
    return notes


def _work(
    worker: Worker, job: Job, rows: Sequence[SourceRow], endpoint: Endpoint, ledger: Ledger, progress: Progress
) -> None:
    """Do all rows that are not done. Whatever ends it, what was finished is written down, and what was spent."""
    todo = iter([row for row in rows if not ledger.is_done(row)])
    askers: dict[str, Asker] = {}  # of rows that are not written down
    pending: dict[Future[Outcome], SourceRow] = {}
    ended: OutOfBudget | None = None
    num_finished = num_failed = 0
    pool = ThreadPoolExecutor(max_workers=job.endpoint.max_concurrent, thread_name_prefix="synth")
    try:
        while True:
            while ended is None and len(pending) < job.endpoint.max_concurrent and (row := next(todo, None)):
                askers[row.id] = Asker(endpoint, job.run.seed, row.id)
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
                _check_failed(num_failed, num_finished, job.run.max_failed_fraction, ledger)
        if ended is not None:
            raise ended
        num_failed = ledger.counts().failed.total()
        _check_failed(num_failed, len(rows), job.run.max_failed_fraction, ledger)
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


def _finish(command: str, ledger: Ledger, endpoint: Endpoint, num_rows: int, progress: Progress) -> Summary:
    """Write the output and the summary."""
    num_written, num_same = ledger.export()
    num_done, _, left_out, failed = ledger.counts()
    if num_same:
        left_out["duplicate"] += num_same
    usage = ledger.usage
    summary = Summary(
        command=command,
        out=str(ledger.out),
        complete=num_done == num_rows,
        source_rows=num_rows,
        resumed_rows=ledger.num_resumed,
        rows_made=num_written,
        left_out=_ordered(left_out.items()),
        failed_rows=_ordered(failed.items()),
        requests=usage.requests,
        retries=usage.retries,
        failed_requests=_ordered(usage.failures.items()),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cost=endpoint.cost(usage),
        seconds=round(progress.seconds, 3),
    )
    summary.write()
    return summary


def _ordered(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    return dict(sorted(counts))
