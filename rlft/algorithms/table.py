"""From a configuration to a loss: a function from what the policy says of a pack to a number, and what to tell of it.

The table of policy losses is here, that of algorithms in rlft.config.algorithm (PRESETS). A new policy loss is a
function of arrays in policy.py (or in a user's file) and one line in POLICY_LOSSES."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlft.algorithms.completions import on_labels, on_pairs
from rlft.algorithms.distillation import DISTANCES
from rlft.algorithms.divergences import DIVERGENCES, importance_weighted, k3_divergence
from rlft.algorithms.off_policy import importance_ratio, too_far_off, truncated_importance, unlikely_failures
from rlft.algorithms.policy import (
    TokenLoss,
    cispo_loss,
    clipped_policy_loss,
    reinforce_loss,
    sapo_loss,
    sequence_clipped_loss,
    vespo_loss,
)
from rlft.algorithms.sampler import sampler_stats
from rlft.algorithms.statistics import Stats, mean_of, means_by_source
from rlft.algorithms.users import load_loss
from rlft.batch import Pack
from rlft.config.algorithm import AlgorithmConfig, Correction
from rlft.config.derived import compares, learns_from
from rlft.models.policy import TokenScores

Loss = Callable[[TokenScores, Pack, float], tuple[Tensor, Stats]]  # scores, pack, kl_coef -> sum, statistics


class Tokens(NamedTuple):
    """What a policy loss is made of, [M] each; see rlft.algorithms.policy."""

    logprobs: Tensor
    old_logprobs: Tensor  # what the ratio is taken to
    advantages: Tensor
    sample_of: Tensor


def _bounds(settings: AlgorithmConfig) -> tuple[float, float, float | None, float | None]:
    """Of the importance ratio, in the order of `clipped_policy_loss`."""
    return settings.clip_low, settings.clip_high, settings.dual_clip, settings.ratio_cap


POLICY_LOSSES: dict[str, Callable[[Tokens, AlgorithmConfig], TokenLoss]] = {
    "clip": lambda t, s: clipped_policy_loss(*t[:3], *_bounds(s)),
    "sequence_clip": lambda t, s: sequence_clipped_loss(*t, *_bounds(s)),
    "sample_clip": lambda t, s: sequence_clipped_loss(*t, *_bounds(s), mean=False),
    "cispo": lambda t, s: cispo_loss(*t[:3], s.ratio_cap or float("inf")),
    "sapo": lambda t, s: sapo_loss(*t[:3]),
    "vespo": lambda t, s: vespo_loss(*t),
    "reinforce": lambda t, s: reinforce_loss(t.logprobs, t.advantages),
}


def make_loss(settings: AlgorithmConfig, correction: Correction) -> Loss:
    """The loss of a configuration. Raises UserError when it names a function that cannot be found."""
    if learns_from(settings) == "examples":
        return on_examples(settings)
    if learns_from(settings) == "labels":
        return on_labels(settings)
    if compares(settings):
        return on_pairs(settings)
    return policy_gradient(settings, correction)


def policy_gradient(settings: AlgorithmConfig, correction: Correction) -> Loss:
    """Policy loss * off-policy weight + kl_coef * divergence - entropy_coef * entropy + teacher_coef * distance to the
    teacher, each token weighted as the pack says.

    Without old log-probs (one update per rollout) the learner's own, detached, stand in, so that the ratio is 1. With
    correction "clip" the sampler is the old policy and there are no weights.
    """
    users = load_loss(settings.type) if ":" in settings.type else None
    policy_loss = POLICY_LOSSES[settings.policy_loss]
    kl_in_loss = settings.kl_in == "loss"

    def loss(scores: TokenScores, pack: Pack, kl_coef: float) -> tuple[Tensor, Stats]:
        logprobs = scores.logprobs
        old = logprobs.detach() if pack.old_logprobs is None else pack.old_logprobs
        behind = pack.sampler_logprobs if correction == "clip" else old  # what the ratio is taken to
        tokens = Tokens(logprobs, behind, pack.advantages, pack.sample_of)
        policy = policy_loss(tokens, settings) if users is None else users(tokens, scores, pack, settings.kl_coef > 0)
        weights, weight_stats = off_policy_weights(tokens, old, pack, settings, correction)
        per_token = policy.per_token * weights
        stats: Stats = {
            "policy/clip_fraction": mean_of(policy.clipped),
            "policy/entropy": mean_of(scores.entropy),
            "policy/kl_old": mean_of(k3_divergence(logprobs.detach(), behind)),
            **sampler_stats(old, pack),
            **weight_stats,
        }
        if pack.ref_logprobs is not None and kl_in_loss:
            kl = DIVERGENCES[settings.kl_estimator](logprobs, pack.ref_logprobs)
            kl = importance_weighted(kl, logprobs, behind) if settings.kl_unbiased else kl
            per_token = per_token + kl_coef * kl
            stats["policy/kl"] = mean_of(kl)
        if settings.entropy_coef:
            per_token = per_token - settings.entropy_coef * scores.entropy
        if pack.teacher_top is not None and settings.teacher_signal != "sampled":
            distance = teacher_distance(scores, pack, settings)
            per_token = per_token + settings.teacher_coef * distance
            stats["teacher/distance"] = mean_of(distance)
        return (per_token * pack.weights).sum(), stats

    return loss


def off_policy_weights(
    tokens: Tokens, old: Tensor, pack: Pack, settings: AlgorithmConfig, correction: Correction
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
    if settings.off_policy_sample_mask is not None:
        bound = settings.off_policy_sample_mask
        masked = unlikely_failures(tokens.logprobs, pack.sampler_logprobs, pack.advantages, pack.sample_of, bound)
        weights = weights * ~masked
        stats["sampler/samples_masked"] = mean_of(masked)
    return weights, stats


def on_examples(settings: AlgorithmConfig) -> Loss:
    """sft_coef times the negative log-likelihood of each trained token (supervised fine-tuning) plus teacher_coef times
    the distance to a teacher's distribution in its place, at a temperature T times T^2 (Hinton et al. 2015,
    arXiv:1503.02531, section 2)."""

    def loss(scores: TokenScores, pack: Pack, kl_coef: float) -> tuple[Tensor, Stats]:
        nll = -scores.logprobs
        stats: Stats = {"sft/nll": mean_of(nll), "policy/entropy": mean_of(scores.entropy)}
        stats |= means_by_source("sft/nll", nll, pack.sample_of, pack.sources)
        per_token = settings.sft_coef * nll
        if pack.teacher_top is not None:
            distance = teacher_distance(scores, pack, settings)
            per_token = per_token + settings.teacher_coef * pack.teacher_top.temperature**2 * distance
            stats["teacher/distance"] = mean_of(distance)
        return (per_token * pack.weights).sum(), stats

    return loss


def teacher_distance(scores: TokenScores, pack: Pack, settings: AlgorithmConfig) -> Tensor:
    """How far the policy's distribution is from the teacher's in the place of each token, [M]."""
    assert scores.at_teacher is not None and pack.teacher_top is not None
    return DISTANCES[settings.teacher_signal](scores.at_teacher, pack.teacher_top.logprobs, settings.teacher_mix)
