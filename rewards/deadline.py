"""Until when the call of a reward function that is under way may take: for functions that can give up by themselves.

A thread cannot be ended from outside, so a function that asks others (servers, processes) looks here and comes back in
time, with what it has. Knows nothing about who set it.
"""

from __future__ import annotations

from contextvars import ContextVar

_DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)


def set_deadline(moment: float) -> None:
    """For this thread, and what it runs with asyncio. `moment` is of time.monotonic()."""
    _DEADLINE.set(moment)


def deadline() -> float | None:
    """The moment (of time.monotonic) at which the caller gives up; None where nobody does."""
    return _DEADLINE.get()
