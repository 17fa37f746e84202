"""Progress for people: a live panel in a terminal, elsewhere one key=value line a step.

Knows nothing about training beyond the names of metrics; whatever is missing is left out. Piped output never gets the
panel, because rich's Live prints only its last frame there.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TextIO

_LINE = (  # name in the line, metric, format
    ("reward", "reward/mean", "{:.3f}"),
    ("loss", "policy/loss", "{:.4f}"),
    ("pairs_right", "preference/accuracy", "{:.3f}"),
    ("steps_right", "steps/accuracy", "{:.3f}"),
    ("kl", "policy/kl", "{:.4f}"),
    ("entropy", "policy/entropy", "{:.3f}"),
    ("length", "completion/length_mean", "{:.1f}"),
    ("truncated", "completion/truncated", "{:.2f}"),
    ("failed", "samples/failed", "{:.0f}"),
    ("flat_groups", "samples/flat_groups", "{:.0f}"),
    ("skipped", "policy/skipped_updates", "{:.0f}"),
    ("staleness", "staleness/mean", "{:.2f}"),
    ("generate_s", "time/generate_s", "{:.2f}"),
    ("score_s", "time/score_s", "{:.2f}"),
    ("reference_s", "time/reference_s", "{:.2f}"),
    ("learn_s", "time/learn_s", "{:.2f}"),
    ("sync_s", "time/sync_s", "{:.2f}"),
    ("save_s", "time/save_s", "{:.2f}"),
    ("step_s", "time/step_s", "{:.2f}"),
    ("tokens_per_s", "tokens_per_s", "{:.0f}"),
)
_ONLY_IF_NOT_ZERO = {"failed", "skipped", "flat_groups"}
ENDED = ("done", "stopped")  # the stage once a run is over


@dataclass(frozen=True, slots=True)
class View:
    """What a panel shows of a run."""

    title: str
    step: int | None
    total_steps: int
    stage: str
    stage_s: float
    seconds_left: float | None
    rewards: list[float]  # mean reward of the steps so far, oldest first
    values: Mapping[str, float]  # the newest value of every metric


class Console:
    """Shows the progress of `total_steps` steps. Steps count from 1: `log(3, ...)` says that 3 of them are done."""

    def __init__(
        self, total_steps: int, stream: TextIO | None = None, live: bool | None = None, title: str = "rlft"
    ) -> None:
        """`stream`: stderr when not given. `live`: the panel; decided by whether the stream is a terminal when None.
        A terminal that cannot show Unicode gets lines."""
        self.total_steps = total_steps
        self.title = title
        self._stream = stream if stream is not None else sys.stderr
        unicode = "utf" in (getattr(self._stream, "encoding", None) or "").lower()
        terminal = self._stream.isatty() and unicode and os.environ.get("TERM") != "dumb"
        self._is_live = terminal if live is None else live
        self._live: Any = None
        self._values: dict[str, float] = {}
        self._rewards: deque[float] = deque(maxlen=400)  # more than any terminal is wide
        self._durations: deque[float] = deque(maxlen=20)  # enough to smooth, few enough to follow a change
        self._step: int | None = None
        self._stage = ("starting", time.monotonic())
        self._last_log = time.monotonic()

    def __enter__(self) -> Console:
        if self._is_live:
            from rich.console import Console as RichConsole
            from rich.live import Live

            from rlft.runs.panel import LivePanel

            # Twice a second: redrawing takes CPU time from the training in the same process.
            self._live = Live(LivePanel(self.view), console=RichConsole(file=self._stream), refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the panel's last state on the screen and give the terminal back."""
        if self._live is not None:
            self._stage = (ENDED[0] if self._step == self.total_steps else ENDED[1], time.monotonic())
            self._live.stop()
            self._live = None

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show the metrics of a step (or, like an evaluation, more metrics of the same step)."""
        now = time.monotonic()
        numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, Real)}
        if self._step is None or step > self._step:
            first = self._step is None
            seconds = numbers.get("time/step_s") if first else (now - self._last_log) / (step - (self._step or 0))
            if seconds is not None:
                self._durations.append(seconds)
            self._last_log = now
        self._step = step
        self._values = {**self._values, **numbers}
        if "reward/mean" in numbers:
            self._rewards.append(numbers["reward/mean"])
        if not self._is_live:
            self._print(self._line(step, numbers))

    def show(self, metrics: Mapping[str, Any]) -> None:
        """More numbers for the panel, outside any step (an evaluation)."""
        self._values |= {key: float(value) for key, value in metrics.items() if isinstance(value, Real)}

    def stage(self, name: str) -> None:
        """Say what the run is doing now ("generate", "learn"); shown in the panel with the seconds since then."""
        self._stage = (name, time.monotonic())

    def message(self, text: str) -> None:
        """Print a line for people, above the panel if there is one."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._print(text)

    def seconds_left(self) -> float | None:
        """Estimate from the last steps; None as long as there is none."""
        if self._step is None or not self._durations:
            return None
        left = max(0, self.total_steps - self._step) * sum(self._durations) / len(self._durations)
        return max(0.0, left - (time.monotonic() - self._last_log)) if self._live is not None else left

    def view(self) -> View:
        """What the panel shows."""
        return View(
            title=self.title,
            step=self._step,
            total_steps=self.total_steps,
            stage=self._stage[0],
            stage_s=time.monotonic() - self._stage[1],
            seconds_left=self.seconds_left(),
            rewards=list(self._rewards),
            values=self._values,
        )

    def _line(self, step: int, numbers: Mapping[str, float]) -> str:
        parts = [f"step={step}/{self.total_steps}"]
        for name, key, pattern in _LINE:
            if key in numbers and (name not in _ONLY_IF_NOT_ZERO or numbers[key] != 0):
                parts.append(f"{name}={pattern.format(numbers[key])}")
        parts += [f"{key.replace('/', '_')}={numbers[key]:.3f}" for key in sorted(numbers) if key.startswith("eval/")]
        left = self.seconds_left()
        if left is not None and step < self.total_steps:
            parts.append(f"eta={readable_seconds(left)}")
        return " ".join(parts)

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def readable_seconds(seconds: float) -> str:
    """For instance 7s, 1m20s, 3h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
