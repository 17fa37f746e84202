"""Policy losses of single tokens and whole samples, with numbers worked by hand. All of them are held to recorded
numbers too (tests/golden)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.algorithms.divergences import importance_weighted, k1_divergence, k2_divergence, k3_divergence
from rlft.algorithms.off_policy import unlikely_failures
from rlft.algorithms.policy import (
    cispo_loss,
    clipped_policy_loss,
    high_entropy,
    mean_by_sample,
    reinforce_loss,
    sapo_loss,
    sequence_clipped_loss,
    sum_by_sample,
    vespo_loss,
)
from rlft.algorithms.value import clipped_value_loss
from tests.helpers import leaf, numbers

LOG2 = math.log(2)


def slopes(loss: torch.Tensor, at: torch.Tensor) -> list[float]:
    return torch.autograd.grad(loss.sum(), at)[0].tolist()


def test_sums_and_means_by_sample():
    values, sample_of = numbers(1, 2, 6, 5), torch.tensor([0, 0, 0, 2])  # sample 1 has no trained token
    assert sum_by_sample(values, sample_of).tolist() == [9, 9, 9, 5]
    assert mean_by_sample(values, sample_of).tolist() == [3, 3, 3, 5]
    assert sum_by_sample(numbers(), torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_reinforce():
    logprobs = leaf(-1.0, -3.0)
    loss = reinforce_loss(logprobs, numbers(2.0, -0.5)).per_token
    assert loss.tolist() == [2.0, -1.5]
    assert slopes(loss, logprobs) == [-2.0, 0.5]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (8.0, -1.0, 3.0, 0.0, True),  # at most 3 times the advantage
        (2.0, -1.0, 2.0, 2.0, False),
        (8.0, 1.0, -1.2, 0.0, True),  # the ordinary clip, above
        (0.5, -1.0, 0.8, 0.0, True),  # and below
    ],
)
def test_dual_clip(ratio, advantage, loss, slope, clipped):
    logprobs = leaf(math.log(ratio))
    got = clipped_policy_loss(logprobs, numbers(0.0), numbers(advantage), 0.2, 0.2, dual_clip=3.0)
    assert got.per_token.item() == pytest.approx(loss)
    assert slopes(got.per_token, logprobs) == pytest.approx([slope])
    assert got.clipped.tolist() == [clipped]


def test_a_cap_on_the_ratio_bounds_negative_advantages_only():
    logprobs = leaf(math.log(8.0), math.log(8.0), math.log(3.0))
    got = clipped_policy_loss(logprobs, numbers(0, 0, 0), numbers(-1, 1, -1), 0.2, 0.2, ratio_cap=4.0)
    assert got.per_token.tolist() == pytest.approx([4.0, -1.2, 3.0])
    assert slopes(got.per_token, logprobs) == pytest.approx([0.0, 0.0, 3.0])
    assert got.clipped.tolist() == [True, True, False]


def test_sequence_ratio_is_the_geometric_mean():
    # ratios 4 and 1 of one sample: the sample's is 2; with bounds of 0.5 it is clipped at 1.5. Ratio 1 of the other.
    logprobs, sample_of = leaf(2 * LOG2, 0.0, 0.0), torch.tensor([0, 0, 1])
    got = sequence_clipped_loss(logprobs, numbers(0, 0, 0), numbers(1, 1, -3), sample_of, 0.5, 0.5)
    assert got.per_token.tolist() == pytest.approx([-1.5, -1.5, 3.0])
    assert got.clipped.tolist() == [True, True, False]
    wide = sequence_clipped_loss(logprobs, numbers(0, 0, 0), numbers(1, 1, -3), sample_of, 0.5, 2.0)
    assert wide.per_token.tolist() == pytest.approx([-2, -2, 3])
    assert slopes(wide.per_token, logprobs) == pytest.approx([-2, -2, 3]), "-2 at each of two tokens, halved, twice"


def test_sample_ratio_is_the_product():
    # ratios 2 and 3: 6
    logprobs, sample_of = leaf(LOG2, math.log(3)), torch.tensor([0, 0])
    got = sequence_clipped_loss(logprobs, numbers(0, 0), numbers(1, 1), sample_of, 0.2, 9.0, mean=False)
    assert got.per_token.tolist() == pytest.approx([-6, -6])


def test_a_samples_ratio_can_be_bounded_for_negative_advantages():
    # ratio 8 at both tokens; at most 3 and 4 times the advantage of -1
    logprobs, sample_of, old = leaf(3 * LOG2, 3 * LOG2), torch.tensor([0, 0]), numbers(0, 0)
    for keys, loss in (({"dual_clip": 3.0}, 3.0), ({"ratio_cap": 4.0}, 4.0), ({}, 8.0)):
        got = sequence_clipped_loss(logprobs, old, numbers(-1, -1), sample_of, 0.2, 0.2, **keys)
        assert got.per_token.tolist() == pytest.approx([loss, loss])
        assert slopes(got.per_token, logprobs) == pytest.approx([0.0 if keys else 8.0] * 2)
        assert got.clipped.tolist() == [bool(keys)] * 2


def test_a_cap_below_the_clip_bounds_positive_advantages_too_and_dual_clip_does_not():
    # ratio 1.4, clipped at 1.5: the cap 1.1 makes it -1.1; for an advantage of -1 min(-1.1, -1.4) is the clip's
    logprobs, old = leaf(math.log(1.4), math.log(1.4)), numbers(0, 0)
    capped = clipped_policy_loss(logprobs, old, numbers(1, -1), 0.2, 0.5, ratio_cap=1.1).per_token
    assert capped.tolist() == pytest.approx([-1.1, 1.4])
    dual = clipped_policy_loss(logprobs, old, numbers(1, -1), 0.2, 0.5, dual_clip=1.1).per_token
    assert dual.tolist() == pytest.approx([-1.4, 1.1])


def test_a_long_sample_has_a_finite_gradient_however_far_it_moved():
    """The product of 500 ratios of exp(0.2) is inf in float32."""
    logprobs, sample_of = torch.full((500,), -1.0, requires_grad=True), torch.zeros(500, dtype=torch.int64)
    for gap in (0.2, -0.2):
        for sign in (1.0, -1.0):
            old, advantages = torch.full((500,), -1.0 - gap), torch.full((500,), sign)
            got = sequence_clipped_loss(logprobs, old, advantages, sample_of, 0.2, 0.2, mean=False).per_token
            assert bool(torch.isfinite(got).all())
            assert bool(torch.isfinite(torch.autograd.grad(got.sum(), logprobs)[0]).all())


LOSSES = {
    "clip": lambda lp, old, adv, of: clipped_policy_loss(lp, old, adv, 0.2, 0.3, dual_clip=2.0, ratio_cap=3.0),
    "sequence": lambda lp, old, adv, of: sequence_clipped_loss(lp, old, adv, of, 0.2, 0.3),
    "sample": lambda lp, old, adv, of: sequence_clipped_loss(lp, old, adv, of, 0.2, 0.3, mean=False),
    "cispo": lambda lp, old, adv, of: cispo_loss(lp, old, adv, 1.5),
    "sapo": lambda lp, old, adv, of: sapo_loss(lp, old, adv),
    "vespo": lambda lp, old, adv, of: vespo_loss(lp, old, adv, of),
    "reinforce": lambda lp, old, adv, of: reinforce_loss(lp, adv),
}


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_the_order_of_tokens_changes_nothing(name, seed, count):
    """Tokens of all samples in any order, with their sample's index: each keeps its loss, its mark and its slope."""
    draw = torch.Generator().manual_seed(seed)
    old, moved = (torch.randn(count, generator=draw, dtype=torch.float64) for _ in range(2))
    sample_of = torch.randint(0, 3, (count,), generator=draw)
    advantages = torch.randn(3, generator=draw, dtype=torch.float64)[sample_of]
    order = torch.randperm(count, generator=draw)
    logprobs = (old + 0.4 * moved).requires_grad_()
    plain = LOSSES[name](logprobs, old, advantages, sample_of)
    mixed = LOSSES[name](logprobs[order], old[order], advantages[order], sample_of[order])
    torch.testing.assert_close(mixed.per_token, plain.per_token[order])
    assert mixed.clipped.tolist() == plain.clipped[order].tolist()
    assert slopes(mixed.per_token, logprobs) == pytest.approx(slopes(plain.per_token, logprobs))


