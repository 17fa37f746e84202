"""The tiny model that a run makes for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlft.config.model import TinyModel
from rlft.data.tokenizer import load_tokenizer
from rlft.errors import UserError
from rlft.models.tiny import DIGITS_ALPHABET, make_tiny_model

SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 16}


def tiny(**values: object) -> TinyModel:
    return TinyModel.model_validate({**SMALL, **values})


@pytest.mark.parametrize(("vocabulary", "size"), [("digits", 64), ("bytes", 260)])
def test_loads_by_the_auto_classes(tmp_path: Path, vocabulary: str, size: int) -> None:
    make_tiny_model(tiny(vocabulary=vocabulary, max_length=40), tmp_path / "new" / "model", seed=0)
    folder = tmp_path / "new" / "model"
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == size
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 40
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id) == (0, 1)
    logits = model(torch.tensor([tokenizer("12=").input_ids])).logits
    assert logits.shape == (1, 3, size)
    assert torch.isfinite(logits).all()


def test_weights_are_a_function_of_the_seed_and_leave_the_random_state(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        make_tiny_model(tiny(), tmp_path / name, seed)
    assert torch.equal(before, torch.get_rng_state())
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_digits_is_one_token_per_character(tmp_path: Path) -> None:
    make_tiny_model(tiny(vocabulary="digits"), tmp_path, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(DIGITS_ALPHABET) == len(set(DIGITS_ALPHABET)) == 60
    assert tokenizer(DIGITS_ALPHABET).input_ids == list(range(4, 64))
    assert tokenizer.decode(tokenizer(DIGITS_ALPHABET).input_ids) == DIGITS_ALPHABET
    assert tokenizer("0é").input_ids == [4, 3]  # <unk>


@pytest.mark.parametrize(
    "text",
    ["plain", "  two  spaces\n\n\ttab ", "e\u0301 and \u00e9", "日本語 🙂", "\x00\x01\x7f", "don't 12 34!", "\u2028"],
)
def test_bytes_gives_every_text_back(tmp_path: Path, text: str) -> None:
    make_tiny_model(tiny(vocabulary="bytes"), tmp_path, seed=0)
    for tokenizer in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        ids = tokenizer(text).input_ids
        assert ids == [4 + byte for byte in text.encode()]
        assert tokenizer.decode(ids) == text


def test_bytes_chat_template(tmp_path: Path) -> None:
    make_tiny_model(tiny(vocabulary="bytes"), tmp_path, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer("<|im_start|>a<|im_end|>").input_ids == [3, 4 + ord("a"), 2]


@pytest.mark.parametrize(
    "values", [{"hidden_size": 17}, {"hidden_size": 10, "num_heads": 2}, {"num_heads": 4, "num_kv_heads": 3}]
)
def test_sizes_that_do_not_fit(tmp_path: Path, values: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"model\.tiny\..*num_heads"):
        make_tiny_model(tiny(**values), tmp_path, seed=0)
