"""Penalties for length and repetition, with numbers worked by hand."""

from __future__ import annotations

import pytest

from rewards.combine import RewardSet
from rewards.shape import overlong, repetition
from rlft.config.roles import RewardFunction, RewardsConfig
from rlft.errors import UserError
from tests.helpers import make_group


def test_overlong():
    # 10 allowed, the last 4 punished: 6 tokens 0, 7 a quarter, 10 and more 1
    ids = [[1] * n for n in (0, 6, 7, 9, 10, 50)]
    assert overlong(ids, max_length=10, buffer=4) == [0, 0, -0.25, -0.75, -1, -1]
    for buffer in (0, 11):
        with pytest.raises(UserError, match=f"buffer is {buffer}; expected above 0 and at most max_length, 10"):
            overlong(ids, max_length=10, buffer=buffer)


def test_repetition():
    # pairs: 12 23 31 12 23: three of five are new. A loop of one token has one run.
    assert repetition([[1, 2, 3, 1, 2, 3], [7] * 5, [1, 2, 3], [1], []], size=2) == pytest.approx(
        [-0.4, -0.75, 0, 0, 0]
    )
    with pytest.raises(UserError, match="size is 0; expected at least 1"):
        repetition([[1]], size=0)


def test_beside_another_reward():
    """By name, with their arguments, weighed."""
    functions = [
        RewardFunction(function="finished"),
        RewardFunction(function="overlong", args={"max_length": 4, "buffer": 2}, weight=0.5),
        RewardFunction(function="repetition", args={"size": 1}),
    ]
    group = make_group([4], [[5, 6], [5, 5, 5, 5]])
    scored = RewardSet(RewardsConfig(functions=functions)).score_group(group)
    assert [s.reward for s in scored.samples] == pytest.approx([1, 1 - 0.5 - 0.75])