@pytest.mark.parametrize("name", LOSSES)
def test_no_token_and_one_token(name):
    none = numbers().requires_grad_()
    got = LOSSES[name](none, numbers(), numbers(), torch.zeros(0, dtype=torch.int64))
    assert got.per_token.shape == got.clipped.shape == (0,)
    assert slopes(got.per_token, none) == []
    one = leaf(-1.0)  # on the policy every loss has the policy gradient
    got = LOSSES[name](one, numbers(-1.0), numbers(-0.5), torch.zeros(1, dtype=torch.int64))
    assert slopes(got.per_token, one) == pytest.approx([0.5])
    assert got.clipped.tolist() == [False]


def test_cispo_keeps_the_gradient_of_every_token():
    # weights min(8, 5) and 1/2, without gradient
    logprobs = leaf(math.log(8), -LOG2)
    got = cispo_loss(logprobs, numbers(0, 0), numbers(2, 1), ratio_cap=5.0)
    assert got.per_token.tolist() == pytest.approx([-5 * 2 * math.log(8), 0.5 * LOG2])
    assert slopes(got.per_token, logprobs) == pytest.approx([-10, -0.5])
    assert got.clipped.tolist() == [True, False]


def test_sapo_has_the_surrogates_slope_at_ratio_1_and_fades():
    # at ratio 1 the gate is 4 / t * 1/2 and its slope 4 / t * t / 4 = 1
    logprobs = leaf(0.0, 0.0, math.log(3))
    got = sapo_loss(logprobs, numbers(0, 0, 0), numbers(1, -1, 1), temperature_pos=1.0, temperature_neg=2.0)
    sigmoid = 1 / (1 + math.exp(-2))
    assert got.per_token.tolist() == pytest.approx([-2, 1, -4 * sigmoid])
    assert slopes(got.per_token, logprobs) == pytest.approx([-1, 1, -4 * sigmoid * (1 - sigmoid) * 3])


