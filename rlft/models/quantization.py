"""A base in fewer bits, by bitsandbytes: loading it, and what its weights amount to.

The bits only hold the weights: every pass computes with the dequantized weights in model.dtype, in training and
otherwise, so what a generator draws with dequantized weights is what the learner says. Knows nothing about adapters or
engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rlft.config.model import ModelConfig, QuantizationConfig
from rlft.errors import UserError

_FILE = "quantization_config.json"  # beside an adapter: transformers' BitsAndBytesConfig of the base it was trained on
_PARTS = ("bitsandbytes", "accelerate")


def check_quantization(model: ModelConfig, device: torch.device | str) -> None:
    """Raise UserError when the base cannot be quantized here: a package is missing, or does not work on `device`."""
    if model.quantization is None:
        return
    kind = model.quantization.type
    for package in _PARTS:
        if find_spec(package) is None:
            raise UserError(
                f"model.quantization: {kind} needs {package}, which is not installed here: pip install {package} "
                "(rlft's own requirements bring it on Linux), or take model.quantization out"
            )
    try:
        _try(kind, torch.device(device))
    except Exception as error:  # whatever a library without a backend does
        raise UserError(
            f"model.quantization: the bitsandbytes that is installed here cannot do {kind} on "
            f"{torch.device(device).type} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})."
            " Install a build with a backend for it (pip install -U bitsandbytes), or take model.quantization out"
        ) from error


def _try(kind: str, device: torch.device) -> None:
    import bitsandbytes.functional as bnb

    weight = torch.linspace(-1, 1, 4096, device=device).view(64, 64)
    if kind == "nf4":
        packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        found, limit = bnb.dequantize_4bit(packed, state), 0.2
    else:
        rows, scales, _ = bnb.int8_vectorwise_quant(weight.half())
        found, limit = bnb.int8_vectorwise_dequant(rows, scales), 0.01
    if not bool(((found - weight).abs() < limit).all()):
        raise RuntimeError("it does not give back what was quantized")


def loading_arguments(model: ModelConfig, device: torch.device | str) -> dict[str, Any]:
    """What from_pretrained is told besides; nothing for a base that is not quantized. Raises UserError as
    check_quantization does."""
    if model.quantization is None:
        return {}
    check_quantization(model, device)
    return {"quantization_config": _library_config(model.quantization, model.dtype), "device_map": {"": device}}


def _library_config(quantization: QuantizationConfig, dtype: str) -> Any:
    from transformers import BitsAndBytesConfig

    if quantization.type == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantization.double,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def settled(lm: Any, device: torch.device | str) -> Any:
    """The model on `device`. One that was loaded with loading_arguments is there; its quantized layers are given a pass
    of ours in the place of bitsandbytes', which has two traps:

    In 4 bits on CPUs it packs weights anew in passes that are only looked at. Afterwards gradients of all that is below
    are gone without a word, and what is merged is garbage.
    In 8 bits it rounds activations too, on GPUs always and on CPUs in passes that are only looked at, so that learner
    and generator, or two passes of the learner, would not agree (docs/adapters.md has by how much).
    """
    if getattr(getattr(lm, "hf_quantizer", None), "pre_quantized", False):
        raise UserError(
            f"model.path: {lm.config._name_or_path} is stored in fewer bits already "
            f"({lm.hf_quantizer.quantization_config.quant_method}), which generators and exports cannot use; expected "
            "the original model, and model.quantization where its base is to be quantized"
        )
    layers = quantized_layers(lm)
    if not layers:
        return lm.to(device)
    if torch.device(device).type == "cpu":
        _unmap(lm, layers)
    for layer in layers.values():
        layer.compute_dtype = lm.dtype
        if not _is_4bit(layer):
            layer.init_8bit_state()
            layer.state.CB = None  # a second reference to the weight, which ZeRO-3 could not free
        layer.forward = MethodType(_forward, layer)
    return lm


def _unmap(lm: nn.Module, layers: dict[str, Any]) -> None:
    """Give what is not quantized memory of its own. It lies in the files as transformers mapped them, of which every
    page that was read to be quantized would stay in memory for as long as one weight does."""
    for name, parameter in lm.named_parameters():
        if name not in layers:
            parameter.data = parameter.data.clone()


class _Linear(torch.autograd.Function):
    """x W' + b, where W is dequantized for each pass and kept by none. W has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: Any) -> Tensor:  # type: ignore[override]
        ctx.layer = layer
        return nn.functional.linear(x, dequantized(layer), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return gradient @ dequantized(ctx.layer), of_bias, None


def _forward(layer: Any, x: Tensor) -> Tensor:
    """Of a quantized layer: as a plain layer of compute_dtype would."""
    return _Linear.apply(x.to(layer.compute_dtype), layer.bias, layer)  # type: ignore[return-value]


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that bitsandbytes holds, by the name of their weight."""
    return {f"{path}.weight": m for path, m in model.named_modules() if _is_quantized(m)}


def _is_quantized(module: nn.Module) -> bool:
    kind = type(module)  # by name: without such layers bitsandbytes need not be there
    return kind.__module__.startswith("bitsandbytes.") and kind.__name__ in ("Linear4bit", "Linear8bitLt")


def _is_4bit(layer: Any) -> bool:
    return type(layer).__name__ == "Linear4bit"


@torch.no_grad()
def dequantized(layer: Any) -> Tensor:
    """What a quantized layer's weight amounts to, [out, in] in the type that it computes in."""
    if not _is_4bit(layer):
        return (layer.weight.data * (layer.state.SCB / 127)[:, None]).to(layer.compute_dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(layer.compute_dtype)


def plain_layer(layer: Any) -> nn.Linear:
    """A linear layer of its own memory that does what a quantized one does."""
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(dequantized(layer), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return plain


def dequantize(lm: Any) -> Any:
    """The model with plain layers in the place of quantized ones: what generators hold, and what others load."""
    layers = quantized_layers(lm)
    for name, layer in layers.items():
        lm.set_submodule(name.removesuffix(".weight"), plain_layer(layer))
    if layers:
        lm.hf_quantizer.remove_quantization_config(lm)
        lm.is_loaded_in_4bit = lm.is_loaded_in_8bit = False
    return lm


def scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What belongs to the packed weights and is no parameter, by name."""
    for name, layer in quantized_layers(model).items():
        parts = layer.weight.quant_state.as_dict() if _is_4bit(layer) else {"SCB": layer.state.SCB}
        yield from ((f"{name}.{k}", torch.as_tensor(v)) for k, v in parts.items() if isinstance(v, Tensor | float))


def write_quantization(model: ModelConfig, folder: Path) -> None:
    """Beside an adapter, how the base was quantized that it was trained on."""
    if model.quantization is not None:
        _library_config(model.quantization, model.dtype).to_json_file(folder / _FILE)


def read_quantization(folder: str | Path) -> QuantizationConfig | None:
    """What write_quantization left there."""
    path = Path(folder, _FILE)
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["load_in_8bit"]:
        return QuantizationConfig(type="int8")
    return QuantizationConfig(type="nf4", double=found["bnb_4bit_use_double_quant"])
