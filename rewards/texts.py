"""What a reward function is given, in a form that is easy to look at. Knows nothing about Ray, models or configs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]


def completion_text(completion: Completion) -> str:
    """What the model said: text as it is; of a conversation, the assistant's turns."""
    if isinstance(completion, str):
        return completion
    return "".join(
        str(turn.get("content") or "") for turn in completion if turn.get("role", "assistant") == "assistant"
    )


def strict_json(text: str) -> Any:
    """JSON as the standard has it. Raises ValueError for all else: NaN, a key twice, nesting beyond measure."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) != len(pairs):
            raise ValueError("a key is there twice")
        return tree

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None
