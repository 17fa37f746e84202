"""Loading a model: the same steps for learner, generator and scorer.

Knows nothing about engines or Ray. A model that cannot be loaded is a UserError that says what to do.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlft.config.model import LoraAdapter, ModelConfig
from rlft.errors import UserError


def load_model(model: ModelConfig, device: torch.device | str = "cpu", seed: int = 0) -> nn.Module:
    """The causal language model at `model.path`, with its adapter around it if one is configured (fresh weights drawn
    from `seed`), in `model.dtype` on `device`, in eval mode."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    assert model.path is not None, "model.tiny is made into a folder before anything is loaded"
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(model.path)
        lm: Any = AutoModelForCausalLM.from_pretrained(model.path, config=config, dtype=getattr(torch, model.dtype))
    except (OSError, ValueError) as error:
        raise UserError(cannot_load(model.path, error)) from error
    lm.to(device)
    if model.adapter is not None:
        lm = add_adapter(lm, model.adapter, seed)
    return lm.eval()


def add_adapter(
    lm: nn.Module, adapter: LoraAdapter, seed: int, task: str = "CAUSAL_LM", names: Sequence[str] = ("default",)
) -> nn.Module:
    """Wrap a model so that only adapters train (and with task SEQ_CLS the head). `names`: of as many of them, of which
    the first is in use. Raises UserError when the target modules match nothing."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha,  # pyright: ignore[reportArgumentType]  # peft divides, so any number works
        lora_dropout=adapter.dropout, target_modules=adapter.target_modules,
        task_type=task,
    )  # type: ignore[arg-type]  # fmt: skip
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            wrapped = get_peft_model(lm, settings, names[0])  # type: ignore[arg-type]
            for name in names[1:]:
                wrapped.add_adapter(name, settings)
    except ValueError as error:
        leaves = sorted({name.rsplit(".", 1)[-1] for name, m in lm.named_modules() if isinstance(m, nn.Linear)})
        raise UserError(
            f"model.adapter.target_modules: {adapter.target_modules!r} fits no module of this model. Its linear layers "
            f"are named: {', '.join(leaves)}. Use some of these, or all-linear. ({error})"
        ) from error
    finally:
        torch.set_rng_state(state)
    base_dtype = next(lm.parameters()).dtype
    for parameter in wrapped.parameters():  # peft makes adapters float32; every role holds them in the model's type
        if parameter.requires_grad:
            parameter.data = parameter.data.to(base_dtype)
    return wrapped


def load_checkpoint(model: ModelConfig, checkpoint: Path, device: torch.device | str = "cpu") -> nn.Module:
    """What a run saved in `checkpoint`: full weights, or its adapter on the base that `model` names."""
    if model.adapter is None:
        return load_model(model.model_copy(update={"path": str(checkpoint), "tiny": None}), device)
    from peft import load_peft_weights, set_peft_model_state_dict

    lm = load_model(model, device)
    set_peft_model_state_dict(lm, load_peft_weights(str(checkpoint), device=str(device)))
    return lm


def window(path: str) -> int:
    """Longest sequence of the model in tokens, from its configuration."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(cannot_load(path, error)) from error
    return int(getattr(config.get_text_config(), "max_position_embeddings", 1 << 30))


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
