"""Alarms for rewards that are gamed, with windows of two steps worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlft.runs.drift import DriftWatch

QUIET = {"drift/held_out": 0, "drift/length": 0, "drift/entropy": 0, "drift/duplicates": 0}


def line(step: int, reward: float, length: float = 10, entropy: float = 1.0, duplicates: float = 0.0) -> dict[str, Any]:
    return {
        "step": step, "reward/mean": reward, "completion/length_mean": length, "policy/entropy": entropy,
        "completion/duplicates": duplicates,
    }  # fmt: skip


def watched(lines: list[dict[str, Any]], evaluations: dict[int, float] | None = None) -> tuple[Any, list[str]]:
    """What the last step's metrics and warnings are, with windows of two steps."""
    watch, found = DriftWatch(2), (None, [])
    for one in lines:
        found = watch(one["step"], one)
        if one["step"] in (evaluations or {}):
            watch.evaluated(one["step"], {"eval/accuracy": (evaluations or {})[one["step"]]})
    return found


def rising(**last: Any) -> list[dict[str, Any]]:
    """Rewards 0.1 0.1 0.5 0.5: up by 0.4. `last`: what the last two steps have beside it."""
    return [line(1, 0.1), line(2, 0.1), line(3, 0.5, **last), line(4, 0.5, **last)]


def test_nothing_is_said_before_two_windows_are_full():
    assert watched(rising(length=100)[:3]) == ({}, [])


def test_a_reward_that_rises_alone_rings_nothing():
    assert watched(rising()) == (QUIET, [])


@pytest.mark.parametrize(
    ("last", "name", "words"),
    [
        ({"length": 15}, "length", "the length went from 10 to 15"),
        ({"length": 6}, "length", "the length went from 10 to 6"),
        ({"entropy": 0.4}, "entropy", "the entropy went from 1 to 0.4"),
        ({"duplicates": 0.25}, "duplicates", "the share of duplicates went from 0 to 0.25"),
    ],
)
def test_what_goes_the_wrong_way_rings(last, name, words):
    metrics, told = watched(rising(**last))
    assert metrics == QUIET | {f"drift/{name}": 1}
    assert len(told) == 1 and words in told[0] and "step 4: the reward rose by 0.4 over 2 steps" in told[0]


@pytest.mark.parametrize("last", [{"length": 14.9}, {"length": 6.8}, {"entropy": 0.5}, {"duplicates": 0.2}])
def test_less_than_that_does_not(last):
    assert watched(rising(**last)) == (QUIET, [])


def test_a_rise_within_its_error_does_not_count():
    """0 and 0.4, then 0.2 and 0.8: means 0.2 and 0.5, variances 0.04 and 0.09; 2 sqrt(0.13 / 2) = 0.51 is above 0.3."""
    lines = [line(1, 0.0), line(2, 0.4), line(3, 0.2, length=50), line(4, 0.8, length=50)]
    assert watched(lines) == (QUIET, [])


def test_held_out_accuracy_that_falls_rings_and_one_that_rises_clears_the_others():
    metrics, told = watched(rising(), {1: 0.6, 3: 0.5})
    assert metrics == QUIET | {"drift/held_out": 1} and "held-out accuracy went from 0.6 to 0.5" in told[0]
    assert watched(rising(length=30), {2: 0.5, 3: 0.6}) == (QUIET, [])
    both, told = watched(rising(length=30), {2: 0.6, 3: 0.5})
    assert both == QUIET | {"drift/held_out": 1, "drift/length": 1} and len(told) == 2
    same, _ = watched(rising(length=30), {2: 0.5, 3: 0.49})
    assert same == QUIET | {"drift/length": 1}, "0.01 less is no fall, but no rise either"


def test_each_is_told_when_it_begins_and_a_resumed_run_says_the_same():
    lines = [*rising(length=30), line(5, 0.9, length=60), line(6, 0.9, length=90), line(7, 0.9, length=90)]
    watch, logged, told = DriftWatch(2), list[dict[str, Any]](), list[list[str]]()
    for one in lines:
        metrics, words = watch(one["step"], one)
        logged.append(one | metrics)
        told.append(words)
    assert [len(words) for words in told] == [0, 0, 0, 1, 0, 1, 0], "at step 5, 0.3 to 0.7 is within its error"
    for cut in range(len(lines)):
        again = DriftWatch(2, logged[:cut])
        for i in range(cut, len(lines)):
            metrics, words = again(lines[i]["step"], lines[i])
            assert (lines[i] | metrics, words) == (logged[i], told[i]), (cut, i)


def test_steps_without_rewards_and_no_window():
    assert DriftWatch(0)(1, line(1, 0.5)) == ({}, [])
    assert DriftWatch(1)(1, {"sft/loss": 0.5}) == ({}, [])
    lines = [line(1, 0.1), line(2, 0.1), line(3, 0.5, length=math.nan), line(4, 0.5, entropy=0.1)]
    assert watched(lines)[0] == QUIET, (
        "an entropy of (1 + 0.1) / 2 is not below half; a length that is no number is not looked at"
    )
