"""What a reward function is given, in a form that is easy to look at. Knows nothing about Ray, models or configs."""

from __future__ import annotations

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
