"""Samples as a reward model reads them. Knows nothing about models or losses.

A text is scored at its last token, that is, before the place behind it. So a sample gets one more token there, which is
never fed, and its mask is True on that place alone; or, where steps are scored, behind each step's last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlft.errors import UserError
from rlft.samples import Group, Sample

MARGIN_COLUMN = "margin"  # by how much the chosen one is better, where people said so
_LARGEST = 1e30  # of a margin: float32 has no larger numbers to speak of


def scored_at_end(sample: Sample) -> Sample:
    """The sample with its one trained place behind the last token."""
    count = len(sample.token_ids)
    place = Sample.given(np.append(sample.token_ids, np.int32(0)), np.arange(count + 1) == count, sample.text)
    sign = None if sample.advantages is None else np.append(sample.advantages, sample.advantages[-1])
    return replace(place, advantages=sign)


def scored_pair(group: Group) -> Group:
    """A pair for a reward model. A number in the column `margin` is what its loss adds to the difference that is
    wanted: it stands in `returns`. Raises UserError when something else stands there."""
    margin = margin_of(group.prompt.columns, group.prompt.id)
    samples = [scored_at_end(s) for s in group.samples]
    if margin is not None:
        samples = [replace(s, returns=np.full(len(s.token_ids), margin, dtype=np.float32)) for s in samples]
    return group.with_samples(samples)


def margin_of(row: Mapping[str, Any], place: str, needed: bool = False) -> float | None:
    """The row's margin; None where there is none. Raises UserError for what is no number, and where it is `needed`."""
    margin = row.get(MARGIN_COLUMN)
    if margin is None and needed:
        raise UserError(
            f"{place}: column {MARGIN_COLUMN!r} is missing, and other rows have one. Expected a number in every row (0 "
            "where nothing is known), or that column in none."
        )
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not -_LARGEST < margin < _LARGEST:
        raise UserError(
            f"{place}: column {MARGIN_COLUMN!r} is {margin!r}. Expected a number, neither NaN nor infinite."
        )
    return float(margin)


def have_margins(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some row has a margin, so that all have to."""
    return any(row.get(MARGIN_COLUMN) is not None for row in rows)


def check_margins(groups: Sequence[Group]) -> None:
    """Raises UserError where only some pairs have a margin."""
    if have_margins([group.prompt.columns for group in groups]):
        for group in groups:
            margin_of(group.prompt.columns, group.prompt.id, needed=True)


def scored_steps(group: Group) -> Group:
    """Completions in steps for a process reward model: mask and labels (`returns`) move from the last token of each
    step to the place behind it, and each sample has one more token for the last of them."""
    return group.with_samples([_one_place_on(sample) for sample in group.samples])


def _one_place_on(sample: Sample) -> Sample:
    assert sample.returns is not None, "a label for each step"
    token_ids = np.append(sample.token_ids, np.int32(0))
    place = Sample.given(token_ids, np.append(False, sample.loss_mask), sample.text)
    return replace(place, returns=np.append(np.float32(0), sample.returns))
