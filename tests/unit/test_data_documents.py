"""Whole texts as examples, for continued pretraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlft.config.data import DataConfig
from rlft.config.load import load_config
from rlft.data.documents import _cut
from rlft.data.examples import ExampleSet, load_examples
from rlft.data.learning import load_held_out_rows, load_learning_rows
from rlft.errors import UserError
from tests.unit.byte_model import EOS, encoded
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer


def examples(tokenizer: Any, rows: list[dict[str, Any]], window: int = 100, **config: Any) -> ExampleSet:
    return load_examples(DataConfig.model_validate(config), tokenizer, window=window, seed=0, rows=rows)


def test_all_but_the_first_token_is_learned(tokenizer: Any) -> None:
    loaded = examples(tokenizer, [{"text": "abc", "source": "web"}])
    (group,) = loaded.examples
    (sample,) = group.samples
    assert sample.token_ids.tolist() == [*encoded("abc"), EOS]
    assert sample.loss_mask.tolist() == [False, True, True, True]
    assert sample.text == "abc" and group.prompt.token_ids.tolist() == encoded("a")
    assert loaded.description == "dataset: text -> document; 1 rows; other columns: source"


def test_what_is_longer_than_the_window_is_cut(tokenizer: Any) -> None:
    # a b c d e f end, windows of 4: abcd, defE. Learned: bcd, efE
    loaded = examples(tokenizer, [{"text": "abcdef"}, {"text": "ab"}], window=4)
    assert [g.prompt.id for g in loaded.examples] == ["dataset:1#1", "dataset:1#2", "dataset:2"]
    assert [g.samples[0].token_ids.tolist() for g in loaded.examples] == [
        encoded("abcd"), [*encoded("def"), EOS], [*encoded("ab"), EOS],
    ]  # fmt: skip
    assert "; 1 longer than the window, 3 pieces of at most 4 tokens" in loaded.description


@given(st.integers(2, 40), st.integers(2, 12))
def test_every_token_but_the_first_is_learned_once(length: int, window: int) -> None:
    pieces = _cut(np.arange(length), window)
    assert np.concatenate([piece[1:] for piece in pieces]).tolist() == list(range(1, length))
    assert all(2 <= len(piece) <= window for piece in pieces)


def test_the_column_can_be_named(tokenizer: Any) -> None:
    loaded = examples(tokenizer, [{"content": "xy", "prompt": "no"}], document_column="content")
    assert loaded.examples[0].samples[0].text == "xy"


@pytest.mark.parametrize(
    ("rows", "config", "words"),
    [
        ([{"text": ""}], {}, ["dataset:1", "'text' is empty"]),
        ([{"text": "a"}, {"text": None}], {}, ["dataset:2", "'text' is empty (null)"]),
        ([{"text": "a"}], {"too_long": "drop"}, ["data.too_long has no effect", "cut where they are too long"]),
        ([{"text": "a"}], {"train_on": "last"}, ["data.train_on has no effect"]),
        ([{"text": "a"}], {"system_prompt": "be kind"}, ["data.system_prompt has no effect"]),
        ([{"text": "a"}], {"document_column": "txt"}, ["data.document_column", "Did you mean 'text'"]),
        ([{"text": "a"}], {"completion_column": "text"}, ["no column looks like a prompt"]),
        ([{"text": "a", "prompt": "b"}], {}, ["no column looks like a completion"]),
    ],
)
def test_what_is_refused(tokenizer: Any, rows: list[Any], config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        examples(tokenizer, rows, **config)
    assert all(word in str(caught.value) for word in words), caught.value


def test_held_out_rows_are_of_the_form_that_is_learned(tmp_path: Path, folder: Path, tokenizer: Any) -> None:
    files = {"texts": {"text": "ab"}, "asked": {"prompt": "a", "completion": "b"}}
    for name, row in files.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    for learned, held_out, here in (("asked", "texts", "documents"), ("texts", "asked", "prompts with completions")):
        paths = {"data.path": f"{tmp_path}/{learned}.jsonl", "evaluation.path": f"{tmp_path}/{held_out}.jsonl"}
        config = load_config({}, {"algorithm.type": "sft", "model.path": str(folder), **paths})
        examples = load_learning_rows(config, tokenizer, 20)
        with pytest.raises(UserError, match=f"evaluation.path: .*{held_out}.jsonl holds {here}, and what is learned"):
            load_held_out_rows(config, tokenizer, 20, examples)
        same = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"path": config.data.path})})
        assert len(load_held_out_rows(same, tokenizer, 20, examples)) == 1
