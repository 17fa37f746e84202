"""Distances from a teacher's distribution, against the divergences of the whole distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.algorithms.distillation import DISTANCES, forward_kl, jensen_shannon, reverse_kl, with_rest


def logs(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_by_hand():
    # student 1/2 1/4 | 1/4, teacher 1/4 1/4 | 1/2 where the last is all the rest
    student, teacher = logs((0.5, 0.25)), logs((0.25, 0.25))
    assert reverse_kl(student, teacher).tolist() == pytest.approx([0.5 * math.log(2) - 0.25 * math.log(2)])
    assert forward_kl(student, teacher).tolist() == pytest.approx([-0.25 * math.log(2) + 0.5 * math.log(2)])
    # the mixture is 3/8 1/4 | 3/8
    half = 0.25 * math.log(2 / 3) + 0.5 * math.log(4 / 3)
    assert jensen_shannon(student, teacher, 0.5).tolist() == pytest.approx([half])


def test_the_rest():
    assert with_rest(logs((0.5, 0.25))).exp().tolist() == [pytest.approx([0.5, 0.25, 0.25])]
    whole = with_rest(logs((0.5, 0.5)))  # nothing is left, and nothing overflows
    assert bool(torch.isfinite(whole).all()) and whole[0, -1] < -20


def test_what_the_teacher_never_says():
    # the student says it half of the time. Forward KL log 2; reverse KL has no end; the mixture is 3/4 1/4
    teacher = logs((1.0, 0.0))
    distances = {"forward_kl": math.log(2), "js": 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)}
    for name, expected in distances.items():
        student = logs((0.5, 0.5)).requires_grad_()
        distance = DISTANCES[name](student, teacher, 0.5)
        assert distance.tolist() == pytest.approx([expected])
        assert bool(torch.isfinite(torch.autograd.grad(distance.sum(), student)[0]).all())
    assert reverse_kl(logs((0.5, 0.5)), teacher).tolist() == [math.inf]


@pytest.mark.parametrize("name", DISTANCES)
def test_no_distance_from_oneself(name):
    same = logs((0.5, 0.25), (0.1, 0.2)).requires_grad_()
    distance = DISTANCES[name](same, same.detach(), 0.3)
    torch.testing.assert_close(distance, torch.zeros(2, dtype=torch.float64))
    assert torch.autograd.grad(distance.sum(), same)[0].abs().max() < 1e-12 or name == "reverse_kl"


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_lumping_never_adds_and_the_whole_vocabulary_is_exact(seed, count):
    made = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, 6, dtype=torch.float64, generator=made).log_softmax(-1) for _ in range(2))
    ids = teacher.topk(count, -1).indices
    exact = {
        "reverse_kl": (student.exp() * (student - teacher)).sum(-1),
        "forward_kl": (teacher.exp() * (teacher - student)).sum(-1),
    }
    for name, expected in exact.items():
        lumped = DISTANCES[name](student.gather(-1, ids), teacher.gather(-1, ids), 0.5)
        assert bool((lumped <= expected + 1e-9).all()) and bool((lumped >= -1e-9).all())
        if count == 6:
            torch.testing.assert_close(lumped, expected, atol=1e-9, rtol=1e-6)
