"""What people are told of a job: a line now and then with the time that is left, and a summary that is also a file.

Knows nothing about how rows are made.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from rlft.endpoint.usage import Usage
from rlft.runs.console import readable_seconds
from rlft.runs.files import atomic_write_text
from rlft.synthesis.ledger import Counts

LINE_EVERY_S = 5.0


@dataclass(frozen=True)
class Summary:
    """What a job came to, over all its starts with the same output (but `seconds`)."""

    command: str
    out: str
    complete: bool  # every source row is done
    source_rows: int
    resumed_rows: int  # done by earlier starts
    rows_made: int
    left_out: dict[str, int]  # by reason
    failed_rows: dict[str, int]  # source rows that the same command tries again, by kind
    requests: int
    retries: int
    failed_requests: dict[str, int]  # by kind, also where a retry then worked
    prompt_tokens: int
    completion_tokens: int
    replies_without_usage: int  # that did not say how many tokens they took: tokens and cost are without those
    cost: float | None  # None where no prices are given
    seconds: float  # of this start

    def write(self) -> Path:
        """Write it beside the output."""
        path = Path(self.out + ".summary.json")
        atomic_write_text(path, json.dumps(asdict(self), indent=2) + "\n")
        return path

    def text(self) -> str:
        """For people."""
        failed = readable_counts(self.failed_requests)
        lines = [
            f"{self.out}: {self.rows_made} rows from {self.source_rows} prompts"
            + (f" ({self.resumed_rows} were done before)" if self.resumed_rows else "")
            + f", in {readable_seconds(self.seconds)}",
            f"  left out   {readable_counts(self.left_out)}",
            f"  failed     {readable_counts(self.failed_rows)}"
            + ("; the same command tries them again" if self.failed_rows else ""),
            f"  requests   {self.requests}, {self.retries} of them retries; failed: {failed}",
            f"  tokens     {self.prompt_tokens} prompt, {self.completion_tokens} completion{self._incomplete()}",
        ]
        if self.cost is not None:
            lines.append(f"  cost       {self.cost:.4g}{self._incomplete()}")
        if not self.complete:
            lines.append("  not done   the same command goes on from here")
        return "\n".join(lines)

    def _incomplete(self) -> str:
        count = self.replies_without_usage
        return f"; incomplete: {count} replies did not say how many tokens they took (usage)" if count else ""


class Progress:
    """Prints a line every few seconds, and what is told in between."""

    def __init__(self, num_rows: int, num_before: int, stream: TextIO) -> None:
        """`num_rows` source rows, of which `num_before` were done before this start."""
        self._num_rows, self._num_before, self._stream = num_rows, num_before, stream
        self._began = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def tell(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)

    def show(self, counts: Counts, usage: Usage, cost: float | None) -> None:
        """Say how far it is, if it has not been said just now."""
        now = time.monotonic()
        if now - self._last < LINE_EVERY_S:
            return
        self._last = now
        left_out, failed = counts.left_out.total(), counts.failed.total()
        parts = [f"rows={counts.num_done + failed}/{self._num_rows}", f"made={counts.num_made}"]
        parts += [f"{name}={count}" for name, count in (("left_out", left_out), ("failed", failed)) if count]
        parts += [f"requests={usage.requests}"] + ([f"retries={usage.retries}"] if usage.retries else [])
        parts += [f"tokens={usage.prompt_tokens + usage.completion_tokens}"]
        parts += [f"cost={cost:.4g}"] if cost is not None else []
        parts += [f"without_usage={usage.uncounted}"] if usage.uncounted else []
        left = self._seconds_left(counts.num_done + failed)
        parts += [f"eta={readable_seconds(left)}"] if left is not None else []
        self.tell(" ".join(parts))

    def _seconds_left(self, num_finished: int) -> float | None:
        here = num_finished - self._num_before
        return (self._num_rows - num_finished) * self.seconds / here if here > 0 else None


def readable_counts(counts: dict[str, int]) -> str:
    """The sum, and each of them, the largest first."""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"{total} ({', '.join(f'{name} {count}' for name, count in ordered)})" if total else "0"
