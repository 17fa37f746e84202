"""Win rates by hand: verdicts in both orders, intervals, what is counted where, and files that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.judge import _of, _parted, _row, _shared, _Side
from rlft.data.prompts import PromptSet
from rlft.endpoint.replies import Reply
from rlft.errors import UserError
from rlft.evaluation.answers import Answer, Answers
from rlft.evaluation.judge_file import JudgeConfig, load_judge
from rlft.evaluation.win_rate import WinRate, comparer, count_verdicts, wilson
from rlft.synthesis.rows import LeftOut, SourceRow
from tests.helpers import make_prompt


def test_the_wilson_interval() -> None:
    """z = 1.96: 8 of 10 is (0.8 + 0.192073) / 1.384146 -+ 1.96 sqrt(0.016 + 0.009604) / 1.384146."""
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0, 0.277533), abs=1e-5)
    assert wilson(10, 10) == pytest.approx((1 - 0.277533, 1), abs=1e-5)
    low, high = wilson(5.5, 11)
    assert low + high == pytest.approx(1)


def test_what_pairs_come_to() -> None:
    """3 wins, 1 loss, 2 ties in which the judge stuck to the first place, 1 to the second, 1 of equal answers."""
    rows = [
        *[{"verdict": "win", "verdicts": ["A", "B"]}] * 3,
        {"verdict": "loss", "verdicts": ["B", "A"]},
        *[{"verdict": "orders_disagree", "verdicts": ["A", "A"]}] * 2,
        {"verdict": "orders_disagree", "verdicts": ["B", "B"]},
        {"verdict": "same_answer", "verdicts": []},
    ]
    result = count_verdicts(rows)
    assert result == WinRate(wins=3, losses=1, orders_disagree=3, same_answer=1, num_first=8, num_verdicts=14)
    assert (result.num_judged, result.num_ties, result.num_decided) == (8, 4, 4)
    assert result.rate == (3 + 4 / 2) / 8 and result.first_place == 8 / 14
    assert result.interval == wilson(5, 8)
    nothing = count_verdicts([])
    assert nothing.rate is None and nothing.interval is None and nothing.first_place is None


class Says:
    """A judge that says these in turn."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = list(texts), list[str]()

    def __call__(self, messages: Any, temperature: float | None = None) -> Reply:
        self.asked.append(messages[0]["content"])
        assert temperature == 0.0
        return Reply(self.texts.pop(0), "", "stop", 10, 5)


def row(answer: str = "mine", other: str = "theirs") -> SourceRow:
    turns = [{"role": "user", "content": "hi"}]
    return SourceRow("x.jsonl:1", "f", turns, turns, {"answer": answer, "base_answer": other})


@pytest.mark.parametrize(
    ("said", "verdict"), [("AB", "win"), ("BA", "loss"), ("AA", "orders_disagree"), ("BB", "orders_disagree")]
)
def test_both_orders_are_asked(said: str, verdict: str) -> None:
    ask: Any = Says(*(f"Because.\nVERDICT: {letter}" for letter in said))
    (made,) = comparer(JudgeConfig(question="Which is kinder?"))(row(), ask).rows
    assert (made["verdict"], made["verdicts"]) == (verdict, list(said))
    assert (made["answer"], made["base_answer"], made["id"]) == ("mine", "theirs", "x.jsonl:1")
    assert made["judgements"][0].startswith("Because.")
    first, second = ask.asked
    assert "<answer_A>\nmine\n" in first and "<answer_B>\ntheirs\n" in first and "Which is kinder?" in first
    assert "<answer_A>\ntheirs\n" in second and "<answer_B>\nmine\n" in second and "user: hi" in second


def test_a_verdict_that_cannot_be_read_is_asked_for_again_and_then_left_out() -> None:
    ask: Any = Says("Both.", "VERDICT: A", "VERDICT: B")
    (made,) = comparer(JudgeConfig())(row(), ask).rows
    assert made["verdict"] == "win" and len(ask.asked) == 3
    with pytest.raises(LeftOut, match="unparsed"):
        comparer(JudgeConfig(max_asks=2))(row(), Says("VERDICT: A", "Well", "A"))  # type: ignore[arg-type]


def test_nobody_is_asked_about_equal_answers() -> None:
    (made,) = comparer(JudgeConfig())(row("4", " 4\n"), Says()).rows  # type: ignore[arg-type]
    assert (made["verdict"], made["verdicts"]) == ("same_answer", [])


