"""Seconds per stage of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up wall seconds by stage; `metrics` gives them as time/<stage>_s, with the whole as time/step_s."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Charge the time of this block to a stage."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - before)

    def add(self, stage: str, seconds: float) -> None:
        """Charge seconds that were measured elsewhere."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def metrics(self) -> dict[str, float]:
        """All stages and the time since this clock was made."""
        stages = {f"time/{stage}_s": seconds for stage, seconds in self.seconds.items()}
        return stages | {"time/step_s": time.perf_counter() - self._begin}
