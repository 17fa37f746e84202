"""The driver of several turns: who is asked what and when, what samples hold, and what happens when it goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import rlft
from rlft.config.environment import EnvironmentConfig
from rlft.environments.episodes import EpisodeGenerator, Limits
from rlft.environments.load import load_environment
from rlft.environments.turns import Turns
from rlft.environments.worker import EnvironmentWorker, ThreadRunner
from rlft.errors import RunError, UserError, WeightSyncError
from rlft.models.tiny import digits_tokenizer
from rlft.samples import Group, Prompt, Sample, SamplingParams, continuation_seed
from tests.helpers import make_sample

TOKENIZER = digits_tokenizer()
EOS = 2
PARAMS = SamplingParams(num_samples=2, max_new_tokens=4)


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def make_prompt(text: str, **columns: Any) -> Prompt:
    return Prompt(f"row {text}", np.array(ids(text), dtype=np.int32), text, None, columns)


@dataclass
class Talker:
    """A generator that says what `says(text so far, seed)` returns ("." at the end stands for the end of the sequence),
    under weights of version 3, and writes down what it was asked."""

    says: Callable[[str, int], str]
    calls: list[tuple[list[str], list[list[int]], SamplingParams, int]] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int
    ) -> Iterator[tuple[int, Group]]:
        texts = [TOKENIZER.decode(prompt.token_ids) for prompt in prompts]
        self.calls.append((texts, [list(row) for row in seeds], params, version))
        for place, (prompt, text, row) in enumerate(zip(prompts, texts, seeds, strict=True)):
            yield place, Group(prompt, tuple(self._sample(prompt, self.says(text, seed), seed) for seed in row))

    def _sample(self, prompt: Prompt, words: str, seed: int) -> Sample:
        said, reason = ids(words.removesuffix(".")), "stop"
        if words.endswith("."):
            said.append(EOS)
        elif len(said) >= PARAMS.max_new_tokens:
            reason = "length"
        made = make_sample(prompt, said, seed=seed, finish_reason=reason, text=words.removesuffix("."))
        versions = np.where(made.loss_mask, 3, -1).astype(np.int32)
        return Sample(made.token_ids, made.loss_mask, made.logprobs, versions, made.finish_reason, seed, made.text)

    def load(self, update: Any) -> bool:
        self.calls.append(update)
        return True

    def probe(self, prompt: Prompt, seed: int, params: SamplingParams) -> dict[str, Group]:
        return {"talker": Group(prompt, ())}

    def sleep(self) -> None:
        self.calls.append("sleep")  # type: ignore[arg-type]


class Counter(rlft.Environment):
    """Says the number of the turn in front of "=" and earns it, until the model says stop."""

    def reset(self, row: Any) -> Any:
        self.turn = 0
        return row.get("asks")

    def step(self, completion: str) -> rlft.Step:
        self.turn += 1
        if completion == "stop":
            return rlft.Step("never read", 10.0, done=True)
        return rlft.Step(f"{self.turn}=", float(self.turn) if completion != "mute" else None, tool_errors=1)


class Stubborn(Counter):
    """Goes wrong as the model wants it."""

    def reset(self, row: Any) -> Any:
        if row.get("reset") == "raise":
            raise OSError("no such game")
        return super().reset(row)

    def step(self, completion: str) -> Any:
        if completion == "boom":
            raise ValueError("bad move")
        if completion == "hang":
            time.sleep(1.5)
        if completion == "nan":
            return rlft.Step("", float("nan"))
        if completion == "none":
            return None
        if completion == "text":
            return rlft.Step("", "1")  # type: ignore[arg-type]
        if completion == "list":
            return rlft.Step([{"say": "x"}])
        return super().step(completion)


class Different(rlft.Environment):
    """Every sample has another prompt."""

    made = 0

    def reset(self, row: Any) -> str | None:
        Different.made += 1
        return str(Different.made) if row["how"] == "text" else None if Different.made % 2 else "1"

    def step(self, completion: str) -> rlft.Step:
        return rlft.Step(done=True)


def make(
    says: Callable[[str, int], str], kind: type = Counter, window: int = 100, max_turns: int = 3, **more: Any
) -> tuple[EpisodeGenerator, Talker]:
    wait_s = more.pop("wait_s", 20.0)
    settings = EnvironmentConfig(function=f"{__name__}:{kind.__name__}", **more)
    talker = Talker(says)
    turns = Turns(TOKENIZER, {EOS}, "user")
    return EpisodeGenerator(
        talker, ThreadRunner(load_environment(settings)), turns, Limits(max_turns, window, wait_s)
    ), talker


def run(episodes: EpisodeGenerator, prompts: Sequence[Prompt], params: SamplingParams = PARAMS) -> list[Group]:
    seeds = [[100 * i + j for j in range(params.num_samples)] for i in range(len(prompts))]
    answers = dict(episodes.generate(prompts, seeds, params, 3))
    assert sorted(answers) == list(range(len(prompts)))
    return [answers[place] for place in range(len(prompts))]


def test_what_a_sample_of_three_turns_holds():
    """Seed 0 says a, b, stop. The prompt is 7=, the environment's answers are 1= and 2=."""
    script = {"7=": "a", "7=a1=": "b.", "7=a1=b<eos>2=": "stop."}
    episodes, talker = make(lambda text, seed: script[text])
    (group,) = run(episodes, [make_prompt("7=", answer="x")], SamplingParams(num_samples=1, max_new_tokens=4))
    (sample,) = group.samples
    behind = ids("a1=b") + [EOS] + ids("2=stop") + [EOS]
    assert sample.token_ids.tolist() == ids("7=") + behind and sample.token_ids.dtype == np.int32
    written = [False, False, True, False, False, True, True, False, False] + [True] * 5
    assert sample.loss_mask.tolist() == written and sample.loss_mask.dtype == bool
    assert sample.logprobs.tolist() == [-1.0 if mine else 0.0 for mine in written]
    assert sample.weight_versions.tolist() == [3 if mine else -1 for mine in written]
    assert sample.logprobs.dtype == np.float32 and sample.weight_versions.dtype == np.int32
    assert (sample.text, sample.finish_reason, sample.seed) == ("a1=b2=stop", "stop", 0)
    assert [(turn["role"], turn["content"]) for turn in sample.turns] == [
        ("assistant", "a"), ("environment", "1="), ("assistant", "b"), ("environment", "2="), ("assistant", "stop"),
    ]  # fmt: skip
    assert (sample.num_turns, sample.tool_errors, sample.reward) == (3, 2, None)
    part = sample.reward_parts["environment"]
    assert (part.value, part.status, part.detail) == (13.0, "ok", "turn 1: 1; turn 2: 2; turn 3: 10")
    assert group.prompt.columns == {"answer": "x"}
    # each further turn: one sample, the sequence so far, a seed that follows from it, the version that was asked for
    one = SamplingParams(num_samples=1, max_new_tokens=4)
    assert talker.calls == [
        (["7="], [[0]], one, 3),
        (["7=a1="], [[continuation_seed(0, 3)]], one, 3),
        (["7=a1=b<eos>2="], [[continuation_seed(0, 7)]], one, 3),
    ]


