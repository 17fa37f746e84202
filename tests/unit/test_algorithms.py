"""Advantages and policy losses against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlft.algorithms.advantages import flat_groups, group_advantages
from rlft.algorithms.divergences import k3_divergence
from rlft.algorithms.off_policy import importance_ratio, too_far_off, truncated_importance
from rlft.algorithms.policy import (
    clipped_policy_loss,
)
from rlft.algorithms.statistics import Mean, joined, mean_of, metrics_of

NAN = float("nan")


def test_advantage_is_distance_from_the_mean_in_standard_deviations():
    # rewards 1 0 0 1: mean 0.5, squared distances 4 * 0.25 = 1, unbiased variance 1 / 3
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    np.testing.assert_allclose(group_advantages([[1, 0, 0, 1]])[0], [expected, -expected, -expected, expected])


def test_scale_none_only_centres():
    np.testing.assert_allclose(group_advantages([[3, 1, 2], [0, 0, 6]], "none"), [[1, -1, 0], [-2, -2, 4]])


def test_scale_batch_divides_by_the_deviation_of_all_rewards():
    # all rewards 0 2 4 6: mean 3, squares 9 + 1 + 1 + 9 = 20, variance 20 / 3; group means 1 and 5
    std = math.sqrt(20 / 3)
    got = group_advantages([[0, 2], [4, 6]], "batch", eps=0.0)
    np.testing.assert_allclose(got, [[-1 / std, 1 / std], [-1 / std, 1 / std]])


def test_scale_group_divides_by_each_groups_own_deviation():
    # 0 2: std sqrt(2), 0 20: std 10 sqrt(2); both become -+ 1 / sqrt(2)
    h = math.sqrt(0.5)
    np.testing.assert_allclose(group_advantages([[0, 2], [0, 20]], "group", eps=0.0), [[-h, h], [-h, h]])


def test_eps_is_added_to_the_deviation():
    # 0 2: distance 1, std sqrt(2)
    np.testing.assert_allclose(group_advantages([[0, 2]], eps=0.5), [[-1 / (2**0.5 + 0.5), 1 / (2**0.5 + 0.5)]])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_missing_reward_counts_nowhere(scale):
    with_gap = group_advantages([[1, NAN, 0, 5], [2, 3, NAN, 7]], scale)
    without = group_advantages([[1, 0, 5], [2, 3, 7]], scale)
    assert np.isnan(with_gap[0, 1])
    assert np.isnan(with_gap[1, 2])
    np.testing.assert_allclose(with_gap[~np.isnan(with_gap)].reshape(2, 3), without)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_sample_alone_in_its_group_has_advantage_zero(scale):
    assert group_advantages([[7.0]], scale).tolist() == [[0.0]]
    got = group_advantages([[7.0, NAN], [0.0, 1.0]], scale)
    assert got[0, 0] == 0
    assert np.isnan(got[0, 1])


def test_equal_rewards_give_zero_and_not_noise():
    # 0.1 three times: the mean is not exactly 0.1 in binary, the difference must not be blown up by a tiny deviation
    np.testing.assert_allclose(group_advantages([[0.1, 0.1, 0.1]]), 0, atol=1e-12)
    np.testing.assert_array_equal(np.isnan(group_advantages([[NAN, NAN]])), [[True, True]])


def test_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="unknown scale 'std'"):
        group_advantages([[1, 2]], "std")


def test_flat_groups():
    rewards = [[1, 1, 1], [1, 1, 0], [NAN, 2, 2], [NAN, 2, 3], [NAN, NAN, NAN], [NAN, NAN, 5]]
    assert flat_groups(np.array(rewards)).tolist() == [True, False, True, False, True, True]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        # inside 0.8 .. 1.3 the loss is -ratio * advantage, and d loss / d logprob = -ratio * advantage as well
        (1.0, 2.0, -2.0, -2.0, False),
        (1.2, 2.0, -2.4, -2.4, False),
        (0.9, -1.0, 0.9, 0.9, False),
        # a good token that became more likely than 1.3 times: bounded, no gradient
        (1.5, 2.0, -2.6, 0.0, True),
        # a bad token that became more likely: not bounded, it must come down
        (1.5, -1.0, 1.5, 1.5, False),
        # a bad token that became less likely than 0.8 times: bounded, no gradient
        (0.5, -1.0, 0.8, 0.0, True),
        # a good token that became less likely: not bounded, it must come up
        (0.5, 2.0, -1.0, -1.0, False),
        # nothing to learn
        (1.5, 0.0, 0.0, 0.0, False),
        (0.5, 0.0, 0.0, 0.0, False),
    ],
)
def test_clipped_loss(ratio, advantage, loss, slope, clipped):
    logprobs = torch.tensor([math.log(ratio) - 3.0], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.tensor([-3.0], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    got = clipped_policy_loss(logprobs, old, advantages, clip_low=0.2, clip_high=0.3)
    got.per_token.sum().backward()
    assert got.per_token.item() == pytest.approx(loss)
    assert logprobs.grad.item() == pytest.approx(slope)
    assert got.clipped.item() is clipped


def test_on_policy_the_gradient_is_the_policy_gradient():
    logprobs = torch.tensor([-1.0, -2.0, -0.1], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)
    clipped_policy_loss(logprobs, logprobs.detach(), advantages, 0.2, 0.2).per_token.sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)


def test_truncated_importance():
    old = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    sampler = torch.tensor([-1.0, -1.0 - math.log(1.5), -1.0 + math.log(4)])
    weight = truncated_importance(old, sampler, cap=2.0)
    torch.testing.assert_close(weight, torch.tensor([1.0, 1.5, 0.25]))
    assert not weight.requires_grad
    assert truncated_importance(torch.zeros(1), torch.tensor([-math.log(3.0)]), cap=2.0).item() == 2.0


def test_a_samples_ratio_is_the_product_of_its_tokens():
    # ratios 3, 1/2, 4 | 1/8: the samples' are 6 and 1/8
    ratios = torch.tensor([3.0, 0.5, 4.0, 0.125])
    old = torch.full((4,), -1.0, requires_grad=True)
    sampler, sample_of = -1.0 - ratios.log(), torch.tensor([0, 0, 0, 1])
    torch.testing.assert_close(importance_ratio(old, sampler), ratios)
    whole = importance_ratio(old, sampler, sample_of)
    torch.testing.assert_close(whole, torch.tensor([6.0, 6.0, 6.0, 0.125]))
    assert not whole.requires_grad
    weights = truncated_importance(old, sampler, 2.0, sample_of)
    torch.testing.assert_close(weights, torch.tensor([2.0, 2.0, 2.0, 0.125]))


def test_samples_without_trained_tokens_and_packs_without_samples():
    gap = torch.tensor([math.log(2.0)])
    torch.testing.assert_close(importance_ratio(gap, torch.zeros(1), torch.tensor([3])), torch.tensor([2.0]))
    none = torch.zeros(0)
    assert importance_ratio(none, none, none.long()).shape == (0,)


def test_a_long_samples_ratio_is_bounded_however_large():
    old, sampler, sample_of = torch.zeros(500), torch.full((500,), -2.0), torch.zeros(500, dtype=torch.int64)
    assert truncated_importance(old, sampler, 2.0, sample_of).unique().tolist() == [2.0]  # exp(1000)
    assert truncated_importance(sampler, old, 2.0, sample_of).unique().tolist() == [0.0]


def test_tokens_too_far_off():
    # ratios 1, 4.9, 5.1, 1 / 4.9, 1 / 5.1 with the bound 5
    old = torch.tensor([1.0, 4.9, 5.1, 1 / 4.9, 1 / 5.1]).log()
    assert too_far_off(old, torch.zeros(5), 5.0).tolist() == [False, False, True, False, True]
    assert too_far_off(torch.zeros(1), torch.tensor([-math.inf]), 5.0).tolist() == [True]


def test_statistics_of_parts_are_those_of_the_whole():
    # 1 2 6 | 3 and no x in the first part: the mean is 12 / 4, not the mean of the means
    parts = [
        {"a": mean_of(torch.tensor([1.0, 2.0, 6.0])), "b_max": 2.0},
        {"a": mean_of(torch.tensor([3.0])), "b_max": 5.0, "x": mean_of(torch.tensor([True, False]))},
        {},
    ]
    whole = joined(parts)
    assert whole == {"a": Mean(12, 4), "b_max": 5.0, "x": Mean(1, 2)}
    assert metrics_of(whole) == {"a": 3.0, "b_max": 5.0, "x": 0.5}
    assert joined([]) == {}
    assert metrics_of({"a": Mean(0.0, 0)}) == {}, "a mean of nothing is no number"


def test_a_mean_is_no_maximum():
    with pytest.raises(AssertionError, match="a mean in one part"):
        joined([{"a": Mean(1, 1)}, {"a": 1.0}])


def test_k3():
    # d = log 2: 2 - log 2 - 1; d = -log 2: 0.5 + log 2 - 1; its slope in the log-prob is 1 - e^d
    logprobs = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-1.0, -1.0 + math.log(2), -1.0 - math.log(2)], dtype=torch.float64)
    kl = k3_divergence(logprobs, ref)
    kl.sum().backward()
    expected = torch.tensor([0.0, 1 - math.log(2), math.log(2) - 0.5], dtype=torch.float64)
    torch.testing.assert_close(kl, expected)
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -1.0, 0.5], dtype=torch.float64))
