"""What is said of data before a run."""

from __future__ import annotations

from typing import Any

import pytest

from rlft.data.inspect import lengths_of
from rlft.data.inspect_rows import Problem, Segment
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer
from tests.unit.inspecting import ANSWER, GPT, HUMAN, USER, inspect, texts

TEN = "10 tokens, and there is room for"
END = Segment("<|im_end|>", learned=True, special=True)


@pytest.mark.parametrize(
    ("row", "purpose", "layout", "roles"),
    [
        ({"prompt": "a", "answer": "b"}, "sft", "prompt and completion", ["prompt", "completion"]),
        ({"prompt": "a", "level": 3}, "prompts", "prompts", ["prompt", "for reward functions"]),
        ({"messages": [USER, ANSWER]}, "sft", "messages (role, content)", ["prompt and completion"]),
        ({"messages": [USER]}, "prompts", "messages (role, content)", ["prompt"]),
        ({"conversations": [HUMAN, GPT]}, "sft", "ShareGPT conversations (from, value)", ["prompt and completion"]),
        (
            {"instruction": "a", "input": "b", "output": "c", "id": 1},
            "sft", "Alpaca (instruction, input, output)",
            ["prompt", "put under the prompt", "completion", "not used"],
        ),
        ({"text": "a"}, "sft", "documents (continued pretraining)", ["document"]),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"}, "pairs", "pairs (chosen and rejected)",
            ["prompt", "learned", "learned to avoid"],
        ),
        (
            {"prompt": "a", "completion": "b", "label": True}, "labels", "labelled completions (good or bad)",
            ["prompt", "completion", "whether the completion is good"],
        ),
    ],
)  # fmt: skip
def test_shapes(row: dict[str, Any], purpose: str, layout: str, roles: list[str]) -> None:
    found = inspect([row])
    assert (found.purpose, found.layout, found.guessed, found.usable) == (purpose, layout, True, True)
    assert [column.role for column in found.columns] == roles
    assert found.unit == "characters" and "give --model" in found.missing[0]


def test_columns() -> None:
    found = inspect([{"prompt": "a", "n": 1}, {"prompt": "b", "n": None, "t": [USER]}, {"prompt": "c"}, {"prompt": ""}])
    assert [(name, dict(types), share) for name, types, share, _ in found.columns] == [
        ("prompt", {"text": 4}, 0.0), ("n", {"integer": 1}, 0.75), ("t", {"list of mapping": 1}, 0.75),
    ]  # fmt: skip


def test_masks_are_the_loaders(tokenizer: Any) -> None:
    assert texts(inspect([{"prompt": "1+1=", "answer": "2"}], tokenizer)) == [
        ("1+1=", False), ("2", True), ("<|im_end|>", True),
    ]  # fmt: skip
    found = inspect([{"messages": [USER, ANSWER, USER, ANSWER]}], tokenizer, train_on="last")
    assert [text for text, learned in texts(found) if learned] == ["yo", "<|im_end|>"]
    assert found.examples[0].parts[0].segments[-1] == END
    prompts = inspect([{"prompt": "a", "answer": "b"}], tokenizer, purpose="prompts")
    assert texts(prompts) == [("a", False)] and list(prompts.lengths) == ["prompt"]
    document = inspect([{"text": "ab"}], tokenizer)
    assert texts(document) == [("a", False), ("b", True), ("<|im_end|>", True)]
    assert document.lengths["document"].most == 3


def test_without_a_tokenizer_texts_are_shown() -> None:
    found = inspect([{"messages": [USER, ANSWER]}])
    assert texts(found) == [("user: ", False), ("hi", False), ("\n", False), ("assistant: ", False), ("yo", True)]
    assert found.lengths["completion"].most == 2


def test_lengths() -> None:
    # 1 to 20: the median lies between 10 and 11, 19 of 20 are at most 19; 8 bins of ceil(20 / 8) = 3, the last of 2
    found = lengths_of(range(1, 21))
    assert (found.least, found.median, found.p95, found.most) == (1, 10.5, 19, 20)
    assert found.bins == ((1, 3, 3), (4, 6, 3), (7, 9, 3), (10, 12, 3), (13, 15, 3), (16, 18, 3), (19, 20, 2))
    assert lengths_of([4, 4]).bins == ((4, 4, 2),)


