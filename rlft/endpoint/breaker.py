"""A circuit breaker: after so many failures in a row nobody is asked for a while, then one request tries whether it
goes again. Knows nothing about what is asked."""

from __future__ import annotations

import threading
import time


class Breaker:
    """Open or closed, for several threads at once."""

    def __init__(self, max_failures: int, pause_s: float) -> None:
        """Opens after `max_failures` in a row, for `pause_s`."""
        self._max_failures, self._pause_s = max_failures, pause_s
        self._failures, self._opened, self._last = 0, 0.0, ""
        self._trying = False
        self._lock = threading.Lock()

    def refusal(self) -> str:
        """Why nothing may be asked now; "" when it may. Whoever gets "" must say how it went, by `worked` or
        `failed`."""
        with self._lock:
            if self._failures < self._max_failures:
                return ""
            left_s = self._opened + self._pause_s - time.monotonic()
            if left_s <= 0 and not self._trying:
                self._trying = True
                return ""
            return f"not asked: {self._failures} requests in a row have failed (the last: {self._last}); " + (
                "one is trying again now" if self._trying else f"the next try is in {max(left_s, 0.0):.0f} s"
            )

    def worked(self) -> None:
        """A request was answered."""
        with self._lock:
            self._failures, self._trying = 0, False

    def failed(self, why: str) -> None:
        """A request was given up."""
        with self._lock:
            self._failures, self._last, self._trying = self._failures + 1, why, False
            if self._failures >= self._max_failures:
                self._opened = time.monotonic()
