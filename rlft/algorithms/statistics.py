"""Numbers that tell of an update, taken pack by pack and joined over micro-batches and ranks.

Knows nothing about what they mean. However a batch is cut up, the joined numbers are those of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """A mean that can still be joined with others."""

    total: float
    count: int


Stats = dict[str, Mean | float]  # by the metric's name; a float is a maximum, and its name ends in _max


def mean_of(values: Tensor) -> Mean:
    """The mean of `values` [N], bool or float."""
    return Mean(float(values.detach().sum(dtype=torch.float64)), len(values))


def means_by_source(name: str, values: Tensor, sample_of: Tensor, sources: Sequence[str]) -> Stats:
    """{"name/source": mean} of `values` [M] for each source that has a name. `sample_of` int64 [M]: which sample each
    value is of; `sources`: of each sample."""
    stats: Stats = {}
    for source in sorted(set(sources) - {""}):
        of_source = torch.tensor([other == source for other in sources], device=values.device)
        stats[f"{name}/{source}"] = mean_of(values[of_source[sample_of]])
    return stats


def joined(parts: Iterable[Stats]) -> Stats:
    """The statistics of all parts together. A part may lack some of them."""
    whole: Stats = {}
    for part in parts:
        for name, new in part.items():
            whole[name] = _join(whole[name], new) if name in whole else new
    return whole


def _join(a: Mean | float, b: Mean | float) -> Mean | float:
    if isinstance(a, Mean) and isinstance(b, Mean):
        return Mean(a.total + b.total, a.count + b.count)
    assert not isinstance(a, Mean) and not isinstance(b, Mean), "a mean in one part and a maximum in another"
    return max(a, b)


def metrics_of(stats: Stats) -> dict[str, float]:
    """Each mean and each maximum as a number; means of nothing are left out."""
    numbers = {}
    for name, stat in stats.items():
        if not isinstance(stat, Mean):
            numbers[name] = stat
        elif stat.count:
            numbers[name] = stat.total / stat.count
    return numbers
