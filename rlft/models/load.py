"""Loading a model: the same steps for learner, generator and scorer.

Knows nothing about engines or Ray. A model that cannot be loaded is a UserError that says what to do.
"""

from __future__ import annotations

import json
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
from rlft.models.adapters.reading import read_peft
from rlft.models.base_values import base_values, check_base
from rlft.models.quantization import dequantize, loading_arguments, settled

_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def load_model(model: ModelConfig, device: torch.device | str = "cpu", seed: int = 0, steps: int = 0) -> nn.Module:
    """The causal language model at `model.path`, with its adapter around it if one is configured (fresh weights drawn
    from `seed`; for adapters with a schedule, that of a run of `steps`), in `model.dtype` on `device`, in eval mode.
    Its base is quantized if that is configured."""
    assert model.path is not None, "model.tiny is made into a folder before anything is loaded"
    check_language_model(model.path)
    lm = settled(_load_whole(model, device), device)
    if model.adapter is not None:
        values = base_values(lm)
        lm = add_adapter(lm, model.adapter, seed, steps=steps)
        lm.rlft_base_values = values  # type: ignore[assignment]
    return lm.eval()


def _load_whole(model: ModelConfig, device: torch.device | str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would report as missing is refused below
    loader: Any = AutoModelForCausalLM
    path, dtype = str(model.path), getattr(torch, model.dtype)
    try:
        more = loading_arguments(model, device)
        lm, info = loader.from_pretrained(path, dtype=dtype, output_loading_info=True, **more)
    except (OSError, ValueError) as error:
        raise UserError(cannot_load(path, error)) from error
    finally:
        logging.set_verbosity(level)
    if info["missing_keys"]:  # tied weights are not among them
        missing = ", ".join(sorted(info["missing_keys"])[:4])
        raise UserError(
            f"model.path: {path} has no weights for {missing}, so what it says would be random. Expected a whole "
            "causal language model."
        )
    return lm


def check_language_model(path: str, key: str = "model.path") -> None:
    """Raises UserError where the configuration at `path` says that the model there is of another kind: a classifier, a
    reward model, or a body without an output layer. transformers and vLLM would load some of those without a word.
    `key` of our configuration that names it, for the message."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    config = read_config(path)
    body, speaks = MODEL_MAPPING_NAMES.get(config.model_type), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    for kind in config.architectures or []:
        if (kind == body and kind != speaks) or kind.endswith(_CLASSIFIERS):
            raise UserError(
                f"{key}: {path} is a {kind}, which says nothing: a reward model, a classifier or a body without an "
                "output layer. Expected a causal language model, such as the checkpoint of a run with algorithm.type "
                "sft, or what that model was made from."
            )


def read_config(path: str) -> Any:
    """transformers' configuration of the model at `path`. Raises UserError when there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(cannot_load(path, error)) from error


def load_checkpoint(model: ModelConfig, checkpoint: Path, device: torch.device | str = "cpu") -> nn.Module:
    """What a run saved in `checkpoint`: full weights, or its adapter on the base that `model` names, which is
    dequantized where it was quantized."""
    if model.adapter is None:
        return dequantize(load_model(model.model_copy(update={"path": str(checkpoint), "tiny": None}), device))
    if model.adapter.type in OWN:
        lm = load_model(model, device)
        check_base(lm.rlft_base_values, str(model.path), checkpoint)  # type: ignore[arg-type]
        read_own(lm, checkpoint)
        return lm
    lm: Any = load_model(model.model_copy(update={"adapter": None}), device)
    values, lm = base_values(lm), dequantize(lm)
    before = {id(p) for p in lm.parameters()}
    lm = read_peft(lm, checkpoint)
    check_base(values, str(model.path), checkpoint)
    lm.rlft_own = tuple(name for name, p in lm.named_parameters() if id(p) not in before)
    return lm


def window(path: str, adapter: AdapterConfig | None = None) -> int:
    """Longest text of the model at `path` in tokens, from its configuration: its window, less the adapter's virtual
    tokens. Raises UserError when these leave nothing."""
    size = int(getattr(read_config(path).get_text_config(), "max_position_embeddings", 1 << 30))
    virtual = num_virtual_tokens(adapter)
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
    return int(read_config(path).get_text_config().vocab_size)


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that train."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def cannot_load(path: str, error: Exception) -> str:
    """What to say when the model at `path` cannot be loaded."""
    folder = Path(path)
    if (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
        return (
            f"model.path: {path} is an adapter of {base}, not a whole model. `rlft export RUN --to DIR --merge` makes "
            "one of a run's adapter and its base; give that folder"
        )
    if folder.is_dir():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        return f"model.path: {path} cannot be loaded as a Hugging Face model ({error}). The folder holds: {found}"
    return (
        f"model.path: {path} is neither a folder here nor a model that could be fetched "
        f"({str(error).splitlines()[0]}). Check the spelling, or download the model first and give its folder."
    )
