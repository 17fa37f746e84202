"""A job from its configuration to its output: checks everything, then works through the rows and writes each down.

Knows nothing about what is asked or over what wire.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from rlft.endpoint.client import Endpoint
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
from rlft.synthesis.ledger import Ledger
from rlft.synthesis.preferences import check_columns, labeller
from rlft.synthesis.report import Progress, Summary
from rlft.synthesis.rows import Source, load_source
from rlft.synthesis.working import Worker, work


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
            work(worker, job.run, source.rows, endpoint, ledger, progress)
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
        replies_without_usage=usage.uncounted,
        cost=endpoint.cost(usage),
        seconds=round(progress.seconds, 3),
    )
    summary.write()
    return summary


def _ordered(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    return dict(sorted(counts))
