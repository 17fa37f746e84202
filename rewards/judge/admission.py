"""Lets groups in as places become free, so that none spends its time waiting behind others.

Knows nothing about judges.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Admission:
    """For several threads at once."""

    def __init__(self, limit: int) -> None:
        """`limit`: questions under way at a time."""
        self._limit, self._inside = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Wait until fewer than the limit are inside, then go in with `count` more. So what is inside takes at most the
        time of one full round more than it would alone. Whoever is inside comes out in bounded time."""
        with self._changed:
            self._changed.wait_for(lambda: self._inside < self._limit)
            self._inside += count
        try:
            yield
        finally:
            with self._changed:
                self._inside -= count
                self._changed.notify_all()