def test_the_first_turn_is_drawn_as_a_group_and_samples_go_on_by_themselves():
    """Sample 0 of each prompt stops at once, sample 1 in its second turn."""
    episodes, talker = make(lambda text, seed: "stop." if seed in (0, 100) or "1=" in text else "go")
    groups = run(episodes, [make_prompt("7="), make_prompt("8=")])
    assert [[s.num_turns for s in g.samples] for g in groups] == [[1, 2], [1, 2]]
    assert [[s.seed for s in g.samples] for g in groups] == [[0, 1], [100, 101]]
    first = [call for call in talker.calls if call[2] == PARAMS]  # two on a busy machine: as environments are ready
    further = [call for call in talker.calls if call[2] != PARAMS]
    drawn = sorted(pair for call in first for pair in zip(*call[:2], strict=True))
    assert drawn == [("7=", [0, 1]), ("8=", [100, 101])]
    assert sorted(text for texts, *_ in further for text in texts) == ["7=go1=", "8=go1="]
    assert all(params.num_samples == 1 for _, _, params, _ in further)


def test_groups_come_as_they_finish_while_others_are_drawn():
    held = threading.Event()

    def says(text: str, seed: int) -> str:
        if text == "7=go1=":
            assert held.wait(10)
        return "stop." if text != "7=" else "go"

    episodes, _ = make(says)
    stream = episodes.generate([make_prompt("7="), make_prompt("8=")], [[0, 1], [2, 3]], PARAMS, 3)
    place, group = next(stream)
    assert (place, [s.num_turns for s in group.samples]) == (1, [1, 1]), "the second prompt's, though the first hangs"
    held.set()
    assert [place for place, _ in stream] == [0]


