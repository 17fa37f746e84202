"""What every child of the zygote will do, done in the zygote itself beforehand, with a program and tests of our own.

A child pays for each page of memory that it is the first to write in, and Python writes in nearly all that it uses: it
fills caches, looks classes up, and specialises code while it runs. What was done here is done for all children.
"""

from __future__ import annotations

import socket
import sys

from rewards.code.box import frames
from rewards.code.box.solution import serve_calls
from rewards.code.box.tests_side import judge

_TIMES = 20  # Python specialises code after its eighth run or so
_PROGRAM = "import math\n\n\ndef f(a, b):\n    return [a + b for _ in range(1)][0]\n"
_TESTS = (
    "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate([1], ['x']) != 3\n",
    "assert f(1, 2) == 3\nassert sorted([f(2, 1)]) == [3]\n",
)
_CALLS = (["call", ["name", "f"], [1, 2], {}], ["call", ["name", "f"], [["l", 1], ["l", "x"]], {}])
_ANSWERS = (["ok", 3, None], ["ok", ["l", 1, "x"], None])


def rehearse() -> None:
    """Load a program, answer calls, and make a verdict, a few times, each side for itself."""
    for _ in range(_TIMES):
        _solution_side()
        for tests in _TESTS:
            _tests_side(tests)
    sys.modules.pop("solution", None)


def _solution_side() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for call in _CALLS:
            frames.send(ours, call)
        ours.shutdown(socket.SHUT_WR)
        serve_calls({"program": _PROGRAM}, theirs)


def _tests_side(tests: str) -> None:
    (ours, theirs), (verdict, read) = socket.socketpair(), socket.socketpair()
    with ours, theirs, verdict, read:
        for answer in (["ready"], *_ANSWERS):
            frames.send(ours, answer)
        frames.send(read, {"setup": "", "tests": [tests], "entry": "f", "names": [], "stop_at_first": True})
        judge(frames.receive(verdict), theirs, verdict)
        said = [frames.receive(read) for _ in range(2)]
    assert said[1]["fault"] == "", said
