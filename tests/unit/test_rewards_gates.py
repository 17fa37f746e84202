"""Floors, caps and gates: what of each function's value counts, by numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.combine import check_failures
from rewards.deadline import deadline
from rlft.config.algorithm import AlgorithmConfig
from rlft.errors import RunError, UserError
from rlft.loops.credit import assign_advantages, rollout_metrics
from rlft.rollout import Rollout
from rlft.samples import RewardResult
from tests.unit.rewarding import group, in_file, rewards_of, spec

FUNCTIONS = """
def right(completions, right): return right[0]
def style(completions): return [3.0, -2.0, 0.5, 1.0][:len(completions)]
def count(completions): return [float(len(completions))] * len(completions)
def seen(completions, earlier_rewards):
    return [sum(v or 0 for v in column) for column in zip(*earlier_rewards.values())]
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    return in_file(tmp_path, FUNCTIONS)


def test_floor_and_cap_bound_what_counts_and_leave_the_value(file: str) -> None:
    samples = rewards_of(spec(f"{file}:style", floor=-1, cap=1, weight=2)).score_group(group(4)).samples
    assert [s.reward for s in samples] == [2, -2, 1, 2]
    parts = [s.reward_parts["style"] for s in samples]
    assert [p.value for p in parts] == [3, -2, 0.5, 1] and [p.counted for p in parts] == [1, -1, 0.5, 1]
    only_cap = rewards_of(spec(f"{file}:style", cap=1)).score_group(group(2)).samples
    assert [s.reward for s in only_cap] == [1, -2]


def test_a_gate_asks_only_what_passes(file: str) -> None:
    rewards = rewards_of(
        spec(f"{file}:right", gate=0.3, weight=10), spec(f"{file}:count", name="asked"), spec(f"{file}:style", cap=1)
    )
    given = group(4, right=[0.1 + 0.2 - 1e-12, 0.0, None, 1.0])
    samples = pickle.loads(pickle.dumps(rewards)).score_group(given).samples
    assert [s.reward for s in samples] == [pytest.approx(3 + 2 + 1), 0, None, 10 + 2 - 2]
    second = samples[1].reward_parts
    assert (second["asked"].value, second["asked"].status, second["asked"].counted) == (None, "gated", 0)
    assert second["asked"].detail == "not asked: right is a gate, and it is closed"
    assert samples[2].reward_parts["style"].status == "gated", "it has no reward anyway"
    with pytest.raises(RunError, match="1 of 4 samples have no reward.*Reward 'right': none 1"):
        check_failures([dataclasses.replace(given, samples=samples)], 0.2)


def test_gates_one_behind_the_other_and_none_open(file: str) -> None:
    rewards = rewards_of(
        spec(f"{file}:right", gate=1), spec(f"{file}:style", gate=0, floor=0), spec(f"{file}:count", name="asked")
    )
    samples = rewards.score_group(group(4, right=[1, 1, 0, 1])).samples
    assert [s.reward for s in samples] == [1 + 3 + 2, 1 + 0, 0, 1 + 0.5 + 2], "the gate looks at the raw value, -2"
    shut = rewards.score_group(group(2, right=[0, 0])).samples
    assert [s.reward for s in shut] == [0, 0] and {s.reward_parts["asked"].status for s in shut} == {"gated"}


def test_functions_see_what_those_before_them_said(file: str) -> None:
    rewards = rewards_of(spec(f"{file}:right", gate=1), spec(f"{file}:style"), spec(f"{file}:seen"))
    samples = rewards.score_group(group(3, right=[1, 0, 2])).samples
    assert [s.reward_parts["seen"].value for s in samples] == [1 + 3, None, 2 - 2]


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ([{"gate": 1}], "'right' has gate 1 and stands last"),
        ([{"floor": 1, "cap": 1}], "'right' has floor 1 and cap 1, so it would always count the same"),
    ],
)
def test_what_means_nothing_is_refused(file: str, functions: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rewards_of(*[spec(f"{file}:right", **values) for values in functions])


def test_metrics_have_raw_values_what_counts_and_what_it_took(file: str) -> None:
    def judge(completions: Any) -> list[RewardResult]:
        return [RewardResult(2.0, "ok", counts={"tokens": 3.0, "cost": 0.5}) for _ in completions]

    rewards = rewards_of(spec(f"{file}:right", gate=1), judge)
    scored = rewards.score_group(group(3, right=[1, 0, 1]))
    metrics = rollout_metrics(Rollout(groups=[scored], score_s=0, generate_s=0), version=0)
    assert metrics["reward/judge/mean"] == 2 and metrics["reward/judge/counted"] == pytest.approx(4 / 3)
    assert (metrics["reward/judge/gated"], metrics["reward/judge/failed"]) == (1, 0)
    assert (metrics["reward/judge/tokens"], metrics["reward/judge/cost"]) == (6, 1)
    assert "reward/right/counted" not in metrics and metrics["reward/mean"] == 2


def test_normalised_parts_use_what_counts(file: str) -> None:
    """GDPO over one function: of 3, -2, 0.5, 1 with floor -1 and cap 1 count 1, -1, 0.5, 1."""
    settings = AlgorithmConfig(advantage="parts")
    bounded = rewards_of(spec(f"{file}:style", floor=-1, cap=1)).score_group(group(4))
    plain = rewards_of(lambda completions: [1.0, -1.0, 0.5, 1.0]).score_group(group(4))
    ours, theirs = (assign_advantages([g], settings)[0].samples for g in (bounded, plain))
    for a, b in zip(ours, theirs, strict=True):
        assert a.advantages is not None and b.advantages is not None
        np.testing.assert_allclose(a.advantages, b.advantages)
    assert ours[0].advantages is not None and ours[0].advantages[2] > 0


def test_functions_know_until_when_they_may_take(tmp_path: Path) -> None:
    assert deadline() is None
    code = (
        "import time\nfrom rewards.deadline import deadline\n"
        "{}def left(completions): return [deadline() - time.monotonic()]\n"
    )
    for number, kind in enumerate(("", "async ")):
        file = in_file(tmp_path, code.format(kind), f"left{number}.py")
        (sample,) = rewards_of(spec(f"{file}:left", timeout_s=7)).score_group(group(1)).samples
        assert sample.reward is not None and 5 < sample.reward <= 7
    assert deadline() is None, "it is the call's alone"


def test_only_functions_that_wait_are_called_side_by_side() -> None:
    under_way, most = {"own": 0, "asks": 0}, {"own": 0, "asks": 0}
    lock = threading.Lock()

    def look(name: str) -> list[float]:
        with lock:
            under_way[name] += 1
            most[name] = max(most[name], under_way[name])
        time.sleep(0.1)
        with lock:
            under_way[name] -= 1
        return [1.0, 1.0]

    def asks(completions: Any) -> list[float]:
        return look("asks")

    def own(completions: Any) -> list[float]:
        return look("own")

    asks.beside = lambda num_samples: nullcontext()  # type: ignore[attr-defined]
    rewards = rewards_of(asks, own)
    alone = threading.Lock()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda given: rewards.score_group(given, alone), [group(2) for _ in range(4)]))
        assert most["own"] == 1 and most["asks"] > 1
        list(pool.map(rewards.score_group, [group(2) for _ in range(4)]))
    assert most["own"] > 1, "where nobody minds"
