"""The table of algorithms: a name, a function from what the policy says of a pack to a loss, and what it needs.

A new algorithm is a function here (or in a file of its own) and one line in ALGORITHMS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlft.algorithms.divergences import k3_divergence
from rlft.algorithms.off_policy import importance_ratio, too_far_off, truncated_importance
from rlft.algorithms.policy import (
    clipped_policy_loss,
)
from rlft.algorithms.statistics import Stats, mean_of
from rlft.batch import Pack
from rlft.config.algorithm import AlgorithmConfig, Correction
from rlft.models.policy import TokenScores

MISMATCH = "sampler/logprob_diff_mean"  # between sampler and learner under the same weights: limits are set to it

Loss = Callable[[TokenScores, Pack], tuple[Tensor, Stats]]


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm is to a loop: whether it learns from its own samples, and its loss."""

    on_policy: bool
    make_loss: Callable[[AlgorithmConfig, Correction], Loss]


def grpo(settings: AlgorithmConfig, correction: Correction) -> Loss:
    """GRPO's loss for a pack: clipped surrogate * off-policy weight + kl_coef * k3, each token weighted as the pack
    says. Without old log-probs (one update per rollout) the learner's own, detached, stand in, so that the ratio is
    1. With correction "clip" the sampler is the old policy and there are no weights."""

    def loss(scores: TokenScores, pack: Pack) -> tuple[Tensor, Stats]:
        logprobs = scores.logprobs
        old = logprobs.detach() if pack.old_logprobs is None else pack.old_logprobs
        behind = pack.sampler_logprobs if correction == "clip" else old  # what the ratio is taken to
        policy = clipped_policy_loss(logprobs, behind, pack.advantages, settings.clip_low, settings.clip_high)
        weights, weight_stats = off_policy_weights(old, pack, settings, correction)
        per_token = policy.per_token * weights
        stats: Stats = {
            "policy/clip_fraction": mean_of(policy.clipped),
            "policy/entropy": mean_of(scores.entropy),
            **sampler_stats(old, pack),
            **weight_stats,
        }
        if pack.ref_logprobs is not None:
            kl = k3_divergence(logprobs, pack.ref_logprobs)
            per_token = per_token + settings.kl_coef * kl
            stats["policy/kl"] = mean_of(kl)
        return (per_token * pack.weights).sum(), stats

    return loss


def off_policy_weights(
    old: Tensor, pack: Pack, settings: AlgorithmConfig, correction: Correction
) -> tuple[Tensor, Stats]:
    """Weight of each token's policy loss [M] for the gap between learner and sampler, and what to say of the weights.
    A whole sample's ratio needs no other pack, because samples are never split between packs."""
    weights, stats = torch.ones_like(old), Stats()
    if correction in ("token", "sequence"):
        sample_of = pack.sample_of if correction == "sequence" else None
        weights = truncated_importance(old, pack.sampler_logprobs, settings.off_policy_cap, sample_of)
        capped = importance_ratio(old, pack.sampler_logprobs, sample_of) > settings.off_policy_cap
        stats |= {"sampler/importance_mean": mean_of(weights), "sampler/importance_capped": mean_of(capped)}
    if settings.off_policy_mask is not None:
        masked = too_far_off(old, pack.sampler_logprobs, settings.off_policy_mask)
        weights = weights * ~masked
        stats["sampler/masked"] = mean_of(masked)
    return weights, stats


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


def sft(settings: AlgorithmConfig, correction: Correction) -> Loss:
    """Supervised fine-tuning: the negative log-likelihood of each trained token."""

    def loss(scores: TokenScores, pack: Pack) -> tuple[Tensor, Stats]:
        nll = -scores.logprobs
        return (nll * pack.weights).sum(), {"sft/nll": mean_of(nll), "policy/entropy": mean_of(scores.entropy)}

    return loss


ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm(on_policy=True, make_loss=grpo),
    "sft": Algorithm(on_policy=False, make_loss=sft),
}
