"""Samples as a reward model reads them. Knows nothing about models or losses.

A text is scored at its last token, that is, before the place behind it. So a sample gets one more token there, which is
never fed, and its mask is True on that place alone; or, where steps are scored, behind each step's last token.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlft.errors import UserError
from rlft.samples import Group, Sample

MARGIN_COLUMN = "margin"  # by how much the chosen one is better, where people said so


def scored_at_end(sample: Sample) -> Sample:
    """The sample with its one trained place behind the last token."""
    count = len(sample.token_ids)
    place = Sample.given(np.append(sample.token_ids, np.int32(0)), np.arange(count + 1) == count, sample.text)
    sign = None if sample.advantages is None else np.append(sample.advantages, sample.advantages[-1])
    return replace(place, advantages=sign)


def scored_pair(group: Group) -> Group:
    """A pair for a reward model. A number in the column `margin` is what its loss adds to the difference that is
    wanted: it stands in `returns`. Raises UserError when something else stands there."""
    margin = group.prompt.columns.get(MARGIN_COLUMN)
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float)):
        raise UserError(f"{group.prompt.id}: column {MARGIN_COLUMN!r} is {margin!r}. Expected a number.")
    samples = [scored_at_end(s) for s in group.samples]
    if margin is not None:
        samples = [replace(s, returns=np.full(len(s.token_ids), margin, dtype=np.float32)) for s in samples]
    return group.with_samples(samples)


def scored_steps(group: Group) -> Group:
    """Completions in steps for a process reward model: mask and labels (`returns`) move from the last token of each
    step to the place behind it, and each sample has one more token for the last of them."""
    return group.with_samples([_one_place_on(sample) for sample in group.samples])


def _one_place_on(sample: Sample) -> Sample:
    assert sample.returns is not None, "a label for each step"
    token_ids = np.append(sample.token_ids, np.int32(0))
    place = Sample.given(token_ids, np.append(False, sample.loss_mask), sample.text)
    return replace(place, returns=np.append(np.float32(0), sample.returns))