def test_what_is_ready_goes_on_while_an_environment_thinks(monkeypatch: pytest.MonkeyPatch):
    free = threading.Event()
    step = Counter.step

    def slow(self: Any, completion: str) -> rlft.Step:
        if completion == "slow":
            assert free.wait(10)
        return step(self, completion)

    monkeypatch.setattr(Counter, "step", slow)

    def says(text: str, seed: int) -> str:
        if text == "7=fast1=":
            free.set()  # the other sample has gone on before this environment answers
        return ("slow" if seed == 0 else "fast") if text == "7=" else "stop."

    episodes, _ = make(says)
    (group,) = run(episodes, [make_prompt("7=")])
    assert [s.num_turns for s in group.samples] == [2, 2] and free.is_set()


def test_limits_of_turns_and_window_end_an_episode():
    """A turn of 2 tokens and an answer of 2: 2 + 4 n tokens after n turns, and the next needs 4 more."""
    cases = ((100, 3, 3), (100, 1, 1), (18, 9, 4), (17, 9, 3), (10, 9, 2), (9, 9, 1), (6, 9, 1))
    for window, max_turns, turns in cases:
        episodes, _ = make(lambda text, seed: "go", window=window, max_turns=max_turns)
        (group,) = run(episodes, [make_prompt("7=")])
        for sample in group.samples:
            assert (sample.num_turns, sample.finish_reason) == (turns, "length"), (window, max_turns)
            assert len(sample.token_ids) == 2 + 4 * turns - 2 <= window, "no answer that nobody reads"
            assert sample.loss_mask[-1]
            assert sample.reward_parts["environment"].value == sum(range(1, turns + 1))


def test_a_turn_that_was_cut_is_answered_too():
    episodes, _ = make(lambda text, seed: "long" if text == "7=" else "stop.")
    (group,) = run(episodes, [make_prompt("7=")])
    assert [(s.text, s.finish_reason) for s in group.samples] == [("long1=stop", "stop")] * 2
    episodes, _ = make(lambda text, seed: "stop")  # four characters, no end
    assert {s.finish_reason for s in run(episodes, [make_prompt("7=")])[0].samples} == {"length"}


def test_no_reward_is_no_part():
    episodes, _ = make(lambda text, seed: "mute")
    assert all(not s.reward_parts for s in run(episodes, [make_prompt("7=")])[0].samples)


@pytest.mark.parametrize(
    ("word", "status", "detail"),
    [
        ("boom", "error", "turn 2: ValueError: bad move, at .*test_episodes.py"),
        ("hang", "timeout", "turn 2: step took longer than timeout_s 0.3"),
        ("nan", "error", "turn 2: step returned the reward nan"),
    ],
)
def test_an_environment_that_fails_leaves_a_status_and_no_reward(word: str, status: str, detail: str):
    import re

    def says(text: str, seed: int) -> str:
        return "go" if text == "7=" else word if seed == continuation_seed(0, 4) else "stop."

    episodes, _ = make(says, Stubborn, timeout_s=0.3)
    (group,) = run(episodes, [make_prompt("7=")])
    bad, good = group.samples
    part = bad.reward_parts["environment"]
    assert (part.value, part.status) == (None, status) and re.match(detail, part.detail), part
    assert bad.num_turns == 2 and bad.text == f"go1={word}"
    assert good.reward_parts["environment"].value == 11.0


def test_a_failed_reset_keeps_the_first_turn_and_the_group_whole():
    episodes, talker = make(lambda text, seed: "stop.", Stubborn)
    bad, good = run(episodes, [make_prompt("7=", reset="raise"), make_prompt("8=")])
    assert [s.reward_parts["environment"].status for s in bad.samples] == ["error"] * 2
    assert "OSError: no such game" in bad.samples[0].reward_parts["environment"].detail
    assert [s.text for s in bad.samples] == ["stop"] * 2 and len(talker.calls[0][0]) <= 2
    assert [s.reward_parts["environment"].value for s in good.samples] == [10.0] * 2


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("none", "Stubborn.step returned a NoneType. Expected an rlft.Step"),
        ("text", "returned the reward '1' .a str.. Expected a number"),
        ("list", "returned the observation .*Expected text, or a list of messages"),
    ],
)
def test_an_environment_that_is_wrong_in_itself_stops_the_run(word: str, said: str):
    episodes, _ = make(lambda text, seed: word, Stubborn)
    with pytest.raises(UserError, match=said):
        run(episodes, [make_prompt("7=")])


