"""The table of algorithms: a name, a function from what the policy says of a pack to a loss, and what it needs.

A new algorithm is a function here (or in a file of its own) and one line in ALGORITHMS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlft.algorithms.policy import clipped_policy_loss, k3_divergence, truncated_importance
from rlft.batch import Pack
from rlft.config.algorithm import AlgorithmConfig
from rlft.models.policy import TokenScores

Stats = dict[str, Tensor]  # name -> sum over tokens (names ending in _max: maximum), no gradient
Loss = Callable[[TokenScores, Pack], tuple[Tensor, Stats]]


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm is to a loop: whether it learns from its own samples, and its loss."""

    on_policy: bool
    make_loss: Callable[[AlgorithmConfig, bool], Loss]  # (settings, correct for the sampler) -> loss


def grpo(settings: AlgorithmConfig, correct_sampler: bool) -> Loss:
    """GRPO's loss for a pack: clipped surrogate + kl_coef * k3, each token weighted as the pack says. Without old
    log-probs (one update per rollout) the learner's own, detached, stand in, so that the ratio is 1."""

    def loss(scores: TokenScores, pack: Pack) -> tuple[Tensor, Stats]:
        logprobs = scores.logprobs
        old = logprobs.detach() if pack.old_logprobs is None else pack.old_logprobs
        policy = clipped_policy_loss(logprobs, old, pack.advantages, settings.clip_low, settings.clip_high)
        per_token = policy.per_token
        gap = (old - pack.sampler_logprobs).abs()
        stats = {
            "policy/clip_fraction": policy.clipped.sum(),
            "policy/entropy": scores.entropy.sum(),
            "sampler/logprob_diff_mean": gap.sum(),
            "sampler/logprob_diff_max": gap.max() if len(gap) else gap.sum(),
        }
        if correct_sampler:
            weight = truncated_importance(old, pack.sampler_logprobs, settings.off_policy_cap)
            per_token = per_token * weight
            stats["sampler/importance_mean"] = weight.sum()
        if pack.ref_logprobs is not None:
            kl = k3_divergence(logprobs, pack.ref_logprobs)
            per_token = per_token + settings.kl_coef * kl
            stats["policy/kl"] = kl.detach().sum()
        return (per_token * pack.weights).sum(), stats

    return loss


def sft(settings: AlgorithmConfig, correct_sampler: bool) -> Loss:
    """Supervised fine-tuning: the negative log-likelihood of each trained token."""

    def loss(scores: TokenScores, pack: Pack) -> tuple[Tensor, Stats]:
        nll = -scores.logprobs
        return (nll * pack.weights).sum(), {"sft/nll": nll.detach().sum(), "policy/entropy": scores.entropy.sum()}

    return loss


ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm(on_policy=True, make_loss=grpo),
    "sft": Algorithm(on_policy=False, make_loss=sft),
}
