"""Advantages with numbers worked by hand, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.algorithms.advantages import (
    gae,
    group_advantages,
    leave_one_out_advantages,
    normalized_sum,
    token_returns,
    whiten,
)

NAN = np.nan
rewards_of_groups = st.integers(1, 5).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=size, max_size=size), min_size=1, max_size=4
    )
)


def test_leave_one_out():
    # others' means: 1.5, 1, 0.5 | of one there are no others | 4 and 2
    advantages = leave_one_out_advantages(np.array([[0.0, 1.0, 2.0], [5.0, NAN, NAN], [2.0, 4.0, NAN]]))
    np.testing.assert_allclose(advantages, [[-1.5, 0, 1.5], [0, NAN, NAN], [-2, 2, NAN]])


def test_leave_one_out_is_the_group_mean_scaled():
    rewards = np.array([[0.0, 1.0, 5.0, 2.0]])
    np.testing.assert_allclose(leave_one_out_advantages(rewards), group_advantages(rewards, "none") * 4 / 3)


def test_leave_one_out_whitened():
    # -2 2 | 0 0: mean 0, deviation sqrt(8 / 3)
    advantages = leave_one_out_advantages(np.array([[1.0, 3.0], [7.0, 7.0]]), "batch", eps=0.0)
    np.testing.assert_allclose(advantages, np.array([[-2, 2], [0, 0]]) / np.sqrt(8 / 3))
    with pytest.raises(ValueError, match="unknown scale 'group'"):
        leave_one_out_advantages(np.zeros((1, 2)), "group")


def test_rewards_of_several_scales_count_alike():
    # 0 1 and 0 100, each normalised to -+1/sqrt(2): one up and one down cancel
    parts = np.array([[[0.0, 100.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 100.0]]])
    ours = normalized_sum(parts, np.ones(2), eps=0.0)
    np.testing.assert_allclose(ours, np.array([[0, 0], [-1, 1]]) * np.sqrt(3 / 2), atol=1e-12)
    parts[0, 0] = NAN
    assert np.isnan(normalized_sum(parts, np.ones(2))).tolist() == [[True, False], [False, False]]


def test_returns():
    np.testing.assert_allclose(token_returns(np.array([0.0, 1.0, 4.0]), 0.5), [0 + 0.5 * 3, 1 + 0.5 * 4, 4])
    assert token_returns(np.zeros(0)).shape == (0,)


def test_gae():
    # rewards 0 1, values 0.5 0.25, gamma 1, lambda 0.5. Deltas: 0 + 0.25 - 0.5 = -0.25; 1 - 0.25 = 0.75.
    # Advantages: -0.25 + 0.5 * 0.75 = 0.125; 0.75. Returns: 0.625; 1.
    advantages, returns = gae(np.array([0.0, 1.0]), np.array([0.5, 0.25]), 1.0, 0.5)
    np.testing.assert_allclose(advantages, [0.125, 0.75])
    np.testing.assert_allclose(returns, [0.625, 1.0])


def test_gae_at_its_ends():
    """Lambda 1: return minus value. Lambda 0: the error of one step."""
    rewards, values = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.1, -0.4])
    np.testing.assert_allclose(gae(rewards, values, 0.9, 1.0)[0], token_returns(rewards, 0.9) - values)
    np.testing.assert_allclose(gae(rewards, values, 0.9, 0.0)[0], rewards + 0.9 * np.array([0.1, -0.4, 0]) - values)
    assert [len(x) for x in gae(np.zeros(0), np.zeros(0), 1.0, 0.9)] == [0, 0]


def test_whiten():
    np.testing.assert_allclose(whiten(np.array([1.0, 3.0, NAN]), eps=0.0), np.array([-1, 1, NAN]) / np.sqrt(2))
    assert whiten(np.array([4.0])).tolist() == [0.0]
    assert whiten(np.array([5.0, 5.0])).tolist() == [0.0, 0.0]


@settings(deadline=None)
@given(rewards_of_groups, st.floats(-5, 5).map(lambda x: round(x, 3)))
def test_a_constant_for_a_whole_group_changes_nothing(rewards, constant):
    rewards = np.array(rewards)
    shifted = rewards + constant * np.arange(1, len(rewards) + 1)[:, None]
    for advantages in (group_advantages, leave_one_out_advantages):
        scale = "none"
        np.testing.assert_allclose(advantages(shifted, scale), advantages(rewards, scale), atol=1e-9)
    np.testing.assert_allclose(group_advantages(shifted, "group"), group_advantages(rewards, "group"), atol=1e-6)


@settings(deadline=None)
@given(rewards_of_groups, st.randoms(use_true_random=False))
def test_the_order_of_samples_changes_nothing(rewards, random):
    rewards = np.array(rewards)
    order = list(range(rewards.shape[1]))
    random.shuffle(order)
    for scale in ("group", "batch", "none"):
        mixed = group_advantages(rewards[:, order], scale)
        np.testing.assert_allclose(mixed, group_advantages(rewards, scale)[:, order], atol=1e-9)
    mixed = leave_one_out_advantages(rewards[:, order])
    np.testing.assert_allclose(mixed, leave_one_out_advantages(rewards)[:, order], atol=1e-9)


@settings(deadline=None)
@given(st.floats(-10, 10), st.integers(1, 6))
def test_equal_rewards_and_lone_samples_teach_nothing(reward, size):
    rewards = np.full((2, size), reward)
    for advantages in (
        group_advantages(rewards),
        group_advantages(rewards, "none"),
        leave_one_out_advantages(rewards),
    ):
        np.testing.assert_allclose(advantages, 0, atol=1e-9)
