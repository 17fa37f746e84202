"""Losses of heads, one number for each row (or word), and whether a head was right. Averages are left to the caller.

Shape letters: R rows, M places that heads read (several for each row of a question), C labels. The losses are
transformers' own, before it takes means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Judged(NamedTuple):
    """Of each row, or of each word where words have labels."""

    loss: Tensor  # f32 [R]
    right: Tensor | None  # bool [R]; None for numbers


def one_label(logits: Tensor, labels: Tensor) -> Judged:
    """Cross entropy. logits [R, C], labels int64 [R]."""
    return Judged(F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels)


def many_labels(logits: Tensor, labels: Tensor) -> Judged:
    """Binary cross entropy of each label, their mean. logits [R, C], labels f32 [R, C] of 0 and 1. Right are rows of
    which all labels are right (a label is given from probability 0.5 on)."""
    loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    return Judged(loss, ((logits > 0) == (labels > 0.5)).all(-1))


def number(logits: Tensor, values: Tensor) -> Judged:
    """Squared error. logits [R, 1], values f32 [R]."""
    return Judged((logits.squeeze(-1) - values) ** 2, None)


def answer_span(logits: Tensor, ends: Tensor, sizes: Sequence[int]) -> Judged:
    """Half the sum of the cross entropies of an answer's first and last place, each over the places of its own row.
    logits [M, 2] (start, end), ends int64 [R, 2], sizes: places of each row."""
    parts = logits.split(list(sizes))
    padded = pad_sequence(list(parts), batch_first=True, padding_value=-torch.inf)  # [R, L, 2]
    loss = (F.cross_entropy(padded, ends, reduction="none")).sum(-1) / 2  # [R, 2] -> [R]
    return Judged(loss, (padded.argmax(1) == ends).all(-1))
