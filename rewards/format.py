"""Rewards for the form of a completion, whatever it says. Know nothing about right or wrong answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rewards.math.extract import last_boxed, marked_answer
from rewards.texts import Completion, completion_text
from rlft.errors import UserError


def has_answer(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """1 when the completion names an answer: \\boxed{...}, "#### ..." or "the answer is ..."; otherwise 0."""
    return [float(marked_answer(completion_text(completion)) is not None) for completion in completions]


def boxed_format(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """1 when the completion has something in a \\boxed{...}; otherwise 0."""
    return [float(bool((last_boxed(completion_text(completion)) or "").strip())) for completion in completions]


def format_regex(completions: Sequence[Completion], pattern: str, **columns: Any) -> list[float]:
    """1 when the regular expression `pattern` (from `args`) is found in the completion; otherwise 0. The dot matches
    line breaks too."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"reward 'format_regex': pattern {pattern!r} is not a regular expression: {error}") from None
    return [float(compiled.search(completion_text(completion)) is not None) for completion in completions]


def finished(completions: Sequence[Completion], finish_reasons: Sequence[str], **columns: Any) -> list[float]:
    """1 when the model ended the completion itself, 0 when it was cut off at max_new_tokens."""
    return [float(reason == "stop") for reason in finish_reasons]
