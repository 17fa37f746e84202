"""Policy losses. Pure functions on torch tensors with one entry per trained token; no config, no rank, no logging.

Losses come per token. The caller multiplies by weights that come from global counts, and sums. Arguments that recur:

    logprobs      f32 [M], the policy's, with gradient
    old_logprobs  f32 [M], of the policy that the ratio is taken to
    advantages    f32 [M]
    sample_of     int64 [M], index of each token's sample; all trained tokens of a sample must be there together
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # of a whole sample: exp of 500 tokens' 0.2 is inf in float32, and 0 * inf a gradient of NaN


class TokenLoss(NamedTuple):
    """Loss of each token, and where a bound on the ratio decided it."""

    per_token: Tensor  # [M]
    clipped: Tensor  # bool [M]


def sum_by_sample(values: Tensor, sample_of: Tensor) -> Tensor:
    """For each token the sum of `values` [M] over its sample, [M]."""
    count = int(sample_of.max()) + 1 if len(sample_of) else 0
    return values.new_zeros(count).index_add(0, sample_of, values)[sample_of]


def mean_by_sample(values: Tensor, sample_of: Tensor) -> Tensor:
    """For each token the mean of `values` [M] over its sample, [M]."""
    return sum_by_sample(values, sample_of) / sum_by_sample(torch.ones_like(values), sample_of)


def reinforce_loss(logprobs: Tensor, advantages: Tensor) -> TokenLoss:
    """-advantage * logprob (Williams 1992, "Simple statistical gradient-following algorithms"). With advantages of 1 it
    is the negative log-likelihood."""
    return TokenLoss(-advantages * logprobs, torch.zeros_like(logprobs, dtype=torch.bool))


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    ratio_cap: float | None = None,
) -> TokenLoss:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7), as GRPO uses it, for each token:

        ratio = exp(logprob - old_logprob)
        loss = -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)

    Separate bounds are DAPO's clip-higher (Yu et al. 2025, arXiv:2503.14476). Where the advantage is negative the loss
    has no upper bound in the ratio; two ways to give it one:

    Args:
        dual_clip: with a negative advantage the loss is at most dual_clip * -advantage (Ye et al. 2020,
            arXiv:1912.09729, eq. 5); above 1.
        ratio_cap: the ratio of the unclipped term is at most this (INTELLECT-2, 2025, arXiv:2505.07291, two-sided
            clipping); above 1 + clip_high, or it would bound positive advantages too.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    return _clipped(ratio, advantages, clip_low, clip_high, dual_clip, ratio_cap)


def _clipped(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float,
    dual_clip: float | None = None, ratio_cap: float | None = None,
) -> TokenLoss:  # fmt: skip
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    free = ratio if ratio_cap is None else ratio.clamp(max=ratio_cap)
    surrogate = torch.minimum(free * advantages, bounded * advantages)
    clipped = ((ratio < 1 - clip_low) & (advantages < 0)) | ((ratio > 1 + clip_high) & (advantages > 0))
    if dual_clip is not None:
        least = dual_clip * advantages
        too_low = (advantages < 0) & (surrogate < least)
        surrogate, clipped = torch.where(too_low, least, surrogate), clipped | too_low
    if ratio_cap is not None:
        clipped = clipped | ((ratio > ratio_cap) & (advantages < 0))
    return TokenLoss(-surrogate, clipped)


def sequence_clipped_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    sample_of: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    ratio_cap: float | None = None,
    mean: bool = True,
) -> TokenLoss:
    """The clipped surrogate with one ratio for a whole sample, the same at each of its tokens. `dual_clip` and
    `ratio_cap` as in `clipped_policy_loss`.

    With `mean` the ratio is the geometric mean of the tokens', exp(mean of (logprob - old_logprob)): GSPO (Zheng et al.
    2025, arXiv:2507.18071, eq. 5-7); its bounds are of the order 3e-4. Otherwise it is their product, exp(sum): that of
    the sample as one action, as in RLOO (Ahmadian et al. 2024, arXiv:2402.14740). Averaged over the tokens of each
    sample, then over samples, this is the papers' loss; multiplied by lengths it is LUSPO's (loss_average sample_sum).
    A ratio is at most exp(20); a sample beyond that is left alone.
    """
    gather = mean_by_sample if mean else sum_by_sample
    ratio = torch.exp(gather(logprobs - old_logprobs, sample_of).clamp(max=MAX_LOG_RATIO))
    return _clipped(ratio, advantages, clip_low, clip_high, dual_clip, ratio_cap)


def cispo_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, ratio_cap: float) -> TokenLoss:
    """CISPO (MiniMax 2025, arXiv:2506.13585, eq. 4-5): the ratio is a weight without gradient and with an upper bound,
    so that no token loses its gradient:

        loss = -min(ratio, ratio_cap) * advantage * logprob
    """
    ratio = torch.exp(logprobs - old_logprobs).detach()
    return TokenLoss(-ratio.clamp(max=ratio_cap) * advantages * logprobs, ratio > ratio_cap)


def sapo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    temperature_pos: float = 1.0,
    temperature_neg: float = 1.05,
) -> TokenLoss:
    """SAPO (Qwen team 2025, arXiv:2511.20347): a soft gate on the ratio instead of a hard clip:

        loss = -4 / t * sigmoid(t * (ratio - 1)) * advantage

    with t = temperature_pos where the advantage is above 0, temperature_neg elsewhere. At ratio 1 its slope is that of
    the unclipped surrogate.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    t = _by_sign(advantages, temperature_pos, temperature_neg)
    gate = torch.sigmoid(t * (ratio - 1)) * 4 / t
    return TokenLoss(-gate * advantages, torch.zeros_like(ratio, dtype=torch.bool))


