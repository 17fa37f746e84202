"""The critic's loss, and how good it is. Pure functions on torch tensors, one entry per trained token, [M]."""

from __future__ import annotations

import torch
from torch import Tensor

from rlft.algorithms.policy import TokenLoss


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> TokenLoss:
    """Squared error of the critic, which may move at most `clip` from what it said before (PPO's reference
    implementation; Huang et al. 2022, "The 37 implementation details of PPO", detail 9), for each token:

        loss = 0.5 * max((value - return)^2, (clamp(value, old - clip, old + clip) - return)^2)

    Without `clip` the plain squared error, halved.
    """
    plain = (values - returns) ** 2
    if clip is None:
        return TokenLoss(0.5 * plain, torch.zeros_like(plain, dtype=torch.bool))
    moved = values - old_values
    bounded = (old_values + moved.clamp(-clip, clip) - returns) ** 2
    return TokenLoss(0.5 * torch.maximum(plain, bounded), (moved.abs() > clip) & (bounded > plain))
