"""Has a judge compare two answers to each prompt, and says what it came to: a file of verdicts and a report.

Knows nothing about who answered. The verdicts are in OUT, and what was done so far in OUT.ledger.jsonl: see
rlft.synthesis.ledger.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from rlft.endpoint.client import Endpoint
from rlft.errors import RunError
from rlft.evaluation.judge_file import JudgeJob
from rlft.evaluation.win_rate import ANSWER, OTHER, WinRate, comparer, count_verdicts, wilson
from rlft.runs.console import readable_seconds
from rlft.runs.files import atomic_write_text
from rlft.synthesis.ledger import Ledger
from rlft.synthesis.report import Progress, readable_counts
from rlft.synthesis.rows import SourceRow
from rlft.synthesis.working import work


@dataclass(frozen=True)
class Comparison:
    """What is compared, for people."""

    judge: str
    model: str
    base: str
    cut_off: tuple[int, int]  # answers that were cut off, the model's and the base's


@dataclass(frozen=True)
class Judged:
    """What a comparison came to, over all its starts with the same output (but `seconds`)."""

    comparison: Comparison
    out: str
    num_prompts: int
    num_before: int  # judged by earlier starts
    result: WinRate
    unparsed: int  # pairs without a verdict, left out
    failed: dict[str, int]  # pairs left out that the same command tries again, by kind
    length: tuple[float, float]  # mean characters of the answers, the model's and the base's
    requests: int
    retries: int
    failed_requests: dict[str, int]  # by kind, also where a retry then worked
    prompt_tokens: int
    completion_tokens: int
    cost: float | None  # None where no prices are given
    seconds: float

    def write(self) -> None:
        """Write it beside the output."""
        tree = asdict(self) | {"win_rate": self.result.rate, "interval_95": self.result.interval}
        tree |= {"first_place": self.result.first_place}
        atomic_write_text(Path(self.out + ".summary.json"), json.dumps(tree, indent=2) + "\n")

    def text(self) -> str:
        """For people."""
        told, result = self.comparison, self.result
        before = f", {self.num_before} judged before" if self.num_before else ""
        cut = f"; cut off {told.cut_off[0]} and {told.cut_off[1]}" if any(told.cut_off) else ""
        lines = [
            f"{self.num_prompts} prompts, both orders, judge {told.judge}, in {readable_seconds(self.seconds)}{before}",
            f"  model      {told.model}",
            f"  base       {told.base}",
            f"  win rate   {_rate(result)}",
            f"  decided    {result.num_decided}: wins {result.wins}, losses {result.losses}{_of_decided(result)}",
            f"  ties       {result.num_ties}: orders disagree {result.orders_disagree}, same answer "
            f"{result.same_answer}",
            f"  left out   unparsed {self.unparsed}, failed {readable_counts(self.failed)}"
            + ("; the same command tries these again" if self.failed else ""),
            f"  position   {_place(result)}",
            f"  length     {self.length[0]:.1f} and {self.length[1]:.1f} characters on average{cut}",
            f"  requests   {self.requests}, {self.retries} of them retries; failed: "
            f"{readable_counts(self.failed_requests)}",
            f"  tokens     {self.prompt_tokens} prompt, {self.completion_tokens} completion",
        ]
        lines += [] if self.cost is None else [f"  cost       {self.cost:.4g}"]
        return "\n".join([*lines, f"  verdicts   {self.out}"])


def judge_answers(
    job: JudgeJob,
    out: Path,
    rows: Sequence[SourceRow],
    comparison: Comparison,
    settings: Mapping[str, Any],
    stream: TextIO,
) -> Judged:
    """Ask about every row (with both answers in its columns) that has no verdict yet. `settings`: everything that
    shapes verdicts. Progress goes to `stream`.

    Raises UserError for an output that is not this comparison's, and RunError when it cannot go on, more than
    run.max_failed_fraction of the rows failed, or nothing could be judged; also then, and when it is interrupted, the
    output and its summary hold all verdicts so far.
    """
    ledger = Ledger(out, settings, rows)
    progress = Progress(len(rows), ledger.num_resumed, stream)
    try:
        endpoint = Endpoint(job.endpoint, max_cost=job.run.max_cost, tell=progress.tell)
        endpoint.charge(ledger.usage)
        if ledger.num_resumed:
            progress.tell(f"going on with {out}: {ledger.num_resumed} of {len(rows)} prompts are judged")
        try:
            work(comparer(job.judge), job.run, rows, endpoint, ledger, progress)
        except BaseException:
            with contextlib.suppress(RunError):  # a full disk, of which the error itself tells already
                progress.tell(_finish(ledger, endpoint, rows, comparison, progress.seconds).text())
            raise
        judged = _finish(ledger, endpoint, rows, comparison, progress.seconds)
        if not judged.result.num_judged:
            progress.tell(judged.text())
            raise RunError(
                f"{out}: not one of {len(rows)} pairs got a verdict in both orders, so there is no win rate."
            )
        return judged
    finally:
        ledger.close()


def _finish(
    ledger: Ledger, endpoint: Endpoint, rows: Sequence[SourceRow], comparison: Comparison, seconds: float
) -> Judged:
    """Write the output and the summary."""
    ledger.export(unique=False)
    counts, usage = ledger.counts(), ledger.usage
    judged = Judged(
        comparison=comparison,
        out=str(ledger.out),
        num_prompts=len(rows),
        num_before=ledger.num_resumed,
        result=count_verdicts(ledger.made()),
        unparsed=counts.left_out.total(),
        failed=dict(sorted(counts.failed.items())),
        length=(_mean_length(rows, ANSWER), _mean_length(rows, OTHER)),
        requests=usage.requests,
        retries=usage.retries,
        failed_requests=dict(sorted(usage.failures.items())),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cost=endpoint.cost(usage),
        seconds=round(seconds, 3),
    )
    judged.write()
    return judged


def _mean_length(rows: Sequence[SourceRow], column: str) -> float:
    return sum(len(row.columns[column]) for row in rows) / max(1, len(rows))


def _rate(result: WinRate) -> str:
    if result.rate is None or result.interval is None:
        return "none: nothing was judged"
    low, high = result.interval
    return (
        f"{result.rate:.3f}, 95 % interval {low:.3f} to {high:.3f}, of {result.num_judged} judged; a tie is half a win"
    )


def _of_decided(result: WinRate) -> str:
    if not result.num_decided:
        return ""
    low, high = wilson(result.wins, result.num_decided)
    return f"; won {result.wins / result.num_decided:.3f}, 95 % interval {low:.3f} to {high:.3f}"


def _place(result: WinRate) -> str:
    if result.first_place is None:
        return "no verdicts"
    return f"{result.first_place:.3f} of {result.num_verdicts} verdicts were for the answer that stood first"