def vespo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    sample_of: Tensor,
    power: tuple[float, float] = (2.0, 3.0),
    decay: tuple[float, float] = (3.0, 2.0),
) -> TokenLoss:
    """VESPO (2026, arXiv:2602.10693): each sample is weighted by a smooth function of its whole ratio, no gradient:

        w = exp(sum over the sample of (logprob - old_logprob))
        loss = -w^k * exp(c * (1 - w)) * advantage * logprob

    `power` holds k and `decay` holds c, for advantages above 0 and for others. Computed as exp(k log w + c (1 - w)),
    which neither overflows nor divides.
    """
    log_w = sum_by_sample((logprobs - old_logprobs).detach(), sample_of)
    k, c = _by_sign(advantages, *power), _by_sign(advantages, *decay)
    weight = torch.exp(k * log_w + c * (1 - log_w.exp()))
    return TokenLoss(-weight * advantages * logprobs, torch.zeros_like(weight, dtype=torch.bool))


def _by_sign(advantages: Tensor, positive: float, other: float) -> Tensor:
    """One number where the advantage is above 0, the other elsewhere, in the advantages' own precision."""
    return torch.where(advantages > 0, advantages.new_tensor(positive), advantages.new_tensor(other))


def high_entropy(entropy: Tensor, share: float) -> Tensor:
    """bool [M]: the tokens whose entropy is among the highest `share` of all (Wang et al. 2025, "Beyond the 80/20
    rule", arXiv:2506.01939). Pass all tokens of an update at once: the quantile is over what is given."""
    if not len(entropy):
        return torch.zeros(0, dtype=torch.bool, device=entropy.device)
    # Interpolated as torch.quantile does, which takes 16 million values at most. Rounded, because 10 * (1 - 0.7) is
    # a bit more than 3, and the token at 3 would be left out.
    at = round((len(entropy) - 1) * (1 - share), 9)
    low, ordered = int(at), entropy.sort().values
    high = min(low + 1, len(entropy) - 1)
    threshold = ordered[low] + (ordered[high] - ordered[low]) * (at - low)
    return entropy >= threshold