def test_answers_outlive_the_process(tmp_path: Path) -> None:
    path, prompts = tmp_path / "x" / "a.jsonl", [make_prompt([4], "p:1"), make_prompt([5], "p:2")]
    answers = Answers(path, {"the model": "m"})
    assert answers.missing("model", prompts) == [0, 1]
    answers.add("model", prompts[1], Answer("ä\n", True))
    answers.add("model", prompts[0], Answer("lost", False))
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 3)
    answers = Answers(path, {"the model": "m"})
    assert answers.missing("model", prompts) == [0] and answers.missing("base", prompts) == [0, 1]
    assert answers.of("model", prompts[1]) == Answer("ä\n", True)
    assert answers.missing("model", [make_prompt([6], "p:2")]) == [0], "another prompt in the same place"
    with pytest.raises(UserError, match='the model: was "m", now "n"'):
        Answers(path, {"the model": "n"})
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(UserError, match="line 3 is damaged"):
        Answers(path, {"the model": "m"})


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Any]:
    def write(**sections: Any) -> str:
        tree = {"endpoint": {"base_url": "http://localhost:1/v1", "model": "m"}} | sections
        (tmp_path / "judge.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return str(tmp_path / "judge.yaml")

    yield write


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"judge": {"qestion": "?"}}, ["judge.yaml:5: judge.qestion", "did you mean judge.question?"]),
        ({"judge": {"question": " "}}, ["judge.yaml:5: judge.question", "is empty"]),
        ({"judge": {"max_asks": 0}}, ["judge.yaml:5: judge.max_asks"]),
        ({"endpoint": {"model": "m"}}, ["endpoint.base_url", "required"]),
        ({"endpoint": {"base_url": "localhost", "model": "m"}}, ["judge.yaml:2: endpoint.base_url", "expected http"]),
        ({"endpoint": {"base_url": "http://h/v1", "model": "m", "temperature": 0.5}},
         ["judge.yaml:4: endpoint.temperature", "give judge.temperature instead"]),
        ({"run": {"out": "x.txt"}}, ["judge.yaml:5: run.out", "ends in .jsonl"]),
        ({"run": {"max_cost": 1}}, ["judge.yaml:5: run.max_cost", "needs endpoint.prompt_price"]),
        ({"data": {"path": "x"}}, ["judge.yaml:4: data", "unknown"]),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(written: Any, sections: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_judge(written(**sections))
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_example_is_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    file = Path(__file__).resolve().parents[2] / "configs" / "evaluation" / "judge.yaml"
    assert json.dumps(load_judge(str(file), ["--judge.max_asks", "2"]).judge.max_asks) == "2"


def test_a_key_and_its_value_go_to_the_file_that_they_are_of() -> None:
    words = [
        "--judge.max_asks",
        "2",
        "--data.split=a.b",
        "--endpoint.model=m",
        "--model.dtype",
        "float32",
        "--run.seed",
    ]
    assert _parted(words) == (
        ["--judge.max_asks", "2", "--endpoint.model=m", "--run.seed"], ["--data.split=a.b", "--model.dtype", "float32"],
    )  # fmt: skip


def test_the_judge_sees_a_conversation_and_no_template() -> None:
    turns = ({"role": "system", "content": "be"}, {"role": "user", "content": "hi"})
    made = _row(replace(make_prompt([4], "p:1"), text="<|user|>hi", messages=turns), "yo", "no")
    assert made.messages == made.prompt == [dict(turn) for turn in turns]
    text = _row(replace(make_prompt([4], "p:1"), text="1+1="), "2", "3")
    assert text.prompt == "1+1=" and text.messages == [{"role": "user", "content": "1+1="}]
    assert len({made.fingerprint, text.fingerprint, _row(make_prompt([4]), "2", "3").fingerprint}) == 3


def test_prompts_that_one_model_has_no_room_for_are_left_out_of_both() -> None:
    mine, theirs = (
        [make_prompt([i, token], f"p:{i}") for i in places] for places, token in (((1, 2, 3), 7), ((2, 3), 8))
    )
    target: Any = None
    sides = [_Side(w, target, PromptSet(p, "", 0, False)) for w, p in (("model", mine), ("base", theirs))]
    shared = _shared(sides)
    assert [p.id for p in shared] == ["p:2", "p:3"] and shared[0].token_ids[1] == 7
    assert [p.token_ids[1] for p in _of(sides[1], shared)] == [8, 8]
    with pytest.raises(UserError, match="no prompt fits the windows of both"):
        _shared([sides[0], _Side("base", target, PromptSet([], "", 0, False))])
