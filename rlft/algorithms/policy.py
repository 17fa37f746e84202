"""Policy losses. Pure functions on torch tensors with one entry per trained token; no config, no rank, no logging.

Every function returns a loss per token. The caller multiplies by weights that come from global counts and sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ClippedLoss(NamedTuple):
    """Loss of each token, and where clipping decided it."""

    per_token: Tensor  # [M]
    clipped: Tensor  # bool [M]


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> ClippedLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7), as GRPO uses it, for each token:

        ratio = exp(logprob - old_logprob)
        loss = -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)

    Separate bounds are DAPO's clip-higher (Yu et al. 2025, arXiv:2503.14476).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantages, bounded * advantages)
    clipped = ((ratio < 1 - clip_low) & (advantages < 0)) | ((ratio > 1 + clip_high) & (advantages > 0))
    return ClippedLoss(-surrogate, clipped)


def truncated_importance(old_logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """Weight of each token for the gap between learner and sampler, min(exp(old - sampler), cap); no gradient.
    Truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training")."""
    return torch.exp(old_logprobs - sampler_logprobs).clamp(max=cap).detach()


def k3_divergence(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) for each token, never negative (Schulman 2020, "Approximating KL divergence",
    k3; GRPO eq. 4): exp(d) - d - 1 with d = ref_logprob - logprob."""
    d = ref_logprobs - logprobs
    return torch.exp(d) - d - 1
