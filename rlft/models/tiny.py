"""Makes a small Qwen3-style model with random weights, and its tokenizer, as a Hugging Face folder.

For runs that must not download anything: the quickstart, smoke runs, tests. Knows nothing about training or Ray;
whoever loads the folder cannot tell it from any other model.

Qwen3 and not Qwen2, because for every folder with a Qwen2 config AutoTokenizer puts Qwen2Tokenizer in the place of the
tokenizer that was saved (transformers 5), and that one normalises Unicode and drops characters that it does not know.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rlft.config.model import TinyModel
from rlft.errors import UserError

DIGITS_ALPHABET = "0123456789+-*/=()[]{}<>.,:;?!_ \nabcdefghijklmnopqrstuvwxyzAB"
"""The 60 characters of the `digits` vocabulary, ids 4 to 63."""

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
FIRST_BYTE_ID = 4  # in the `bytes` vocabulary byte b is token FIRST_BYTE_ID + b

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tiny_model(spec: TinyModel, folder: Path, seed: int) -> None:
    """Write config, safetensors (float32), tokenizer and generation config into `folder`, which is made if need be.

    The weights are a function of `spec` and `seed`; the caller's random state is left as it was. Raises UserError when
    the sizes of `spec` do not fit each other.
    """
    _check_sizes(spec)
    tokenizer, config = _tokenizer(spec), tiny_config(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).float()
    model.generation_config = GenerationConfig(pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_config(spec: TinyModel) -> Qwen3Config:
    """transformers' configuration of such a model."""
    return Qwen3Config(
        vocab_size=len(_tokenizer(spec)),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.hidden_size // spec.num_heads,
        max_position_embeddings=spec.max_length,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        dtype="float32",
    )


def _tokenizer(spec: TinyModel) -> PreTrainedTokenizerFast:
    return digits_tokenizer() if spec.vocabulary == "digits" else bytes_tokenizer()


def digits_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character of DIGITS_ALPHABET; any other character is <unk>."""
    specials = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {symbol: i for i, symbol in enumerate([*specials, *DIGITS_ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, so every text comes back as it was, and a ChatML-like chat template. <|im_end|> ends
    both a turn and a completion."""
    specials = ["<pad>", "<bos>", "<|im_end|>", "<|im_start|>"]
    vocabulary = {symbol: i for i, symbol in enumerate([*specials, *_byte_symbols()])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # words: cached lookups
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(symbol, special=True, normalized=False) for symbol in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _byte_symbols() -> list[str]:
    """The printable character by which byte-level tokenizers write each byte, in the order of the bytes (GPT-2)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    symbols, num_moved = [], 0
    for byte in range(256):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(0x100 + num_moved))
            num_moved += 1
    return symbols


def _check_sizes(spec: TinyModel) -> None:
    if spec.hidden_size % spec.num_heads or (spec.hidden_size // spec.num_heads) % 2:
        raise UserError(
            f"model.tiny.hidden_size is {spec.hidden_size} with num_heads {spec.num_heads}: hidden_size must be an "
            f"even multiple of num_heads, for instance {32 * spec.num_heads}."
        )
    if spec.num_heads % spec.num_kv_heads:
        raise UserError(
            f"model.tiny.num_kv_heads is {spec.num_kv_heads}, which does not divide num_heads {spec.num_heads}: "
            f"take 1 or {spec.num_heads}."
        )
