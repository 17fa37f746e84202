"""What is learned of a conversation, token by token, with chat templates as the model families write them."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from rlft.config.data import DataConfig
from rlft.config.load import load_config
from rlft.data.examples import load_examples
from rlft.data.tokenizer import load_tokenizer
from rlft.errors import UserError
from tests.unit.byte_model import folder as folder  # the fixture

TEMPLATES = Path(__file__).with_name("templates")
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<s>", "</s>", "[INST]", "[/INST]", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
]
FAMILIES = {  # end of a sequence, other ends of the model, and the whole of TALK up to the last end
    "chatml": (
        "<|endoftext|>", ["<|im_end|>"],
        "{q}hi<|im_end|>\n{a}yo<|im_end|>\n{q}more<|im_end|>\n{a}bye<|im_end|>",
    ),
    "qwen2": (
        "<|im_end|>", ["<|endoftext|>"],
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "{q}hi<|im_end|>\n{a}yo<|im_end|>\n{q}more<|im_end|>\n{a}bye<|im_end|>",
    ),
    "llama3": ("<|eot_id|>", [], "<|begin_of_text|>{q}hi<|eot_id|>{a}yo<|eot_id|>{q}more<|eot_id|>{a}bye<|eot_id|>"),
    "mistral": ("</s>", [], "<s>[INST] hi[/INST] yo</s>[INST] more[/INST] bye</s>"),
    "gemma": (
        "<eos>", ["<end_of_turn>"],
        "<bos>{q}hi<end_of_turn>\n{a}yo<end_of_turn>\n{q}more<end_of_turn>\n{a}bye<end_of_turn>",
    ),
}  # fmt: skip
HEADS = {
    "llama3": "<|start_header_id|>{}<|end_header_id|>\n\n",
    "gemma": "<start_of_turn>{}\n",
}
TALK = [
    {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "more"}, {"role": "assistant", "content": "bye"},
]  # fmt: skip


def family(folder: Path, name: str, eos: str) -> Any:
    tokenizer: Any = load_tokenizer(folder, str(TEMPLATES / f"{name}.jinja"))
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.eos_token = eos
    return tokenizer


def example(tokenizer: Any, messages: list[dict[str, str]], ends: list[str] = [], **config: Any) -> Any:  # noqa: B006
    data = DataConfig.model_validate(config)
    end = set(tokenizer.convert_tokens_to_ids(ends))
    return load_examples(
        data, tokenizer, window=4096, seed=0, end=end, rows=[{"messages": messages}]
    ).examples[0]  # fmt: skip


def learned(tokenizer: Any, group: Any) -> list[str]:
    """The text of each run of learned tokens."""
    sample = group.samples[0]
    runs = groupby(zip(sample.token_ids.tolist(), sample.loss_mask.tolist(), strict=True), key=lambda item: item[1])
    return [tokenizer.decode([token for token, _ in run]) for is_learned, run in runs if is_learned]


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_and_their_ends_are_learned_and_nothing_else(folder: Path, name: str) -> None:
    eos, ends, whole = FAMILIES[name]
    tokenizer = family(folder, name, eos)
    head = HEADS.get(name, "<|im_start|>{}\n")
    whole = whole.replace("{q}", head.format("user"))
    whole = whole.replace("{a}", head.format("model" if name == "gemma" else "assistant"))
    stop = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>"}.get(name, eos)
    lead = " " if name == "mistral" else ""  # its template puts the blank on the assistant's side
    every = example(tokenizer, TALK, ends)
    assert tokenizer.decode(every.samples[0].token_ids) == whole
    assert learned(tokenizer, every) == [f"{lead}yo{stop}", f"{lead}bye{stop}"]
    last = example(tokenizer, TALK, ends, train_on="last")
    assert last.samples[0].token_ids.tolist() == every.samples[0].token_ids.tolist()
    assert learned(tokenizer, last) == [f"{lead}bye{stop}"]
    assert [turn["content"] for turn in last.prompt.messages] == ["hi", "yo", "more"]
    assert [turn["content"] for turn in every.prompt.messages] == ["hi"]
    everything = example(tokenizer, TALK, ends, train_on="everything").samples[0]
    assert everything.loss_mask.tolist() == [False] + [True] * (len(everything.token_ids) - 1)
    # what stands before the first answer is what a generator is given
    given = tokenizer.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
    assert every.prompt.token_ids.tolist() == tokenizer(given, add_special_tokens=False).input_ids


def test_a_template_whose_end_the_model_does_not_know(folder: Path) -> None:
    """A model stops at its own end only, so that stands behind."""
    tokenizer = family(folder, "chatml", "<|endoftext|>")
    assert learned(tokenizer, example(tokenizer, TALK[:2])) == ["yo<|im_end|>\n<|endoftext|>"]


def test_reasoning_that_a_template_takes_out_of_earlier_answers(folder: Path) -> None:
    tokenizer = family(folder, "qwen3", "<|im_end|>")
    talk = [*TALK[:3], {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nbye"}]
    with pytest.raises(UserError, match=r"dataset:1: .* up to message 2: .* set data\.train_on to last"):
        example(tokenizer, talk)
    group = example(tokenizer, talk, train_on="last")
    assert learned(tokenizer, group) == ["<think>\nwhy\n</think>\n\nbye<|im_end|>"]
    assert group.prompt.text.endswith(
        "<|im_start|>assistant\nyo<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_system_message_that_moves(folder: Path) -> None:
    tokenizer = family(folder, "mistral", "</s>")
    talk = [{"role": "system", "content": "short"}, *TALK]
    with pytest.raises(UserError, match="up to message 3"):
        example(tokenizer, talk)
    assert learned(tokenizer, example(tokenizer, talk, train_on="last")) == [" bye</s>"]


def test_a_role_that_a_template_does_not_know(folder: Path) -> None:
    tokenizer = family(folder, "gemma", "<eos>")
    with pytest.raises(UserError, match="dataset:1: the chat template refuses this conversation: System role"):
        example(tokenizer, [{"role": "system", "content": "short"}, *TALK])


def test_an_assistant_that_opens_is_context(folder: Path) -> None:
    tokenizer = family(folder, "qwen2", "<|im_end|>")
    greeting = {"role": "assistant", "content": "hello"}
    assert learned(tokenizer, example(tokenizer, [greeting, *TALK])) == ["yo<|im_end|>", "bye<|im_end|>"]


def test_the_first_part_of_rlhf_learns_from_conversations_with_its_models_template(folder: Path) -> None:
    """Qwen3's, which renders the last answer otherwise than those before."""
    config = load_config(Path(__file__).parents[2] / "configs" / "rlhf_1_sft.yaml")
    group = example(family(folder, "qwen3", "<|im_end|>"), TALK, **config.data.model_dump(exclude={"path"}))
    assert learned(family(folder, "qwen3", "<|im_end|>"), group) == ["<think>\n\n</think>\n\nbye<|im_end|>"]