def test_an_environments_prompt_stands_for_all_its_samples():
    episodes, talker = make(lambda text, seed: "stop.")
    first, second = run(episodes, [make_prompt("7=", asks="what is 9="), make_prompt("8=")])
    assert (first.prompt.text, first.prompt.token_ids.tolist()) == ("what is 9=", ids("what is 9="))
    assert first.prompt.id == "row 7=" and second.prompt.text == "8="
    for group in (first, second):
        for sample in group.samples:
            length = len(group.prompt.token_ids)
            assert sample.token_ids[:length].tolist() == group.prompt.token_ids.tolist()
            assert sample.loss_mask.tolist() == [False] * length + [True] * 5
    assert sorted(text for texts, *_ in talker.calls for text in texts) == ["8=", "what is 9="]


@pytest.mark.parametrize("how", ["text", "sometimes"])
def test_prompts_that_differ_within_a_row_are_an_error(how: str):
    episodes, _ = make(lambda text, seed: "stop.", Different)
    with pytest.raises(UserError, match="row 7=: the environment's reset gave different prompts.*same prompt"):
        run(episodes, [make_prompt("7=", how=how)])


def test_a_prompt_without_room_is_an_error():
    episodes, _ = make(lambda text, seed: "stop.", window=10)
    with pytest.raises(UserError, match=r"row 7=: the environment's prompt has 9 tokens.*1 to 6 \(window 10 - max"):
        run(episodes, [make_prompt("7=", asks="012345678")])


def test_errors_of_the_generator_arrive_and_missing_samples_are_noticed():
    def fails(text: str, seed: int) -> str:
        if "1=" in text:
            raise WeightSyncError("no verified version")
        return "go"

    episodes, _ = make(fails)
    with pytest.raises(WeightSyncError, match="no verified version"):
        run(episodes, [make_prompt("7=")])
    episodes, talker = make(lambda text, seed: "go")
    talker.generate = lambda *given: iter(())  # type: ignore[method-assign]
    with pytest.raises(RunError, match="ended without 2 of the samples"):
        run(episodes, [make_prompt("7=")])


def test_waiting_has_an_end_that_says_what_was_waited_for():
    held = threading.Event()
    episodes, _ = make(lambda text, seed: str(held.wait(10)), wait_s=0.2)
    with pytest.raises(RunError, match="nothing happened for 0 s .cluster.stage_timeout_s.; turns being drawn: 2"):
        run(episodes, [make_prompt("7=")])
    held.set()
    episodes, _ = make(lambda text, seed: "hang", Stubborn, wait_s=0.2)
    with pytest.raises(RunError, match=r"calls of the environment under way: 2, among them step of row 7=, sample \d"):
        run(episodes, [make_prompt("7=")])


def test_environments_are_dropped_when_their_group_is_done_or_nobody_wants_it():
    episodes, _ = make(lambda text, seed: "stop." if text.startswith("7") else "go")
    there = episodes._runner._worker._there  # type: ignore[attr-defined]
    stream = episodes.generate([make_prompt("7="), make_prompt("8=")], [[0, 1], [2, 3]], PARAMS, 3)
    assert next(stream)[0] == 0
    assert set(there) <= {2, 3}
    stream.close()  # type: ignore[attr-defined]
    assert there == {}


def test_calls_at_the_same_time_do_not_mix():
    """Two streams, each consumed by a thread of its own."""
    episodes, _ = make(lambda text, seed: "stop." if text.count("=") == 3 else "go")
    results: dict[str, list[Group]] = {}

    def work(name: str) -> None:
        results[name] = run(episodes, [make_prompt(f"{name}{i}=") for i in range(4)])

    threads = [threading.Thread(target=work, args=(name,)) for name in ("7", "8")]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    for name, groups in results.items():
        assert [g.prompt.text for g in groups] == [f"{name}{i}=" for i in range(4)]
        assert all(s.text == "go1=go2=stop" for g in groups for s in g.samples)
    assert len(results) == 2


def test_everything_else_is_the_inner_generators():
    episodes, talker = make(lambda text, seed: "stop.")
    assert episodes.load("update 4") is True
    episodes.sleep()
    assert talker.calls == ["update 4", "sleep"]
    assert set(episodes.probe(make_prompt("7="), 0, PARAMS)) == {"talker"}
    episodes.close()


def test_too_many_calls_that_hang_stop_the_run(monkeypatch: pytest.MonkeyPatch):
    from rlft.environments import worker

    monkeypatch.setattr(worker, "MAX_ABANDONED", 1)
    made = EnvironmentWorker(load_environment(EnvironmentConfig(function=f"{__name__}:Stubborn", timeout_s=0.05)))
    for key in (0, 1):
        assert made.call("reset", key, {}).status == "ok"
    assert made.call("step", 0, "hang").status == "timeout"
    with pytest.raises(RunError, match="environment: 2 calls .* still running"):
        made.call("step", 1, "hang")
