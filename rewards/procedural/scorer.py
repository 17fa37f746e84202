"""Scores answers with reasoning-gym. Only ever runs in a process that may be killed (rewards/killable).

What a model wrote reaches eval and sympy's parse_expr in several of the library's scorers; both are replaced by readers
of plain arithmetic before any task is made, and the fence refuses the rest.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from rewards.killable.fence import trusted
from rewards.procedural.expressions import formula, plain_value
from rlft.data.procedural import open_task


def prepare() -> None:
    """Load the library, and put the readers in place of eval and parse_expr wherever it has them."""
    import reasoning_gym  # noqa: F401 (loads all tasks)
    import sympy
    from sympy.parsing import sympy_parser

    original = sympy_parser.parse_expr
    for module in list(sys.modules.values()):
        if getattr(module, "parse_expr", None) is original:
            module.parse_expr = formula  # type: ignore[attr-defined]
        if module.__name__.startswith("reasoning_gym."):
            module.eval = plain_value  # type: ignore[attr-defined]
    assert sympy.parse_expr is formula


def reply(request: dict[str, Any]) -> dict[str, Any]:
    """`load` makes a row, `score` judges an answer to it."""
    with trusted():
        entry = _entry(request["path"], request["row"])
    if request["step"] == "load":
        return {"verdict": "loaded"}
    score = float(_task(request["path"]).score_answer(request["answer"], entry))
    return {"verdict": "scored", "score": min(1.0, max(0.0, score))}


@lru_cache(maxsize=16)
def _task(path: str) -> Any:
    return open_task(path)


@lru_cache(maxsize=64)
def _entry(path: str, row: int) -> dict[str, Any]:
    return _task(path)[row]
