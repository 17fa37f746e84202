"""Rows to pairs and to labelled completions: every shape, exact tokens, and every way in which a row can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlft.config.data import DataConfig
from rlft.config.load import load_config
from rlft.data.learning import load_learning_rows
from rlft.data.pairs import _next_of_another_prompt, load_labels, load_pairs
from rlft.data.scores import scored_pair
from rlft.errors import UserError
from rlft.samples import Group
from tests.unit.byte_model import EOS, encoded
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "yo"), ("assistant", "no")))


def pairs(tokenizer: Any, rows: list[Any], window: int = 100, **config: Any) -> Any:
    return load_pairs(DataConfig.model_validate(config), tokenizer, window=window, seed=0, rows=rows)


def labels(tokenizer: Any, rows: list[Any], window: int = 100, with_others: bool = True, **config: Any) -> Any:
    data = DataConfig.model_validate(config)
    return load_labels(data, tokenizer, window=window, seed=0, rows=rows, with_others=with_others)


def texts(tokenizer: Any, group: Group) -> tuple[str, list[str]]:
    """The prompt, and what is learned of each sample."""
    learned = [tokenizer.decode(s.token_ids[s.loss_mask], skip_special_tokens=True) for s in group.samples]
    return tokenizer.decode(group.prompt.token_ids), learned


def test_a_pair_of_texts(tokenizer: Any) -> None:
    loaded = pairs(tokenizer, [{"prompt": "1+1=", "chosen": "2", "rejected": "33", "who": "me"}])
    (group,) = loaded.examples
    chosen, rejected = group.samples
    assert group.prompt.token_ids.tolist() == encoded("1+1=") and group.prompt.columns["who"] == "me"
    assert chosen.token_ids.tolist() == [*encoded("1+1=2"), EOS]
    assert rejected.token_ids.tolist() == [*encoded("1+1=33"), EOS]
    assert chosen.loss_mask.tolist() == [False] * 4 + [True] * 2
    assert rejected.loss_mask.tolist() == [False] * 4 + [True] * 3
    assert chosen.advantages.tolist() == [1.0] * 6 and rejected.advantages.tolist() == [-1.0] * 7
    assert (chosen.text, rejected.text) == ("2", "33")
    assert loaded.description == ("dataset: prompt -> prompt, chosen over rejected (text); 1 pairs; other columns: who")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # as UltraFeedback has it
    ],
)
def test_pairs_of_conversations(tokenizer: Any, row: dict[str, Any]) -> None:
    prompt, learned = texts(tokenizer, pairs(tokenizer, [row]).examples[0])
    assert learned == ["yo", "no"]
    assert prompt.startswith("<|im_start|>user") and prompt.endswith("assistant\n") and "yo" not in prompt


def test_of_a_long_conversation_the_last_answer_alone_is_compared(tokenizer: Any) -> None:
    talk = [USER, GOOD, {"role": "user", "content": "more"}]
    both = {"chosen": [*talk, {"role": "assistant", "content": "a"}], "rejected": [*talk, BAD]}
    prompt, learned = texts(tokenizer, pairs(tokenizer, [both]).examples[0])
    assert learned == ["a", "no"] and "yo" in prompt and "more" in prompt


def test_texts_that_begin_with_the_prompt(tokenizer: Any) -> None:
    """They part inside a word: the prompt ends before it, and before the blank, which begins the answer."""
    row = {"chosen": "Human: hi\n\nAssistant: hello there", "rejected": "Human: hi\n\nAssistant: help"}
    prompt, learned = texts(tokenizer, pairs(tokenizer, [row]).examples[0])
    assert prompt == "Human: hi\n\nAssistant:"
    assert learned == [" hello there", " help"]
    assert texts(tokenizer, pairs(tokenizer, [{"chosen": "Q: a b", "rejected": "Q: a"}]).examples[0]) == (
        "Q:", [" a b", " a"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "config", "words"),
    [
        ([{"prompt": "a", "chosen": "b"}], {}, ["data.rejected_column", "no column 'rejected'"]),
        ([{"prompt": "a", "chosn": "b", "rejected": "c"}], {}, ["no column 'chosen'", "Did you mean 'chosn'"]),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}], {},
         ["dataset:2", "'rejected' is missing", "Expected text"]),
        ([{"prompt": "a", "chosen": "b", "rejected": [BAD]}], {}, ["dataset:1", "'rejected' is a list", "text"]),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], {}, ["1 of 1 rows", "are the same", "dataset:1"]),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": "b", "rejected": "c"}], {},
         ["1 of 2 rows", "set data.unusable to drop"]),
        ([{"chosen": "ab", "rejected": "cd"}], {}, ["dataset:1", "do not begin with the same words"]),
        ([{"chosen": [USER, GOOD], "rejected": [BAD, GOOD]}], {}, ["dataset:1", "part at message 1"]),
        ([{"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}], {}, ["dataset:1", "part at message 3"]),
        ([{"prompt": "x", "chosen": [USER, GOOD], "rejected": [USER, BAD]}], {"prompt_column": "prompt"},
         ["whole conversations", "Leave data.prompt_column empty"]),
        ([{"prompt": "a", "chosen": "b" * 30, "rejected": "c"}], {}, ["too long", "dataset:1 (32 tokens)"]),
    ],
)  # fmt: skip
def test_rows_that_are_no_pairs(tokenizer: Any, rows: list[Any], config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        pairs(tokenizer, rows, window=20, **config)
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_is_dropped_is_counted(tokenizer: Any) -> None:
    rows = [{"prompt": "a", "chosen": c, "rejected": "x"} for c in ("b", "x", "c" * 30)]
    loaded = pairs(tokenizer, rows, window=20, unusable="drop", too_long="drop")
    assert [texts(tokenizer, g)[1] for g in loaded.examples] == [["b", "x"]]
    assert "; 1 dropped whose chosen and rejected completions are the same" in loaded.description
    assert "; 1 dropped as too long (more than 20 tokens)" in loaded.description


def test_labels(tokenizer: Any) -> None:
    rows = [{"prompt": p, "completion": c, "label": v} for p, c, v in (("1", "a", True), ("1", "b", 0), ("2", "c", 1))]
    loaded = labels(tokenizer, rows)
    first, second, third = loaded.examples
    assert [g.samples[0].advantages[0] for g in loaded.examples] == [1, -1, 1]
    assert texts(tokenizer, first) == ("1", ["a", "c"]), "with the completion of the next row with another prompt"
    assert texts(tokenizer, second) == ("1", ["b", "c"])
    assert texts(tokenizer, third) == ("2", ["c", "a"]), "around the end"
    assert not any(g.samples[1].advantages.any() for g in loaded.examples)
    assert "label -> good or bad (2 good, 1 bad)" in loaded.description
    assert all(len(g.samples) == 1 for g in labels(tokenizer, rows, with_others=False).examples)
    talk = [
        {"messages": [USER, GOOD], "label": False},
        {"messages": [{"role": "user", "content": "?"}, BAD], "label": 1},
    ]
    assert [texts(tokenizer, g)[1] for g in labels(tokenizer, talk).examples] == [["yo", "no"], ["no", "yo"]]


def test_a_completion_of_another_row_is_cut_to_the_window(tokenizer: Any) -> None:
    rows = [
        {"prompt": "a" * 8, "completion": "b", "label": True},
        {"prompt": "c", "completion": "d" * 8, "label": True},
    ]
    assert texts(tokenizer, labels(tokenizer, rows, window=10).examples[0]) == ("a" * 8, ["b", "dd"])


ROW = {"prompt": "a", "completion": "b", "label": True}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "completion": "b"}], ["data.label_column", "no column 'label'"]),
        ([{**ROW, "label": "good"}], ["dataset:1", "'label' is 'good'", "true or false"]),
        ([ROW, {"prompt": "c", "completion": "d"}], ["dataset:2", "'label' is None"]),
        ([ROW, {**ROW, "completion": "c"}], ["all rows have the same prompt", "apo_zero"]),
    ],
)
def test_rows_without_labels(tokenizer: Any, rows: list[Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        labels(tokenizer, rows)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_next_of_another_prompt() -> None:
    assert _next_of_another_prompt([b"a", b"a", b"b", b"b", b"c"]) == [2, 2, 4, 4, 0]
    assert _next_of_another_prompt([b"b", b"a", b"b"]) == [1, 2, 1], "the first and the last are the same"
    assert _next_of_another_prompt([b"a", b"a"]) is None


def test_a_pair_as_a_reward_model_reads_it(tokenizer: Any) -> None:
    """One place behind the last token, in whose stead a pack asks for the state of that token."""
    (group,) = pairs(tokenizer, [{"prompt": "a", "chosen": "b", "rejected": "cd", "margin": 0.5}]).examples
    chosen, rejected = scored_pair(group).samples
    assert chosen.token_ids.tolist() == [*encoded("ab"), EOS, 0]
    assert np.flatnonzero(chosen.loss_mask).tolist() == [3] and np.flatnonzero(rejected.loss_mask).tolist() == [4]
    assert chosen.advantages[3] == 1 and rejected.advantages[4] == -1
    assert chosen.returns.tolist() == [0.5] * 4
    (wrong,) = pairs(tokenizer, [{"prompt": "a", "chosen": "b", "rejected": "cd", "margin": "much"}]).examples
    with pytest.raises(UserError, match=r"dataset:1: column 'margin' is 'much'. Expected a number"):
        scored_pair(wrong)


def test_pairs_that_are_cut_to_the_same_teach_nothing(tokenizer: Any) -> None:
    """Cut at 10 tokens the first pair parts no more; the second does."""
    rows = [{"prompt": "a", "chosen": "b" * 12 + "c", "rejected": "b" * 12}]
    rows.append({"prompt": "a", "chosen": "c" * 12, "rejected": "d" * 12})
    with pytest.raises(UserError, match="1 of 2 rows whose chosen and rejected completions are the same teach nothing"):
        pairs(tokenizer, rows, window=10, too_long="truncate")
    (kept,) = pairs(tokenizer, rows, window=10, too_long="truncate", unusable="drop").examples
    assert texts(tokenizer, kept)[1] == ["c" * 9, "d" * 9]
    assert all(len(s.advantages) == len(s.token_ids) == 10 for s in kept.samples)  # type: ignore[arg-type]


def test_empty_answers_are_left_out_and_counted(tokenizer: Any) -> None:
    """Apart from what is the same, and with the column named where they may not be."""
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = [good, {**good, "rejected": ""}, {**good, "rejected": "b"}]
    with pytest.raises(UserError, match=r"1 of 3 rows with an empty completion teach nothing: dataset:2 \(column 'rej"):
        pairs(tokenizer, rows)
    loaded = pairs(tokenizer, rows, unusable="drop")
    assert [group.prompt.id for group in loaded.examples] == ["dataset:1"]
    assert "; 1 dropped with an empty completion; 1 dropped whose chosen and rejected" in loaded.description
    with pytest.raises(UserError, match=r"dataset:2: column 'rejected' is empty \(null\)"):
        pairs(tokenizer, [good, {**good, "rejected": None}])
    labels = [{"prompt": p, "completion": c, "label": True} for p, c in (("a", "b"), ("b", ""), ("c", "d"))]
    loaded = load_labels(DataConfig(unusable="drop"), tokenizer, window=20, seed=0, rows=labels)
    assert len(loaded) == 2 and "(2 good, 0 bad); 1 dropped with an empty completion" in loaded.description


def test_sources_of_a_reward_model_agree_about_margins(tmp_path: Path, folder: Path, tokenizer: Any) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for name, row in (("a", {**good, "margin": 1}), ("b", good)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    mixture = [{"path": str(tmp_path / f"{name}.jsonl")} for name in "ab"]
    config = load_config({}, {"algorithm.type": "reward", "model.path": str(folder), "data.mixture": mixture})
    with pytest.raises(UserError, match=r"source b of data\.mixture has no column 'margin', and a has one"):
        load_learning_rows(config, tokenizer, 20)
