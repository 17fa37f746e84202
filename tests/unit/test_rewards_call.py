"""Calling one reward function: what it gets, what it may answer, its time. Nothing that fails may look like a 0."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.call import MAX_ABANDONED
from rlft.errors import RunError, UserError
from rlft.samples import RewardResult
from tests.unit.rewarding import group, in_file, rewards_of, slow, spec

# ---- what a function is given


def test_everything_is_passed_by_keyword() -> None:
    seen: dict[str, Any] = {}

    def reward(**kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [1.0, 2.0]

    scored = rewards_of(reward).score_group(group(answer="x", line=7))
    assert seen == {
        "prompts": ["p", "p"],
        "completions": ["c0", "c1"],
        "completion_ids": [[10, 2], [11, 2]],
        "finish_reasons": ["stop", "length"],
        "answer": ["x", "x"],
        "line": [7, 7],
    }
    assert [sample.reward for sample in scored.samples] == [1.0, 2.0]


def test_what_is_no_column_comes_to_those_who_name_it() -> None:
    def reward(prompt_texts: Any, earlier_rewards: Any, **kwargs: Any) -> list[float]:
        seen.update(kwargs, prompt_texts=prompt_texts, earlier_rewards=earlier_rewards)
        return [1.0, 2.0]

    seen: dict[str, Any] = {}
    rewards_of(reward).score_group(group(answer="x"))
    assert (seen["prompt_texts"], seen["earlier_rewards"], seen["answer"]) == (["p", "p"], {}, ["x", "x"])
    assert type(seen["completion_ids"][0][0]) is int


def test_conversations_are_passed_as_messages() -> None:
    def reward(prompts: Any, completions: Any) -> list[float]:
        assert prompts == [[{"role": "user", "content": "p"}]] * 2
        assert completions == [[{"role": "assistant", "content": f"c{i}"}] for i in range(2)]
        return [1, 1]

    scored = rewards_of(reward).score_group(group(chat=True))
    assert [sample.reward_parts["reward"].status for sample in scored.samples] == ["ok", "ok"]


def test_only_named_parameters_are_passed_and_args_win(tmp_path: Path) -> None:
    file = in_file(tmp_path, "def r(completions, *, answer, scale=1.0):\n    return [scale * len(a) for a in answer]\n")
    rewards = rewards_of(spec(f"{file}:r", args={"scale": 3, "answer": ["ab", "a"]}))
    assert [s.reward for s in rewards.score_group(group(answer="x", other=1)).samples] == [6, 3]


def test_a_missing_column_is_named() -> None:
    def reward(completions: Any, answer: Any) -> list[float]:
        return [0.0] * len(completions)

    rewards = rewards_of(reward)
    with pytest.raises(
        UserError, match=r"'reward' needs the parameter 'answer'.*Did you mean 'answers'\?.*answers, line"
    ):
        rewards.score_group(group(answers="x", line=1))
    with pytest.raises(UserError, match="needs the parameter 'answer'"):
        rewards.check_columns(["question"])
    rewards.check_columns(["answer"])


# ---- what it may answer


@pytest.mark.parametrize(
    ("returned", "values"),
    [([1, 0.5], [1, 0.5]), ((True, False), [1, 0]), (np.array([1, 2]), [1, 2]), ([np.float32(2), np.array(3)], [2, 3])],
)
def test_numbers_of_every_kind(returned: Any, values: list[float]) -> None:
    scored = rewards_of(lambda completions: returned).score_group(group())
    assert [sample.reward for sample in scored.samples] == values
    assert all(type(sample.reward) is float for sample in scored.samples)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0], ["'reward'", "1 values for 2 completions"]),
        ([1.0] * 3, ["3 values for 2"]),
        (1.0, ["returned a float", "Expected a list"]),
        (None, ["returned a NoneType"]),
        ("ab", ["returned a str"]),
        ({"a": 1, "b": 2}, ["returned a dict"]),
        ([1.0, "x"], ["'x'", "str", "value 1"]),
        ([[1.0], [2.0]], ["list", "value 0"]),
        (np.array(["a", "b"]), ["'a'"]),
    ],
)
def test_a_function_that_is_wrong_in_itself_stops_at_once(returned: Any, words: list[str]) -> None:
    def reward(completions: Any) -> Any:
        return returned

    with pytest.raises(UserError) as caught:
        rewards_of(reward).score_group(group())
    assert all(word in str(caught.value) for word in words), caught.value


def test_results_in_full() -> None:
    """A function may say why; a value that its status cannot have is a mistake of the function."""
    given = [RewardResult(0, "wrong", "expected 5, found 4", 0.25), RewardResult(None, "refused", "x" * 1000)]
    scored = rewards_of(lambda completions: given).score_group(group())
    first, second = (next(iter(sample.reward_parts.values())) for sample in scored.samples)
    assert first == RewardResult(0.0, "wrong", "expected 5, found 4", 0.25)
    assert (second.value, second.status, len(second.detail)) == (None, "refused", 300) and second.seconds > 0
    assert [sample.reward for sample in scored.samples] == [0.0, None]
    slow = [RewardResult(0.0, "timeout", "no end"), RewardResult(math.inf, "ok", "why")]
    scored = rewards_of(lambda completions: slow).score_group(group())
    first, second = (next(iter(sample.reward_parts.values())) for sample in scored.samples)
    assert (first.value, first.status) == (0.0, "timeout")
    assert (second.value, second.status, second.detail) == (None, "none", "returned inf; why")


@pytest.mark.parametrize(
    ("value", "status"),
    [(None, "ok"), (None, "wrong"), (None, "unparsed"), (0.0, "error"), (1.0, "none"), (1.0, "right"), (None, "gated")],
)
def test_results_that_contradict_themselves(value: float | None, status: Any) -> None:
    with pytest.raises(UserError, match=f"status '{status}' and value {value}"):
        rewards_of(lambda completions: [RewardResult(value, status)] * 2).score_group(group())


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"value": "1"}, "value is '1'"),
        ({"value": 1.0, "detail": 5}, "detail is '5'"),
        ({"value": 1.0, "seconds": "x"}, "seconds is 'x'"),
        ({"value": 1.0, "counts": {"tokens": "many"}}, "counts is"),
    ],
)
def test_results_of_other_types(given: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=f"returned a RewardResult whose {field}"):
        rewards_of(lambda completions: [RewardResult(status="ok", **given)] * 2).score_group(group())


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_none_and_nan_are_a_status(bad: Any) -> None:
    scored = rewards_of(lambda completions: [1.0, bad]).score_group(group())
    first, second = scored.samples
    part = next(iter(second.reward_parts.values()))
    assert first.reward == 1.0
    assert second.reward is None and part.value is None and part.status == "none"
    assert part.detail == ("returned None" if bad is None else f"returned {bad}")


def test_a_whole_number_beyond_floats_is_infinite() -> None:
    scored = rewards_of(lambda completions: [10**400, RewardResult(-(10**400), "ok")]).score_group(group())
    details = [next(iter(sample.reward_parts.values())).detail for sample in scored.samples]
    assert details == ["returned inf", "returned -inf; "]


def test_an_exception_is_a_status_with_the_line(tmp_path: Path) -> None:
    file = in_file(tmp_path, "import json\ndef r(completions):\n    return json.loads('{')\n")
    scored = rewards_of(spec(f"{file}:r"), lambda completions: [1, 1]).score_group(group())
    for sample in scored.samples:
        part = sample.reward_parts["r"]
        assert sample.reward is None and part.value is None and part.status == "error"
        assert part.detail.startswith("JSONDecodeError: Expecting")
        assert part.detail.endswith("mine.py:3: return json.loads('{')")
        assert sample.reward_parts["<lambda>"].value == 1


def test_leaving_the_interpreter_is_an_error_too() -> None:
    def reward(completions: Any) -> Any:
        raise SystemExit(3)

    assert rewards_of(reward).score_group(group()).samples[0].reward_parts["reward"].status == "error"


def test_a_user_error_of_the_function_passes_through() -> None:
    with pytest.raises(UserError, match="no column with the right answer"):
        rewards_of(spec("math")).score_group(group(question="?"))


# ---- async and time


def test_async_functions() -> None:
    async def reward(completions: Any) -> list[float]:
        await asyncio.sleep(0.01)
        return [3.0, 4.0]

    class Judge:
        async def __call__(self, completions: Any) -> list[float]:
            return [1.0, 1.0]

    async def broken(completions: Any) -> list[float]:
        raise KeyError("x")

    scored = rewards_of(reward, Judge(), functools.partial(reward)).score_group(group())
    assert [sample.reward for sample in scored.samples] == [3.0 + 1.0 + 3.0, 4.0 + 1.0 + 4.0]
    part = rewards_of(broken).score_group(group()).samples[0].reward_parts["broken"]
    assert (part.status, part.detail[:13]) == ("error", "KeyError: 'x'")


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_timeout_is_a_status(tmp_path: Path, kind: str) -> None:
    rewards = rewards_of(spec(f"{slow(tmp_path, kind=kind)}:slow", timeout_s=0.2))
    begin = time.monotonic()
    sample = rewards.score_group(group()).samples[0]
    part = sample.reward_parts["slow"]
    assert time.monotonic() - begin < 20
    assert sample.reward is None and part.value is None and part.status == "timeout" and "0.2" in part.detail
    assert part.seconds >= 0.09  # each of the two samples' half


def test_async_functions_are_cancelled() -> None:
    cancelled = threading.Event()

    async def patient(completions: Any) -> list[float]:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return []

    rewards = rewards_of(patient)
    rewards.rewards[0] = dataclasses.replace(rewards.rewards[0], timeout_s=0.05)
    rewards.score_group(group())
    assert cancelled.wait(20)


def test_too_many_abandoned_calls_stop_the_run(tmp_path: Path) -> None:
    rewards = rewards_of(spec(f"{slow(tmp_path, seconds=60)}:slow", timeout_s=0.01))
    for _ in range(MAX_ABANDONED):
        rewards.score_group(group())
    with pytest.raises(RunError, match=r"9 calls .*still running \(functions: slow; at most 8"):
        rewards.score_group(group())


def test_calls_that_ended_late_do_not_count(tmp_path: Path) -> None:
    rewards = rewards_of(spec(f"{slow(tmp_path, seconds=0.1)}:slow", timeout_s=0.01))
    for _ in range(MAX_ABANDONED + 3):
        before = set(threading.enumerate())
        assert rewards.score_group(group(1)).samples[0].reward is None
        for thread in set(threading.enumerate()) - before:
            thread.join(20)


def test_seconds_are_measured() -> None:
    def reward(completions: Any) -> list[float]:
        time.sleep(0.05)
        return [0.0, 0.0]

    samples = rewards_of(reward).score_group(group()).samples
    assert sum(sample.reward_parts["reward"].seconds for sample in samples) >= 0.05
