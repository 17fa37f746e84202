"""Penalties for the shape of a completion: too long, or saying the same again and again. They are 0 or below, and are
added to a reward that judges the content. Know nothing about right or wrong answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlft.errors import UserError


def overlong(completion_ids: Sequence[Sequence[int]], max_length: int, buffer: int, **columns: Any) -> list[float]:
    """0 up to max_length - buffer tokens, from there down in a straight line to -1 at max_length, -1 beyond (DAPO's
    soft overlong punishment, Yu et al. 2025, arXiv:2503.14476, eq. 13). With generator.max_new_tokens above max_length
    a completion can be punished before it is cut off."""
    if not 0 < buffer <= max_length:
        raise UserError(f"reward 'overlong': buffer is {buffer}; expected above 0 and at most max_length, {max_length}")
    return [-min(1.0, max(0.0, (len(ids) - (max_length - buffer)) / buffer)) for ids in completion_ids]


def repetition(completion_ids: Sequence[Sequence[int]], size: int = 20, **columns: Any) -> list[float]:
    """Minus the share of runs of `size` tokens that occurred before (the n-gram penalty of Yeo et al. 2025,
    "Demystifying long chain-of-thought reasoning", arXiv:2502.03373): 0 when nothing is said twice, close to -1 for a
    loop."""
    if size < 1:
        raise UserError(f"reward 'repetition': size is {size}; expected at least 1")
    penalties = []
    for ids in completion_ids:
        runs = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
        penalties.append(len(set(runs)) / len(runs) - 1.0 if runs else 0.0)
    return penalties
