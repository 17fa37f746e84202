"""What to say of the gap between a learner and the sampler whose tokens it learns from. Knows nothing about losses."""

from __future__ import annotations

from torch import Tensor

from rlft.algorithms.divergences import k3_divergence
from rlft.algorithms.statistics import Stats, mean_of
from rlft.batch import Pack

MISMATCH = "sampler/logprob_diff_mean"  # between sampler and learner under the same weights: limits are set to it


def sampler_stats(old: Tensor, pack: Pack) -> Stats:
    """How far the learner before its first update is from the sampler: under sampler/ over fresh tokens, where the
    weights are the same and only the engines differ; under staleness/ over all of them.

    sampler/kl estimates KL(sampler || learner) by k3 (Schulman 2020), in float64: rounding would hide what is small.
    """
    sampler, fresh = pack.sampler_logprobs, pack.fresh
    gap = (old - sampler).abs()
    stats: Stats = {"staleness/logprob_diff_mean": mean_of(gap), "sampler/fresh": mean_of(fresh)}
    if bool(fresh.any()):
        stats[MISMATCH] = mean_of(gap[fresh])
        stats["sampler/logprob_diff_max"] = float(gap[fresh].max())
        stats["sampler/kl"] = mean_of(k3_divergence(sampler[fresh].double(), old[fresh].double()))
    return stats
