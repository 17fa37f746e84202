"""Reward for saying exactly the expected text and then stopping. Knows nothing about what the text means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.texts import Completion, completion_text


def exact_match(
    completions: Sequence[Completion],
    answer: Sequence[Any],
    finish_reasons: Sequence[str] | None = None,
    **columns: Any,
) -> list[float]:
    """1 when the completion is `answer`, character for character, and the model ended it itself; otherwise 0."""
    reasons = finish_reasons if finish_reasons is not None else ["stop"] * len(completions)
    return [
        float(completion_text(completion) == str(gold) and reason == "stop")
        for completion, gold, reason in zip(completions, answer, reasons, strict=True)
    ]
