"""Adapters that put virtual tokens before the text: what peft's encoders make, for packs and for files.

A causal model sees nothing but what stands before a token, so a prefix of every sequence is one of every trunk, which
branches see through their trunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from rlft.config.adapters import AdapterConfig
from rlft.errors import UserError
from rlft.models.attention import Ahead

_SMALL = 0.02  # standard deviation of a fresh prefix


def has_virtual_tokens(model: nn.Module) -> bool:
    """Whether it has an adapter of such a kind around it."""
    settings: Any = getattr(model, "peft_config", {})
    return any(one.is_prompt_learning for one in settings.values())


def ahead_of(model: Any) -> Ahead | None:
    """What the model's adapter puts before the text, with gradient; None where it puts nothing or is turned off."""
    if not has_virtual_tokens(model) or model._adapters_disabled:
        return None
    settings = model.active_peft_config
    made = _made(model.prompt_encoder[model.active_adapter], settings)
    if settings.peft_type != "PREFIX_TUNING":
        return Ahead(len(made), embeddings=made)
    shaped = made.view(len(made), settings.num_layers, 2, settings.num_attention_heads, -1)
    layers = shaped.permute(1, 2, 3, 0, 4)  # [layers, key or value, K, P, D]
    return Ahead(len(made), keys_values=[(pair[0], pair[1]) for pair in layers])


def _made(encoder: Any, settings: Any) -> Tensor:
    """[P, what it makes of a virtual token]. A saved adapter holds just this, and what made it no longer."""
    if settings.inference_mode:
        return encoder.embedding.weight
    return encoder(torch.arange(settings.num_virtual_tokens, device=encoder.embedding.weight.device)[None])[0]


@torch.no_grad()
def start(model: Any, adapter: AdapterConfig) -> None:
    """Where the virtual tokens of a fresh adapter, `prompt` or `prefix`, begin. A prompt begins as tokens: those of the
    adapter's text, or drawn from the vocabulary (Lester et al. 2021, section 3.2). A prefix begins as the keys and
    values that the model makes of the text (Li & Liang 2021, section 7.4); without one as numbers so small that the
    model says nearly what it said: from large ones it writes nonsense, of which no reward teaches it anything."""
    from transformers import DynamicCache

    lm, encoder = model.get_base_model(), model.prompt_encoder[model.active_adapter]
    weight = encoder.embedding.weight
    if adapter.type == "prefix" and adapter.init_text is None:
        weight.copy_(_SMALL * torch.randn(weight.shape))
        return
    ids = _first_tokens(lm, adapter).to(weight.device)
    if adapter.type == "prompt":
        weight.copy_(lm.get_input_embeddings()(ids))
        return
    cache: Any = DynamicCache()  # without the model's settings it keeps all of them also where a window slides
    lm(input_ids=ids[None], past_key_values=cache, use_cache=True)
    pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]  # [2, K, P, D]
    weight.copy_(torch.stack(pairs).permute(3, 0, 1, 2, 4).flatten(1))


def _first_tokens(lm: Any, adapter: AdapterConfig) -> Tensor:
    """int64 [P]"""
    num = adapter.num_tokens
    if adapter.init_text is None:
        return torch.randint(lm.config.get_text_config().vocab_size, (num,))
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(lm.name_or_path)
    ids = tokenizer(adapter.init_text, add_special_tokens=False)["input_ids"]
    if not 0 < len(ids) <= num:
        raise UserError(
            f"model.adapter.init_text: has {len(ids)} tokens for model.adapter.num_tokens {num}; expected 1 to {num}: "
            f"{'set num_tokens to ' + str(len(ids)) + ', or shorten the text' if ids else 'give another text'}"
        )
    return torch.tensor(ids).repeat(-(-num // len(ids)))[:num]


@contextmanager
def with_encoder_of(model: Any, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside it an adapter with virtual tokens has an encoder of whole `tensors` (by the model's names), that peft can
    ask on one rank alone: the model's own, split by ZeRO-3, would wait for the others."""
    if not has_virtual_tokens(model):
        yield
        return
    name, own = model.active_adapter, model.prompt_encoder[model.active_adapter]
    settings = copy(model.active_peft_config)
    settings.prompt_tuning_init = "RANDOM"  # its weights come from `tensors`
    prefix = f"prompt_encoder.{name}."
    with torch.device("meta"):  # draws no random numbers
        twin = type(own)(settings, None) if settings.peft_type == "PROMPT_TUNING" else type(own)(settings)
    mine = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    twin.load_state_dict(mine, assign=True)
    model.prompt_encoder[name] = twin
    try:
        yield
    finally:
        model.prompt_encoder[name] = own
