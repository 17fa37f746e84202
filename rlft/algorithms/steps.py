"""The loss of a model that scores each step of a completion. Knows nothing about models or packs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def step_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of each step's score (a logit, [M]) with its label (from 0 to 1, [M]): [M], in nats.

    Lightman et al. 2023, "Let's Verify Step by Step", arXiv:2305.20050, with labels by people; Wang et al. 2023,
    "Math-Shepherd", arXiv:2312.08935, eq. 4, with labels by roll-outs, hard or soft. Both let a language model say a
    token for "good"; here a head of one output says it, as in outcome reward models.
    """
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
