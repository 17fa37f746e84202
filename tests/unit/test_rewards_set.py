"""Loading and combining reward functions. Nothing that fails may look like a 0."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

from rewards.combine import RewardSet, check_failures
from rewards.load import resolve
from rlft.config.roles import RewardsConfig
from rlft.errors import RunError, UserError
from rlft.samples import Group, RewardResult
from tests.unit.rewarding import group, in_file, rewards_of, spec

# ---- several functions


def test_weighted_sum(tmp_path: Path) -> None:
    file = in_file(tmp_path, "def a(completions): return [1, 2]\ndef b(completions): return [10, None]\n")
    rewards = rewards_of(spec(f"{file}:a", weight=0.5), spec(f"{file}:b", weight=-1, name="second"))
    first, second = rewards.score_group(group()).samples
    assert rewards.names == ["a", "second"]
    assert first.reward == 0.5 * 1 - 10
    assert second.reward is None
    assert second.reward_parts["a"].value == 2


def test_a_failing_part_counts_even_without_weight(tmp_path: Path) -> None:
    file = in_file(tmp_path, "def a(completions): return [None, 1]\n")
    samples = rewards_of(spec(f"{file}:a", weight=0), lambda completions: [1, 1]).score_group(group()).samples
    assert [sample.reward for sample in samples] == [None, 1]


def test_names_differ() -> None:
    one = lambda completions: [1, 1]  # noqa: E731
    assert rewards_of(spec("math"), spec("math", args={"column": "b"}), one, one).names == [
        "math",
        "math_2",
        "<lambda>",
        "<lambda>_2",
    ]
    assert rewards_of(spec("math"), spec("exact_match", name="math")).names == ["math_2", "math"]
    with pytest.raises(UserError, match="two functions have the name 'x'"):
        rewards_of(spec("math", name="x"), spec("exact_match", name="x"))
    with pytest.raises(UserError, match=r"rewards\.functions is empty"):
        rewards_of()


def test_travels_to_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_file(tmp_path, "def a(completions, k): return [k, k]\n")
    monkeypatch.chdir(tmp_path)
    rewards = rewards_of(spec("mine.py:a", weight=2, name="z", args={"k": 3}), spec("math"), spec("math"))
    data = pickle.dumps(rewards)
    monkeypatch.chdir("/")  # a worker may start elsewhere
    again: RewardSet = pickle.loads(data)
    assert again.names == ["z", "math", "math_2"]
    samples = again.score_group(group(answer="#### 5")).samples
    assert [sample.reward_parts["z"].value for sample in samples] == [3, 3]
    assert samples[0].reward == 6
    assert again.rewards[0].weight == 2


# ---- loading


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("mth", ["unknown reward 'mth'", "did you mean 'math'?", "exact_match"]),
        ("missing.py:a", ["missing.py does not exist"]),
        ("mime.py:a", ["mime.py does not exist", "mine.py"]),
        ("mine.py:acuracy", ["no function 'acuracy'", "Did you mean 'accuracy'?", "accuracy, Thing"]),
        ("mine.py:NUMBER", ["is a int, not a function"]),
        ("mine.py", ["without a function", "mine.py:function_name"]),
        ("broken.py:a", ["broken.py cannot be imported", "line 2", "ZeroDivisionError"]),
        ("syntax.py:a", ["syntax.py cannot be imported", "SyntaxError"]),
        ("no_such_package.x:a", ["no_such_package.x", "cannot be imported"]),
        ("rewards.exact:exact_mtch", ["Did you mean 'exact_match'?"]),
    ],
)
def test_functions_that_are_not_there(tmp_path: Path, monkeypatch: Any, function: str, words: list[str]) -> None:
    in_file(tmp_path, "NUMBER = 3\ndef accuracy(completions): return []\nclass Thing: pass\n")
    in_file(tmp_path, "x = 1\ny = x / 0\n", "broken.py")
    in_file(tmp_path, "def a(:\n", "syntax.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        resolve(spec(function))
    assert all(word in str(caught.value) for word in words), caught.value


def test_where_functions_come_from(tmp_path: Path) -> None:
    in_file(tmp_path, "VALUE = 4\n", "helper_beside_mine.py")
    file = in_file(tmp_path, "import helper_beside_mine\ndef a(completions): return [helper_beside_mine.VALUE] * 2\n")
    assert resolve(spec(f"{file}:a")).function(completions=[]) == [4, 4]
    assert resolve(spec("rewards.exact:exact_match")).name == "exact_match"
    assert resolve(spec("math")).name == "math"
    assert resolve(finished_by_itself).name == "finished_by_itself"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"patern": "x"}, ["'patern'", "Did you mean 'pattern'?", "completions, pattern"]),
        ({"completions": ["x"]}, ["sets 'completions'"]),
    ],
)
def test_args_that_do_not_fit(tmp_path: Path, args: dict[str, Any], words: list[str]) -> None:
    file = in_file(tmp_path, "def a(completions, pattern=''): return []\n")
    with pytest.raises(UserError) as caught:
        resolve(spec(f"{file}:a", args=args))
    assert all(word in str(caught.value) for word in words), caught.value


def test_callables_that_cannot_be_called() -> None:
    with pytest.raises(UserError, match="Expected a function"):
        resolve(3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="positional-only"):
        resolve(lambda completions, /: [])


# ---- too many failures


def test_check_failures() -> None:
    def reward(completions: Any, fail: Any) -> list[float | None]:
        if fail[0] == "raise":
            raise ValueError("bad row")
        return [None if fail[0] == "none" else 1.0] * len(completions)

    rewards = rewards_of(reward)
    fails = ["raise", "raise", "none", "no", "no", "no", "no", "no", "no", "no"]
    groups = [rewards.score_group(group(place=f"a.jsonl:{i}", fail=fail)) for i, fail in enumerate(fails)]
    check_failures(groups, 0.3)  # 6 of 20 samples: just allowed
    check_failures([], 0.0)
    with pytest.raises(RunError) as caught:
        check_failures(groups, 0.29)
    message = str(caught.value)
    for word in ("6 of 20 samples", "0.29", "'reward'", "error 4, none 2", "ValueError: bad row", "prompt a.jsonl:0"):
        assert word in message, message


def finished_by_itself(completions: Any, finish_reasons: Any, **columns: Any) -> list[float]:
    return [float(reason == "stop") for reason in finish_reasons]


def with_environment(*parts: RewardResult | None) -> Group:
    """Samples that an environment has given these results; None: it has said nothing."""
    made = group(len(parts))
    return made.with_samples(
        [
            dataclasses.replace(s, reward_parts={} if part is None else {"environment": part})
            for s, part in zip(made.samples, parts, strict=True)
        ]
    )


def test_what_the_environment_gave_stays_and_counts_with_its_weight() -> None:
    def one(completions: Any, **columns: Any) -> list[float]:
        return [1.0 for _ in completions]

    given = with_environment(RewardResult(3.0, "ok"), RewardResult(None, "timeout", "turn 2: slow"), None)
    rewards = pickle.loads(pickle.dumps(RewardSet(RewardsConfig(), [finished_by_itself], 0.5)))
    assert rewards.names == ["finished_by_itself"]
    both = RewardSet(RewardsConfig(), [one], 0.5).score_group(given).samples
    assert [s.reward for s in both] == [1 + 0.5 * 3, None, 1.0]
    assert [list(s.reward_parts) for s in both] == [["environment", "one"], ["environment", "one"], ["one"]]
    alone = RewardSet(RewardsConfig(), environment_weight=2.0).score_group(given)
    assert [s.reward for s in alone.samples] == [6.0, None, None]
    part = alone.samples[2].reward_parts["environment"]
    assert (part.value, part.status, part.detail) == (None, "none", "no turn of the episode was given a reward")
    with pytest.raises(RunError, match="Reward 'environment': timeout 1, none 1"):
        check_failures([alone], 0.5)


def test_scoring_again_begins_anew() -> None:
    rewards = RewardSet(RewardsConfig(), [finished_by_itself], 1.0)
    once = rewards.score_group(with_environment(RewardResult(3.0, "ok")))
    assert rewards.score_group(once).samples[0].reward == once.samples[0].reward == 3.0


def test_the_environments_name_is_taken() -> None:
    config = RewardsConfig(functions=[spec("math", name="environment")])
    with pytest.raises(UserError, match="a function and the environment have the name 'environment'"):
        RewardSet(config, environment_weight=1.0)
    assert RewardSet(config).names == ["environment"]


@pytest.mark.parametrize("chat", [False, True])
def test_functions_see_the_models_own_words_of_several_turns(chat: bool) -> None:
    seen: dict[str, Any] = {}

    def look(completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        seen.update(completions=completions, ids=completion_ids)
        return [0.0 for _ in completions]

    said = [("assistant", "a"), ("tool", "4"), ("assistant", "b")]
    turns = tuple({"role": role, "content": text} for role, text in said)
    made = group(2, chat)
    first = dataclasses.replace(made.samples[0], turns=turns, text="a4b")
    RewardSet(RewardsConfig(), [look]).score_group(made.with_samples([first, made.samples[1]]))
    if chat:
        assert seen["completions"] == [list(turns), [{"role": "assistant", "content": "c1"}]]
    else:
        assert seen["completions"] == ["ab", "c1"], "what only a tool said is no answer of the model"
    assert seen["ids"][0] == [10, 2]
