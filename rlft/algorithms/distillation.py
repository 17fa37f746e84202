"""How far a student's next-token distribution is from a teacher's. Pure functions on torch tensors.

Shape letters: M tokens, K of the vocabulary's tokens. Distributions come as log-probs of the teacher's K likeliest
tokens, [M, K]; all others count as one more, with what is left of the mass. So a divergence is that of the two
distributions after lumping, never more than the full one, and equal to it when K is the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def with_rest(logprobs_MK: Tensor) -> Tensor:
    """One more entry, [M, K + 1]: the log-prob of everything else. At least exp(-30), so that rounding is no
    infinity."""
    mass = torch.logsumexp(logprobs_MK, -1).clamp(max=-1e-12)
    rest = torch.log(-torch.expm1(mass)).clamp(min=-30.0)
    return torch.cat([logprobs_MK, rest[:, None]], -1)


def reverse_kl(student_MK: Tensor, teacher_MK: Tensor, mix: float = 0.5) -> Tensor:
    """KL(student || teacher) [M]: the student avoids what the teacher would not say (Gu et al. 2023, MiniLLM,
    arXiv:2306.08543)."""
    student, teacher = with_rest(student_MK), with_rest(teacher_MK)
    return _kl(student, teacher)


def forward_kl(student_MK: Tensor, teacher_MK: Tensor, mix: float = 0.5) -> Tensor:
    """KL(teacher || student) [M]: the student covers all that the teacher would say (Hinton et al. 2015,
    arXiv:1503.02531)."""
    student, teacher = with_rest(student_MK), with_rest(teacher_MK)
    return _kl(teacher, student)


def jensen_shannon(student_MK: Tensor, teacher_MK: Tensor, mix: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence [M] (GKD, Agarwal et al. 2023, arXiv:2306.13649, eq. 1):

    mix * KL(teacher || m) + (1 - mix) * KL(student || m),     m = mix * teacher + (1 - mix) * student
    """
    student, teacher = with_rest(student_MK), with_rest(teacher_MK)
    mixture = torch.logaddexp(teacher + math.log(mix), student + math.log(1 - mix))
    return mix * _kl(teacher, mixture) + (1 - mix) * _kl(student, mixture)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    gap = (p - q).masked_fill(p == -math.inf, 0.0)  # what p never says costs nothing, and 0 * inf would be NaN
    return (p.exp() * gap).sum(-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "js": jensen_shannon,
}
