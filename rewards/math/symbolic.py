"""The last stage of comparing: sympy, in a process that may be killed (rewards/killable). One for each worker."""

from __future__ import annotations

import threading
from typing import Literal, NamedTuple

from rewards.killable.process import Killable

MEMORY_MB = 512  # that a comparison may take; usual ones take a few

Word = Literal["equal", "different", "unread", "gold_unread", "timeout", "memory", "died", "raised"]


class Reply(NamedTuple):
    """What became of a comparison. `unread` is an answer that is no mathematics, `timeout`, `memory` and `died` are
    those that the process did not survive."""

    word: Word
    detail: str = ""


class Comparer(Killable):
    """Compares pieces of LaTeX, one pair at a time."""

    def __init__(self, memory_mb: int = MEMORY_MB) -> None:
        super().__init__(
            "rewards.math.algebra",
            memory_mb,
            "reward 'math', comparing formulas",
            "Is math-verify installed beside rlft (see pyproject.toml)? Without it set args: {symbolic: false}, which "
            "compares numbers and texts only.",
        )

    def compare(self, gold: str, answer: str, deadline_s: float, tolerance: float = 0.0) -> Reply:
        """Whether two pieces of LaTeX are the same. Waits and raises as `ask` does."""
        reply = self.ask({"gold": gold, "answer": answer, "tolerance": tolerance}, deadline_s)
        return Reply(reply["verdict"], reply["detail"])


_shared: Comparer | None = None
_shared_lock = threading.Lock()


def shared() -> Comparer:
    """The one of this process."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Comparer()
        return _shared