def test_vespo_weighs_whole_samples():
    # the sample's ratio is 2 * 2 = 4: 4^2 exp(3 (1 - 4)); for a negative advantage ratio 1 weighs 1
    logprobs, sample_of = leaf(LOG2, LOG2, -1.0), torch.tensor([0, 0, 1])
    got = vespo_loss(logprobs, numbers(0, 0, -1), numbers(1, 1, -2), sample_of)
    weight = 16 * math.exp(-9)
    assert got.per_token.tolist() == pytest.approx([-weight * LOG2, -weight * LOG2, -2])
    assert slopes(got.per_token, logprobs) == pytest.approx([-weight, -weight, 2])


def test_vespo_does_not_overflow():
    logprobs = torch.zeros(500, dtype=torch.float64)
    for old in (-5.0, 5.0):
        got = vespo_loss(logprobs, torch.full_like(logprobs, old), torch.ones_like(logprobs), torch.zeros(500).long())
        assert bool(torch.isfinite(got.per_token).all())


def test_high_entropy_tokens():
    # of five, the quantile 0.6 lies at 2.4 in 0 1 2 3 4
    entropy = numbers(3, 0, 4, 1, 2)
    assert high_entropy(entropy, 0.4).tolist() == [True, False, True, False, False]
    assert high_entropy(numbers(7), 0.2).tolist() == [True]
    assert high_entropy(numbers(), 0.2).tolist() == []
    torch.testing.assert_close(high_entropy(entropy, 0.3), entropy >= torch.quantile(entropy, 0.7))
    eleven = torch.arange(11, dtype=torch.float64)  # the quantile 0.3 lies at 3; in binary, 10 * (1 - 0.7) is above
    assert int(high_entropy(eleven, 0.7).sum()) == 8


def test_samples_that_the_policy_has_left():
    # mean of (behind - logprob): 1 and 3 for the first, 0.2 for the second, 5 with a positive advantage
    logprobs, behind = numbers(-2, -4, -1.2, -6), numbers(-1, -1, -1, -1)
    masked = unlikely_failures(logprobs, behind, numbers(-1, -1, -1, 1), torch.tensor([0, 0, 1, 2]), bound=1.5)
    assert masked.tolist() == [True, True, False, False]


def test_divergences():
    # the policy says twice what the reference says, and half
    logprobs, ref = leaf(-1.0, -1.0), numbers(-1 - LOG2, -1 + LOG2)
    assert k1_divergence(logprobs, ref).tolist() == pytest.approx([LOG2, -LOG2])
    assert k2_divergence(logprobs, ref).tolist() == pytest.approx([LOG2**2 / 2] * 2)
    assert k3_divergence(logprobs, ref).tolist() == pytest.approx([0.5 - 1 + LOG2, 2 - 1 - LOG2])
    assert slopes(k2_divergence(logprobs, ref), logprobs) == pytest.approx([LOG2, -LOG2])


def test_the_weighted_divergence_has_the_gradient_of_the_kl():
    """Over all tokens of a small vocabulary, each as likely as the old policy makes it: value and gradient are those of
    KL(policy || reference), computed from the distributions themselves."""
    logits, old, ref = leaf(0.3, -0.2, 1.0), numbers(0.1, 0.4, -0.3), numbers(1.0, 0.0, 0.5)
    policy, old, ref = (torch.log_softmax(x, 0) for x in (logits, old, ref))
    for divergence in (k1_divergence, k3_divergence):
        estimate = (old.exp() * importance_weighted(divergence(policy, ref), policy, old)).sum()
        exact = (policy.exp() * (policy - ref)).sum()
        torch.testing.assert_close(estimate, exact)
        torch.testing.assert_close(
            torch.autograd.grad(estimate, logits, retain_graph=True)[0],
            torch.autograd.grad(exact, logits, retain_graph=True)[0],
        )


def test_value_loss():
    # values 1 and 1, returns 2 and 0; before 0 and 0.9. The first may move to 0.2: (0.2 - 2)^2 / 2 is larger than
    # (1 - 2)^2 / 2 and has no gradient; the second moved by 0.1 only.
    values = leaf(1.0, 1.0)
    got = clipped_value_loss(values, numbers(0.0, 0.9), numbers(2.0, 0.0), clip=0.2)
    assert got.per_token.tolist() == pytest.approx([1.62, 0.5])
    assert slopes(got.per_token, values) == pytest.approx([0.0, 1.0])
    assert got.clipped.tolist() == [True, False]
    assert clipped_value_loss(values, numbers(0, 0), numbers(2, 0), None).per_token.tolist() == [0.5, 0.5]
