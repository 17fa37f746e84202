"""Examples with nothing to learn, and examples that are longer than the window."""

from __future__ import annotations

from typing import Any

import pytest

from rlft.config.data import DataConfig
from rlft.config.load import load_config
from rlft.data.examples import ExampleSet, load_examples
from rlft.errors import UserError
from tests.unit.byte_model import EOS, encoded
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yo"}
NOTHING = {"role": "assistant", "content": " \n"}
ROWS = [{"prompt": "ab", "answer": "cdefg"}, {"prompt": "ab", "answer": "cd"}, {"prompt": "abcd", "answer": "e"}]


def examples(tokenizer: Any, rows: list[dict[str, Any]], window: int = 512, **config: Any) -> ExampleSet:
    return load_examples(DataConfig.model_validate(config), tokenizer, window=window, seed=3, rows=rows)


@pytest.mark.parametrize(
    ("row", "config", "words"),
    [
        ({"prompt": "a", "answer": ""}, {}, "dataset:1: the completion in column 'answer' is empty"),
        ({"prompt": [USER], "answer": ""}, {}, "dataset:1: the completion in column 'answer' is empty"),
        ({"messages": [USER, NOTHING]}, {}, "dataset:1: the completion in column 'messages' is empty"),
        ({"messages": [USER, NOTHING, USER, ANSWER]}, {}, "dataset:1: the answer in message 2 in column 'messages' is"),
    ],
)
def test_empty_completions(tokenizer: Any, row: dict[str, Any], config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        examples(tokenizer, [row], **config)
    assert words in str(caught.value) and "Mend or delete that row" in str(caught.value)


def test_an_empty_answer_that_is_not_learned(tokenizer: Any) -> None:
    row = {"messages": [USER, NOTHING, USER, ANSWER]}
    assert examples(tokenizer, [row], train_on="last").examples[0].samples[0].text == "yo"


def test_completions_are_cut_at_the_window(tokenizer: Any) -> None:
    # window 5: ab|cdefg and its end, 8 tokens, become ab|cde; ab|cd and its end are 5; abcd|e and its end, 6, abcd|e
    loaded = examples(tokenizer, ROWS, window=5, too_long="truncate")
    samples = [group.samples[0] for group in loaded.examples]
    assert [sample.token_ids.tolist() for sample in samples] == [
        encoded("abcde"), [*encoded("abcd"), EOS], encoded("abcde"),
    ]  # fmt: skip
    assert [sample.loss_mask.tolist() for sample in samples] == [
        [False, False, True, True, True], [False, False, True, True, True], [False] * 4 + [True],
    ]  # fmt: skip
    assert [(sample.text, sample.finish_reason) for sample in samples] == [
        ("cde", "length"), ("cd", "stop"), ("e", "length"),
    ]  # fmt: skip
    assert all(len(s.logprobs) == len(s.weight_versions) == 5 for s in samples)
    assert loaded.description.endswith("; 2 cut at the window of 5 tokens")
    assert "cut" not in examples(tokenizer, ROWS, window=8, too_long="truncate").description


def test_prompts_are_never_cut(tokenizer: Any) -> None:
    for window in (3, 4):
        with pytest.raises(UserError, match=r"dataset:3: the prompt alone has 4 tokens.*data\.too_long to drop"):
            examples(tokenizer, ROWS, window=window, too_long="truncate")


def test_what_can_be_done_about_long_examples(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"2 of 3 rows are too long.*set data\.too_long to drop or truncate"):
        examples(tokenizer, ROWS, window=5)
    with pytest.raises(UserError, match=r"All rows are too long.*set data\.too_long to truncate; or use"):
        examples(tokenizer, ROWS, window=4)
    assert len(examples(tokenizer, ROWS, window=5, too_long="drop").examples) == 1


def test_truncate_is_for_sft() -> None:
    config = {"model": {"tiny": {}}, "rewards": {"functions": [{"function": "math"}]}, "data": {"too_long": "truncate"}}
    with pytest.raises(UserError, match=r"data\.too_long: truncate cuts completions.*expected error or drop"):
        load_config(config)
    load_config({"model": {"tiny": {}}, "data": {"too_long": "truncate"}, "algorithm": {"type": "sft"}})
