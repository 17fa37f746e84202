"""Rows to completions with a label for each step: exact tokens for text and chat, and every way a row can be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rewards.process_reward_model import _read
from rewards.scoring_model import ScoringModel
from rlft.config.data import DataConfig
from rlft.data.scores import scored_steps
from rlft.data.steps import load_steps, split_steps
from rlft.errors import UserError
from tests.unit.byte_model import encoded
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer

ROW = {"prompt": "1+1=", "completions": ["ab", "c"], "labels": [True, False]}


def steps(tokenizer: Any, rows: list[Any], window: int = 100, **config: Any) -> Any:
    data = DataConfig.model_validate(config)
    return load_steps(data, tokenizer, window=window, seed=0, rows=rows)


def test_steps_of_a_text(tokenizer: Any) -> None:
    """A score stands at the last token of each step; a pack asks for it by the place behind."""
    loaded = steps(tokenizer, [{**ROW, "who": "me"}])
    (group,) = loaded.examples
    assert group.prompt.token_ids.tolist() == encoded("1+1=") and group.prompt.columns["who"] == "me"
    (sample,) = group.samples
    assert sample.token_ids.tolist() == encoded("1+1=ab\nc") and sample.text == "ab\nc"
    assert np.flatnonzero(sample.loss_mask).tolist() == [5, 7]
    assert sample.returns.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    (scored,) = scored_steps(group).samples
    assert scored.token_ids.tolist() == [*encoded("1+1=ab\nc"), 0]
    assert np.flatnonzero(scored.loss_mask).tolist() == [6, 8], "the separator, and one more behind the last"
    assert scored.returns.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert loaded.description == (
        "dataset: prompt -> prompt (text), completions -> steps, labels -> labels; 1 rows; other columns: who; "
        "1 good steps, 1 bad"
    )


def test_steps_of_a_chat(tokenizer: Any) -> None:
    row = {**ROW, "prompt": [{"role": "user", "content": "hi"}], "labels": [0.25, 1]}
    (group,) = steps(tokenizer, [row], system_prompt="be", step_separator="; ").examples
    (sample,) = group.samples
    begin = "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(group.prompt.token_ids) == begin
    count = len(group.prompt.token_ids)
    assert sample.token_ids[count:].tolist() == encoded("ab; c")
    assert (np.flatnonzero(sample.loss_mask) - count).tolist() == [1, 4]
    assert sample.returns[sample.loss_mask].tolist() == [0.25, 1]


def test_the_last_label_alone(tokenizer: Any) -> None:
    (sample,) = steps(tokenizer, [ROW], label_of="last").examples[0].samples
    assert np.flatnonzero(sample.loss_mask).tolist() == [7] and sample.returns[7] == 0


def test_separators_at_the_ends_of_steps_are_one(tokenizer: Any) -> None:
    rows = [{**ROW, "completions": ["ab\n\n", "\nc"]}, {**ROW, "completions": ["a\nb", "c"]}]
    with pytest.raises(UserError, match="1 of 2 rows with the separator inside of a step are .*: dataset:2"):
        steps(tokenizer, rows)
    loaded = steps(tokenizer, rows, unusable="drop")
    (first,) = loaded.examples[0].samples
    assert len(loaded) == 1 and first.text == "ab\nc"
    assert loaded.description.endswith("; 1 good steps, 1 bad; 1 dropped with the separator inside of a step")
    assert split_steps("ab\n\n  \nc\n", "\n") == ["ab", "c"] == split_steps(first.text, "\n")
    assert split_steps(" \n", "\n") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [True]}, ["dataset:2", "'labels' has 1 labels", "'completions' has 2 steps", "one label for each"]),
        ({"labels": [True, False, True]}, ["dataset:2", "'labels' has 3 labels"]),
        ({"labels": True}, ["dataset:2", "'labels' is a bool", "a list with a label for each step"]),
        ({"labels": None}, ["dataset:2", "'labels' is missing"]),
        ({"labels": [True, "good"]}, ["dataset:2", "label 2 of column 'labels' is 'good'", "a number from 0 to 1"]),
        ({"labels": [True, 2]}, ["dataset:2", "label 2 of column 'labels' is 2"]),
        ({"labels": [True, -1]}, ["label 2 of column 'labels' is -1"]),
        ({"labels": [True, float("nan")]}, ["label 2 of column 'labels' is nan"]),
        ({"labels": [None, True]}, ["label 1 of column 'labels' is None"]),
        ({"completions": "ab\nc"}, ["dataset:2", "'completions' is a str", "a list of steps"]),
        ({"completions": [], "labels": []}, ["dataset:2", "'completions' is an empty list"]),
        ({"completions": ["ab", " \n"]}, ["dataset:2", "step 2 of column 'completions' is empty", "and its label"]),
        ({"completions": ["ab", {"x": 1}]}, ["dataset:2", "step 2 of column 'completions' is a dict", "a text"]),
        ({"completions": ["ab", "c" * 30]}, ["too long: dataset:2 (37 tokens)"]),
        ({"prompt": ""}, ["dataset:2", "the prompt in column 'prompt' is empty"]),
        ({"prompt": None}, ["dataset:2", "'prompt' is empty (null)"]),
    ],
)
def test_rows_that_are_no_steps(tokenizer: Any, change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        steps(tokenizer, [ROW, {**ROW, **change}], window=20)
    assert all(word in str(caught.value) for word in words), caught.value


def test_columns_that_are_not_there(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"data\.steps_column: .* no column 'completions'\. Did you mean 'completion'"):
        steps(tokenizer, [{"prompt": "a", "completion": "b", "labels": [1]}])
    with pytest.raises(UserError, match=r"data\.step_labels_column: .* no column 'good'"):
        steps(tokenizer, [ROW], step_labels_column="good")


def test_what_is_dropped_is_counted(tokenizer: Any) -> None:
    loaded = steps(tokenizer, [ROW, {**ROW, "completions": ["ab", "c" * 30]}], window=8, too_long="drop")
    assert len(loaded.examples) == 1, "eight tokens are fed, and the place behind is not"
    assert "; 1 dropped as too long (more than 8 tokens)" in loaded.description


def test_the_reward_function_reads_a_completion_as_training_reads_its_row(tokenizer: Any) -> None:
    """Text and chat, a system prompt among them; the separators that a model repeats are one."""
    judge = ScoringModel(None, tokenizer, 100, set(), "cpu", "x")
    talk = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    for prompt, config in (("1+1=", {}), (talk, {}), (talk[1:], {"system_prompt": "be"})):
        row = {"prompt": prompt, "completions": ["ab", "c"], "labels": [1, 1]}
        (trained,) = steps(tokenizer, [row], step_separator="; ", **config).examples
        asked = talk if config else prompt  # a run hands over the conversation with its system prompt
        (read,) = _read(judge, [(asked, split_steps("; ab; ; c", "; "))], "; ")
        (ours,), (theirs,) = read.samples, scored_steps(trained).samples
        np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
        np.testing.assert_array_equal(ours.loss_mask, theirs.loss_mask)
