"""What is said of pairs, labelled completions and completions in steps before a run."""

from __future__ import annotations

from typing import Any

import pytest

from rlft.data.inspect import Uses
from rlft.data.inspect_rows import Segment
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer
from tests.unit.inspecting import ANSWER, USER, inspect, texts

END = Segment("<|im_end|>", learned=True, special=True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen == rejected"),
        ({"prompt": "a", "chosen": "b"}, "not a pair"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "empty completion"),
        ({"prompt": "a", "chosen": "b", "rejected": [ANSWER]}, "not a pair"),
        ({"chosen": "b", "rejected": "c"}, "missing value"),
    ],
)
def test_bad_pairs(row: dict[str, Any], reason: str) -> None:
    found = inspect([{"prompt": "1+1=", "chosen": "2", "rejected": "3"}, row])
    assert [(problem.reason, problem.place) for problem in found.problems] == [(reason, "dataset:2")], found.problems
    assert found.num_usable == 1 and texts(found) == [("1+1=", False), ("2", True)]


def test_pairs_that_may_be_dropped() -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    found = inspect(rows, unusable="drop")
    assert found.usable and [problem.effect for problem in found.problems] == ["dropped"]
    other = inspect([{"ask": "a", "good": "b", "bad": "c"}], prompt_column="ask", chosen_column="good",
                    rejected_column="bad")  # fmt: skip
    assert [column.role for column in other.columns] == ["prompt", "learned", "learned to avoid"]


def test_pairs_have_two_masks(tokenizer: Any) -> None:
    no = {"role": "assistant", "content": "no"}
    for row in (
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [no]},
        {"chosen": [USER, ANSWER], "rejected": [USER, no]},
    ):
        found = inspect([row], tokenizer)
        assert [next(s.text for s in p.segments if s.learned) for p in found.examples[0].parts] == ["yo", "no"]
    found = inspect([{"prompt": "1+1=", "chosen": "2", "rejected": "33"}], tokenizer)
    assert [part.label for part in found.examples[0].parts] == ["chosen", "rejected"]
    assert found.examples[0].parts[1].segments == (Segment("1+1=", False), Segment("33", True), END)
    assert {name: x.most for name, x in found.lengths.items()} == {"prompt": 4, "rejected": 3, "chosen": 2}
    bad = inspect([{"prompt": "a", "completion": "b", "label": False}, {"prompt": "a", "completion": "b", "label": 2}])
    assert bad.examples[0].parts[0].label == "bad" and bad.problems[0].reason == "wrong label"
    assert bad.problems[0].text.startswith("column 'label' is 2. Expected")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rejected": ""}, "the completion in column 'rejected' is empty."),
        ({"chosen": "", "rejected": ""}, "the completion in column 'chosen' and 'rejected' is empty."),
    ],
)
def test_an_empty_answer_is_named_by_its_column(change: dict[str, str], text: str) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (problem,) = inspect([good, {**good, **change}]).problems
    assert (problem.reason, problem.effect) == ("empty completion", "refused") and problem.text.startswith(text)
    found = inspect([good, {**good, **change}], unusable="drop")
    assert found.usable and found.num_usable == 1 and found.problems[0].effect == "dropped"


def test_margins() -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = [{**good, "margin": 1}, good, {**good, "margin": "a"}, {**good, "margin": float("nan")}]
    found = inspect(rows, purpose="pairs", uses=Uses(margins=True))
    assert [problem.place for problem in found.problems] == ["dataset:2", "dataset:3", "dataset:4"]
    assert found.problems[0].text.startswith("column 'margin' is missing, and other rows have one. Expected a number")
    assert found.problems[2].text.startswith("column 'margin' is nan.") and found.num_usable == 1
    assert inspect(rows, purpose="pairs").usable, "DPO does not read them"


def test_one_prompt_is_too_few_for_kto() -> None:
    rows = [{"prompt": "a", "completion": c, "label": True} for c in "bc"]
    found = inspect(rows, purpose="labels", uses=Uses(other_prompts=True))
    assert [problem.reason for problem in found.problems] == ["one prompt"]
    assert inspect(rows, purpose="labels").usable


def test_steps(tokenizer: Any) -> None:
    row = {"prompt": "1+1=", "completions": ["ab", "c"], "labels": [True, False]}
    rows = [row, {**row, "labels": [1]}, {**row, "completions": ["a\nb", "c"]}]
    for model in (None, tokenizer):
        found = inspect(rows, model, purpose="steps")
        assert [(p.reason, p.place) for p in found.problems] == [
            ("not steps", "dataset:2"), ("separator inside", "dataset:3"),
        ]  # fmt: skip
        assert (found.layout, found.num_usable) == ("completions in steps, each with a label", 1)
        assert [column.role for column in found.columns] == ["prompt", "steps", "whether each step is good"]
        assert {name: x.most for name, x in found.lengths.items()} == {"prompt": 4, "completion": 4}
    assert texts(found) == [("1+1=a", False), ("b", True), ("\n", False), ("c", True)]
    assert [p.effect for p in inspect(rows, purpose="steps", unusable="drop").problems] == ["refused", "dropped"]
