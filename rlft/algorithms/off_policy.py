"""For samples that other weights or another engine drew: how much each token counts. Pure functions on torch tensors
with one entry per trained token, [M]; no gradient flows through what they return.

`old_logprobs` are the learner's before its first update, `sampler_logprobs` those of whoever drew the token.
"""

from __future__ import annotations

import math

from torch import Tensor

from rlft.algorithms.policy import mean_by_sample, sum_by_sample


def importance_ratio(old_logprobs: Tensor, sampler_logprobs: Tensor, sample_of: Tensor | None = None) -> Tensor:
    """How much likelier each token is to the learner than to the sampler, exp(old - sampler) [M].

    With `sample_of` (int64 [M], the index of each token's sample) the ratio of its whole sample instead, the same at
    each of the sample's tokens: exp(sum over the sample's trained tokens of (old - sampler)), a product and not GSPO's
    geometric mean. All trained tokens of a sample must be here together.
    """
    gap = (old_logprobs - sampler_logprobs).detach()
    if sample_of is None:
        return gap.exp()
    return sum_by_sample(gap.double(), sample_of).exp().to(gap.dtype)


def truncated_importance(
    old_logprobs: Tensor, sampler_logprobs: Tensor, cap: float, sample_of: Tensor | None = None
) -> Tensor:
    """Weight of each token for the gap between learner and sampler, min(ratio, cap) [M].

    For tokens: truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"). For whole samples, with `sample_of`: Liu, Li et al. 2025, "When speed kills stability:
    demystifying RL collapse from the training-inference mismatch" (sequence-level TIS). See `importance_ratio`.
    """
    return importance_ratio(old_logprobs, sampler_logprobs, sample_of).clamp(max=cap)


def too_far_off(old_logprobs: Tensor, sampler_logprobs: Tensor, bound: float) -> Tensor:
    """bool [M]: tokens whose own ratio exp(old - sampler) is above `bound` or below 1 / `bound`, to be left out of the
    policy loss. IcePop (Ling team 2025, arXiv:2510.18855), which has separate bounds (0.5 and 5 there) and weighs what
    it keeps by the ratio; here that weight is `truncated_importance`, or none."""
    return (old_logprobs - sampler_logprobs).detach().abs() > math.log(bound)


def unlikely_failures(
    logprobs: Tensor, behind_logprobs: Tensor, advantages: Tensor, sample_of: Tensor, bound: float
) -> Tensor:
    """bool [M]: tokens of samples with a negative advantage from which the policy has already moved away, mean over the
    sample of (behind - logprob) above `bound`; to be left out of the policy loss. Off-policy sequence masking
    (DeepSeek-V3.2, 2025, arXiv:2512.02556, section 3.1). `behind_logprobs`: of what drew the sample, or of the policy
    before the first update."""
    moved = mean_by_sample((behind_logprobs - logprobs).detach(), sample_of)
    return (advantages < 0) & (moved > bound)