def test_prompt_and_completion_apart(tokenizer: Any) -> None:
    # a|b and end, abc|de and end: prompts of 1 and 3 tokens, completions of 2 and 3
    found = inspect([{"prompt": "a", "answer": "b"}, {"prompt": "abc", "answer": "de"}], tokenizer)
    assert [(name, x.least, x.median, x.most) for name, x in found.lengths.items()] == [
        ("prompt", 1, 2.0, 3), ("completion", 2, 2.5, 3),
    ]  # fmt: skip


def test_repeated() -> None:
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "1"}, {"prompt": "a", "answer": "2"}]
    found = inspect([*rows, {"answer": "1", "prompt": "b"}])
    assert found.same_rows == (1, (("dataset:4", "dataset:2"),))
    assert found.same_prompts == (2, (("dataset:3", "dataset:1"), ("dataset:4", "dataset:2")))


def test_all_problems_are_found(tokenizer: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "ab", "answer": "c"}, {"prompt": "", "answer": "c"}, {"prompt": "a", "answer": ""},
        {"prompt": "a", "answer": None}, {"prompt": 3, "answer": "c"}, {"prompt": "a" * 6, "answer": "bbb"},
    ]  # fmt: skip
    expected = [
        ("empty prompt", "dataset:2"), ("empty completion", "dataset:3"), ("missing value", "dataset:4"),
        ("wrong type", "dataset:5"),
    ]  # fmt: skip
    blind = inspect(rows)
    assert [(p.reason, p.place) for p in blind.problems] == expected and blind.num_usable == 2
    found = inspect(rows, tokenizer, window=9)
    assert [(p.reason, p.place) for p in found.problems] == [*expected, ("too long", "dataset:6")]
    assert found.problems[-1].text == "10 tokens, and there is room for 9 (the window)"
    assert (found.num_rows, found.num_usable, found.usable) == (6, 1, False)
    assert found.problems[3].text == "column 'prompt' is a int. Expected text, as in the other rows."
    assert "in column 'answer' is empty" in found.problems[1].text and "Mend or delete" in found.problems[1].text


@pytest.mark.parametrize(
    ("too_long", "window", "problem", "usable"),
    [
        ("drop", 9, Problem("too long", "dataset:2", f"{TEN} 9 (the window)", "dropped"), True),
        ("truncate", 9, Problem("too long", "dataset:2", f"{TEN} 9 (the window)", "cut"), True),
        (
            "truncate", 6,
            Problem("prompt too long", "dataset:2", f"the prompt alone has 6 tokens; {TEN} 6 (the window)"), False,
        ),
    ],
)  # fmt: skip
def test_too_long(tokenizer: Any, too_long: str, window: int, problem: Problem, usable: bool) -> None:
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "a" * 6, "answer": "bbb"}]
    found = inspect(rows, tokenizer, window=window, too_long=too_long)
    assert found.problems == (problem,) and found.usable is usable


def test_prompts_need_room_for_new_tokens(tokenizer: Any) -> None:
    found = inspect([{"prompt": "a" * 6}], tokenizer, window=9, max_new_tokens=4, purpose="prompts", too_long="drop")
    assert found.problems[0].text == "6 tokens, and there is room for 5 (window 9 - max_new_tokens 4)"
    assert found.problems[0].effect == "dropped"
    assert found.problems[1] == (
        "nothing left",
        "dataset",
        "all rows would be dropped, so none would be left",
        "refused",
    )


@pytest.mark.parametrize(
    ("rows", "config", "words"),
    [
        ([{"a": "b"}], {}, "no column looks like a prompt"),
        ([{"prompt": "a"}], {"purpose": "sft"}, "no column looks like a completion"),
        ([{"prompt": "a", "b": "c"}], {"purpose": "sft", "completion_column": "d"}, "data.completion_column"),
        ([{"messages": [USER, ANSWER]}], {"apply_chat_template": False}, "apply_chat_template is false"),
        ([{"text": "a"}], {"train_on": "last"}, "data.train_on has no effect"),
    ],
)
def test_what_refuses_all_rows(rows: list[dict[str, Any]], config: dict[str, Any], words: str) -> None:
    found = inspect(rows, **config)
    assert not found.usable and found.problems[0].reason == "not understood" and words in found.problems[0].text
    assert found.columns and not found.examples
