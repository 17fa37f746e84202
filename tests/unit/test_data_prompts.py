"""From rows to prompts and worked examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.math import math_reward
from rlft.config.data import DataConfig
from rlft.config.model import TinyModel
from rlft.data.examples import ExampleSet, load_examples
from rlft.data.order import batch_indices
from rlft.data.prompts import PromptSet, load_prompts
from rlft.data.reading import rows_in_memory
from rlft.data.shapes import detect_shape, prompt_messages
from rlft.data.tokenizer import load_tokenizer
from rlft.errors import UserError
from rlft.models.tiny import DIGITS_ALPHABET, make_tiny_model
from tests.unit.byte_model import EOS, SMALL, encoded
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yo"}
RENDERED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def prompts(tokenizer: Any, rows: list[dict[str, Any]] | None, window: int = 512, **config: Any) -> PromptSet:
    data = DataConfig.model_validate(config)
    return load_prompts(data, tokenizer, window=window, max_new_tokens=8, seed=3, rows=rows)


def examples(tokenizer: Any, rows: list[dict[str, Any]], window: int = 512, **config: Any) -> ExampleSet:
    return load_examples(DataConfig.model_validate(config), tokenizer, window=window, seed=3, rows=rows)


def test_text_prompts_are_taken_as_they_are(tokenizer: Any) -> None:
    rows = [{"question": "1+1=", "answer": "2", "source_line": 9}]
    loaded = prompts(tokenizer, rows)
    prompt = loaded.prompts[0]
    assert (prompt.id, prompt.text, prompt.messages, prompt.columns) == ("dataset:1", "1+1=", None, rows[0])
    assert prompt.token_ids.dtype == np.int32
    assert prompt.token_ids.tolist() == encoded("1+1=")
    assert loaded.description == "dataset: question -> prompt (text); 1 rows; other columns: answer, source_line"


def test_path_overrides_the_configured_one(tokenizer: Any, tmp_path: Path) -> None:
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text(f'\n{{"prompt": "{name}"}}\n')
    data = DataConfig(path=str(tmp_path / "train.jsonl"))
    loaded = [
        load_prompts(data, tokenizer, window=99, max_new_tokens=1, seed=0, path=path).prompts[0]
        for path in (None, str(tmp_path / "eval.jsonl"))
    ]
    assert [(prompt.id, prompt.text) for prompt in loaded] == [("train.jsonl:2", "train"), ("eval.jsonl:2", "eval")]
    with pytest.raises(UserError, match=r"data\.path is empty"):
        load_prompts(DataConfig(), tokenizer, window=99, max_new_tokens=1, seed=0)


def test_tokenizer_adds_its_own_bos_and_no_eos(folder: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = load_tokenizer(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <|im_end|>", special_tokens=[("<bos>", 1), ("<|im_end|>", EOS)]
    )
    rows = [{"prompt": "ab", "completion": "c"}]
    assert prompts(tokenizer, rows).prompts[0].token_ids.tolist() == [1, *encoded("ab")]
    assert examples(tokenizer, rows).examples[0].samples[0].token_ids.tolist() == [1, *encoded("abc"), EOS]


@pytest.mark.parametrize(
    ("row", "config", "text"),
    [
        ({"prompt": [USER]}, {}, RENDERED),
        ({"messages": [USER, ANSWER]}, {}, RENDERED),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, {}, RENDERED),
        ({"prompt": "hi"}, {"apply_chat_template": True}, RENDERED),
        ({"prompt": "hi"}, {"system_prompt": "S"}, "<|im_start|>system\nS<|im_end|>\n" + RENDERED),
        ({"prompt": [USER]}, {"system_prompt": "S"}, "<|im_start|>system\nS<|im_end|>\n" + RENDERED),
    ],
)
def test_conversations_are_rendered(tokenizer: Any, row: dict[str, Any], config: dict[str, Any], text: str) -> None:
    prompt = prompts(tokenizer, [row], **config).prompts[0]
    assert prompt.text == text
    assert prompt.token_ids.tolist() == tokenizer(text).input_ids
    assert prompt.messages is not None
    assert prompt.messages[-1] == USER
    turns = [dict(turn) for turn in prompt.messages]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert prompt.token_ids.tolist() == ids


def test_alpaca_rows_keep_their_input(tokenizer: Any) -> None:
    rows = [{"instruction": "add", "input": "1 2", "output": "3"}, {"instruction": "say", "input": "", "output": "x"}]
    loaded = prompts(tokenizer, rows)
    assert [prompt.text for prompt in loaded.prompts] == ["add\n\n1 2", "say"]
    assert "instruction + input -> prompt" in loaded.description


def test_verls_rows_show_their_ground_truth(tokenizer: Any, tmp_path: Path) -> None:
    """As its parquet files hold them, and for the reward that looks for the answer in a column."""
    import pyarrow
    from pyarrow import parquet

    row = {"data_source": "sums", "prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "42"}}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "verl.parquet")
    (prompt,) = prompts(tokenizer, None, path=str(tmp_path / "verl.parquet")).prompts
    assert prompt.columns["ground_truth"] == "42" and prompt.columns["data_source"] == "sums"
    assert prompt.text == RENDERED
    gold = [prompt.columns["ground_truth"]] * 2
    results = math_reward(["the answer is \\boxed{42}", "41"], ground_truth=gold)
    assert [result.value for result in results] == [1.0, 0.0]
    own = {"question": "1+1=", "ground_truth": "2", "reward_model": {"ground_truth": "3"}}
    assert prompts(tokenizer, [own]).prompts[0].columns["ground_truth"] == "2", "a column of the row's own wins"


@pytest.mark.parametrize(
    ("rows", "config", "words"),
    [
        ([{"prompt": ""}], {}, ["dataset:1", "empty"]),
        ([{"prompt": "a"}, {"prompt": None}], {}, ["dataset:2", "null"]),
        ([{"prompt": "a"}, {"other": "b"}], {}, ["dataset:2", "missing"]),
        ([{"prompt": "a"}, {"prompt": 3}], {}, ["dataset:2", "int"]),
        ([{"prompt": "a"}, {"prompt": [USER]}], {}, ["dataset:2", "list", "Expected text"]),
        ([{"prompt": [USER]}, {"prompt": "a"}], {}, ["dataset:2", "str", "role, content"]),
        ([{"prompt": [USER, {"role": "user"}]}], {}, ["dataset:1", "message 2", "keys role"]),
        ([{"messages": [ANSWER]}], {}, ["dataset:1", "only an assistant turn"]),
        ([{"a": "x", "b": "y"}], {}, ["no column looks like a prompt", "a, b", "data.prompt_column"]),
        (
            [{"question": "x"}],
            {"prompt_column": "qestion"},
            ["data.prompt_column", "'qestion'", "Did you mean 'question'"],
        ),
        ([{"prompt": [USER]}], {"apply_chat_template": False}, ["apply_chat_template is false"]),
        ([{"prompt": "a"}], {"apply_chat_template": False, "system_prompt": "S"}, ["data.system_prompt needs"]),
        ([{"prompt": [{"role": "system", "content": "T"}, USER]}], {"system_prompt": "S"}, ["already begins"]),
    ],
)
def test_rows_that_are_no_prompts(tokenizer: Any, rows: list[Any], config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        prompts(tokenizer, rows, **config)
    assert all(word in str(caught.value) for word in words), caught.value


def test_no_chat_template(folder: Path, tmp_path: Path) -> None:
    tokenizer: Any = load_tokenizer(folder)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template.*model\.chat_template"):
        prompts(tokenizer, [{"prompt": [USER]}])
    (tmp_path / "own.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    own = load_tokenizer(folder, str(tmp_path / "own.jinja"))
    assert prompts(own, [{"prompt": [USER]}]).prompts[0].text == "[hi]"


def test_template_that_refuses(folder: Path) -> None:
    tokenizer: Any = load_tokenizer(folder)
    tokenizer.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(UserError, match=r"dataset:1: the chat template refuses.*only one turn"):
        prompts(tokenizer, [{"prompt": [USER]}])


def test_too_long(tokenizer: Any) -> None:
    rows = [{"prompt": "x" * length} for length in (12, 13, 20, 5)]  # window 20 - 8 new tokens: room for 12
    with pytest.raises(UserError) as caught:
        prompts(tokenizer, rows, window=20)
    message = str(caught.value)
    assert "2 of 4 rows" in message and "dataset:2 (13 tokens), dataset:3 (20 tokens)" in message
    assert "room for 12 (window 20 - max_new_tokens 8)" in message and "data.too_long" in message
    kept = prompts(tokenizer, rows, window=20, too_long="drop")
    assert [len(prompt.token_ids) for prompt in kept.prompts] == [12, 5]
    assert "2 dropped as too long" in kept.description
    with pytest.raises(UserError, match="All rows are too long"):
        prompts(tokenizer, rows, window=9, too_long="drop")


def test_order_is_a_function_of_seed_and_step() -> None:
    epochs = [batch_indices(10, step, 5, seed=1, shuffle=True) for step in range(6)]
    for first in (0, 2, 4):
        assert sorted(epochs[first] + epochs[first + 1]) == list(range(10))
    assert len({tuple(epochs[i] + epochs[i + 1]) for i in (0, 2, 4)}) == 3  # a new order each epoch
    assert batch_indices(10, 3, 5, seed=1, shuffle=True) == epochs[3]
    assert batch_indices(10, 0, 10, seed=2, shuffle=True) != epochs[0] + epochs[1]
    assert batch_indices(4, 1, 3, seed=0, shuffle=False) == [3, 0, 1]
    whole = [i for step in range(4) for i in batch_indices(4, step, 3, seed=1, shuffle=True)]
    assert [sorted(whole[i : i + 4]) for i in (0, 4, 8)] == [[0, 1, 2, 3]] * 3  # batches run across the ends of epochs
    assert batch_indices(10, 0, 10, seed=0, shuffle=True) == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]  # must never change


def test_batch(tokenizer: Any) -> None:
    rows = [{"prompt": str(i)} for i in range(4)]
    assert [prompt.text for prompt in prompts(tokenizer, rows, shuffle=False).take(3, 3)] == ["3", "0", "1"]
    shuffled = prompts(tokenizer, rows)
    assert [p.text for p in shuffled.take(20, 4)] == [str(i) for i in batch_indices(4, 5, 4, seed=3, shuffle=True)]
    assert prompts(tokenizer, rows, max_rows=2).take(0, 2) != []


def test_examples_of_text(tokenizer: Any) -> None:
    loaded = examples(tokenizer, [{"prompt": "12=", "answer": "é"}])
    group = loaded.examples[0]
    sample = group.samples[0]
    assert sample.token_ids.tolist() == [*encoded("12="), *encoded("é"), EOS]
    assert sample.loss_mask.tolist() == [False, False, False, True, True, True]
    assert (sample.token_ids.dtype, sample.loss_mask.dtype, sample.logprobs.dtype) == (np.int32, np.bool_, np.float32)
    assert sample.weight_versions.tolist() == [-1] * 6 and not sample.logprobs.any()
    assert (sample.text, sample.finish_reason, sample.seed) == ("é", "stop", 0)
    assert group.prompt.token_ids.tolist() == encoded("12=")
    assert loaded.description == "dataset: prompt -> prompt (text), answer -> completion; 1 rows; other columns: none"
    assert loaded.batch(0, 2) == [group, group]


def test_text_boundary_never_merges(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<eos>": 0, "a": 1, "b": 2, "ab": 3}
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, merges=[("a", "b")])), eos_token="<eos>"
    )
    assert tokenizer("ab").input_ids == [3]
    assert examples(tokenizer, [{"prompt": "a", "completion": "b"}]).examples[0].samples[0].token_ids.tolist() == [
        1,
        2,
        0,
    ]


@pytest.mark.parametrize(
    ("row", "config"),
    [
        ({"messages": [USER, ANSWER]}, {}),
        ({"prompt": [USER], "completion": [ANSWER]}, {}),
        ({"prompt": [USER], "completion": "yo"}, {}),
        ({"prompt": "hi", "completion": "yo"}, {"apply_chat_template": True}),
    ],
)
def test_examples_of_conversations(tokenizer: Any, row: dict[str, Any], config: dict[str, Any]) -> None:
    group = examples(tokenizer, [row], **config).examples[0]
    sample = group.samples[0]
    assert sample.token_ids.tolist() == [*tokenizer(RENDERED).input_ids, *encoded("yo"), EOS]
    assert sample.loss_mask.sum() == 3 and sample.loss_mask[-3:].all()
    assert sample.text == "yo" and group.prompt.text == RENDERED
    assert group.prompt.token_ids.tolist() == tokenizer(RENDERED).input_ids


def test_template_that_changes_the_prompt(folder: Path) -> None:
    tokenizer: Any = load_tokenizer(folder)
    tokenizer.chat_template = "{{ messages | length }}{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="dataset:1: the chat template renders"):
        examples(tokenizer, [{"messages": [USER, ANSWER]}])


@pytest.mark.parametrize(
    ("rows", "config", "words"),
    [
        ([{"prompt": "a"}], {}, ["no column looks like a completion", "data.completion_column"]),
        (
            [{"prompt": "a", "answer": "b"}],
            {"completion_column": "anwser"},
            ["completion_column", "Did you mean 'answer'"],
        ),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "a"}], {}, ["dataset:2", "'answer' is missing"]),
        ([{"messages": [USER]}], {}, ["dataset:1", "ends with a turn of 'user'"]),
        ([{"prompt": "a", "answer": "b" * 30}], {}, ["too long", "dataset:1 (32 tokens)", "room for 20"]),
    ],
)
def test_rows_that_are_no_examples(tokenizer: Any, rows: list[Any], config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        examples(tokenizer, rows, window=20, **config)
    assert all(word in str(caught.value) for word in words), caught.value


def test_tokenizer_errors(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path: .*/nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"model\.chat_template: .*none\.jinja is not a file"):
        load_tokenizer(folder, str(tmp_path / "none.jinja"))
    (tmp_path / "bad.jinja").write_text("a\n{% if %}")
    with pytest.raises(UserError, match=r"bad\.jinja, line 2"):
        load_tokenizer(folder, str(tmp_path / "bad.jinja"))


def test_pad_token_falls_back_to_the_end_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<eos>").save_pretrained(tmp_path / "a")
    PreTrainedTokenizerFast(tokenizer_object=base).save_pretrained(tmp_path / "b")
    assert load_tokenizer(tmp_path / "a").pad_token_id == 0
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_tokenizer(tmp_path / "b")


def test_saved_tokenizer_is_used_whatever_the_architecture(tmp_path: Path) -> None:
    """For a Qwen2 config AutoTokenizer puts Qwen2Tokenizer in place of what was saved, and loses characters."""
    make_tiny_model(TinyModel.model_validate({**SMALL.model_dump(), "vocabulary": "digits"}), tmp_path, seed=0)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    ids = [4 + DIGITS_ALPHABET.index(character) for character in "1 ?\n"]
    assert load_tokenizer(tmp_path)("1 ?\n").input_ids == ids


def test_half_a_surrogate_pair_names_its_row(tokenizer):
    rows = [{"prompt": "12="}, {"prompt": "a\ud800b"}]
    with pytest.raises(UserError, match=r"dataset:2: '\\ud800' at character 1 .* surrogate pair"):
        load_prompts(DataConfig(), tokenizer, window=64, max_new_tokens=8, seed=0, rows=rows)


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"from": "martian", "value": "hi"}, "is from 'martian'. Known are human, gpt"),
        ({"role": "user", "content": [{"type": "text", "text": "hi"}]}, "has a list as content"),
        ({"role": "assistant", "content": "hi", "tool_calls": [{"id": 1}]}, "has tool_calls, which are not rendered"),
    ],
)
def test_messages_that_no_template_is_given(turn: dict[str, Any], words: str) -> None:
    read = rows_in_memory([{"messages": [turn]}])
    shape = detect_shape(read, prompt_column=None, completion_column=None, need_completion=False)
    with pytest.raises(UserError, match=f"x:1: message 1 of column 'messages' {words}"):
        prompt_messages(read.rows[0], "x:1", shape)
