"""Divergences from a reference, for each trained token. Pure functions on torch tensors, [M] in and [M] out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def k1_divergence(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """logprob - ref_logprob: unbiased for KL(policy || reference) and of either sign (Schulman 2020, "Approximating KL
    divergence", k1). As a loss its gradient has mean zero: it belongs into the reward."""
    return logprobs - ref_logprobs


def k2_divergence(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(logprob - ref_logprob)^2 / 2, biased, of low variance (Schulman 2020, k2). As a loss on samples of the policy,
    its gradient is that of the KL."""
    return 0.5 * (logprobs - ref_logprobs) ** 2


def k3_divergence(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = ref_logprob - logprob: unbiased and never negative (Schulman 2020, k3; GRPO, Shao et al.
    2024, eq. 4)."""
    d = ref_logprobs - logprobs
    return torch.exp(d) - d - 1


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": k1_divergence,
    "k2": k2_divergence,
    "k3": k3_divergence,
}


def importance_weighted(divergence: Tensor, logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """The divergence times the ratio exp(logprob - old_logprob), gradient through both: an unbiased estimate of the KL
    of the policy, value and gradient, from tokens that the old policy drew (DeepSeek-V3.2, 2025, arXiv:2512.02556,
    section 3.1)."""
    return divergence * torch.exp(logprobs - old_logprobs)
