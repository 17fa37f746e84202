"""Loading a model: the same steps for learner, generator and scorer.

Knows nothing about engines or Ray. A model that cannot be loaded is a UserError that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlft.config.adapters import AdapterConfig, num_virtual_tokens
from rlft.config.model import ModelConfig
from rlft.errors import UserError
from rlft.models.adapters.attach import OWN, add_adapter
from rlft.models.adapters.own import read_own
from rlft.models.quantization import dequantize, loading_arguments, settled


def load_model(model: ModelConfig, device: torch.device | str = "cpu", seed: int = 0, steps: int = 0) -> nn.Module:
    """The causal language model at `model.path`, with its adapter around it if one is configured (fresh weights drawn
    from `seed`; for adapters with a schedule, that of a run of `steps`), in `model.dtype` on `device`, in eval mode.
    Its base is quantized if that is configured."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    assert model.path is not None, "model.tiny is made into a folder before anything is loaded"
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(model.path)
        more = loading_arguments(model, device)
        kind: Any = getattr(torch, model.dtype)
        lm: Any = AutoModelForCausalLM.from_pretrained(model.path, config=config, dtype=kind, **more)
    except (OSError, ValueError) as error:
        raise UserError(cannot_load(model.path, error)) from error
    lm = settled(lm, device)
    if model.adapter is not None:
        lm = add_adapter(lm, model.adapter, seed, steps=steps)
    return lm.eval()


def load_checkpoint(model: ModelConfig, checkpoint: Path, device: torch.device | str = "cpu") -> nn.Module:
    """What a run saved in `checkpoint`: full weights, or its adapter on the base that `model` names, which is
    dequantized where it was quantized."""
    if model.adapter is None:
        return dequantize(load_model(model.model_copy(update={"path": str(checkpoint), "tiny": None}), device))
    if model.adapter.type in OWN:
        lm = load_model(model, device)
        read_own(lm, checkpoint)
        return lm
    from peft import PeftModel

    lm: Any = dequantize(load_model(model.model_copy(update={"adapter": None}), device))
    before = {id(p) for p in lm.parameters()}
    lm = PeftModel.from_pretrained(lm, str(checkpoint), autocast_adapter_dtype=False).eval()
    lm.rlft_own = tuple(name for name, p in lm.named_parameters() if id(p) not in before)
    return lm


def window(path: str, adapter: AdapterConfig | None = None) -> int:
    """Longest text of the model at `path` in tokens, from its configuration: its window, less the adapter's virtual
    tokens. Raises UserError when these leave nothing."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(cannot_load(path, error)) from error
    size, virtual = (
        int(getattr(config.get_text_config(), "max_position_embeddings", 1 << 30)),
        num_virtual_tokens(adapter),
    )
    if size - virtual < 2:
        raise UserError(
            f"model.adapter.num_tokens: {virtual} virtual tokens leave no room for text in the model's window of "
            f"{size} tokens; expected at most {size - 2}"
        )
    return size - virtual


@contextmanager
def counting_virtual(adapter: AdapterConfig | None) -> Iterator[None]:
    """Says in a UserError about the window that virtual tokens take a part of it."""
    try:
        yield
    except UserError as error:
        num = num_virtual_tokens(adapter)
        if adapter is None or num == 0 or "window" not in str(error):
            raise
        raise UserError(
            f"{error} The window is the model's less the {num} virtual tokens of model.adapter.type {adapter.type} "
            "(model.adapter.num_tokens)."
        ) from None


def num_logits(path: str) -> int:
    """Tokens that the model at `path` has logits for, from its configuration."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(path)
    return int(config.get_text_config().vocab_size)


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that train."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def cannot_load(path: str, error: Exception) -> str:
    """What to say when the model at `path` cannot be loaded."""
    folder = Path(path)
    if folder.is_dir():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        return f"model.path: {path} cannot be loaded as a Hugging Face model ({error}). The folder holds: {found}"
    return (
        f"model.path: {path} is neither a folder here nor a model that could be fetched "
        f"({str(error).splitlines()[0]}). Check the spelling, or download the model first and give its folder."
    )
