"""What a model with an adapter amounts to as a plain model. Knows nothing about who asks."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from rlft.models.adapters.own import Whole, alone, own_adapter
from rlft.models.quantization import plain_layer, quantized_layers

_PREFIX = "base_model.model."


def plain_name(name: str) -> str:
    """A parameter's name in the model without the adapter around it."""
    return name.removeprefix(_PREFIX).replace(".base_layer.", ".")


def merged_names(model: nn.Module) -> list[str]:
    """Plain names of the weights that the adapter changes, in the order of `merged_weights`."""
    own = own_adapter(model)
    if own is not None:
        return [name for name, _ in own.merged(alone)]
    return [name for path, layer in _layers(model) for name in _names(path, layer)]


@torch.no_grad()
def merged_weights(model: nn.Module, whole: Whole = alone) -> Iterator[tuple[str, Tensor]]:
    """Plain name and merged weight of each weight that the adapter changes, one layer at a time. The model itself is
    left as it was, to the last bit. `whole`: for weights that are split over ranks."""
    own = own_adapter(model)
    if own is not None:
        yield from ((name, make()) for name, make in own.merged(whole))
        return
    for path, layer in _layers(model):
        with whole(list(layer.parameters())):
            yield from zip(_names(path, layer), _merged(layer), strict=True)


def plain_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Plain name and weight of everything in the model, merged where the adapter changes it. What is the adapter's own
    has names that the plain model does not know."""
    changed = set(merged_names(model))
    yield from ((plain_name(n), p.detach()) for n, p in model.named_parameters() if plain_name(n) not in changed)
    yield from merged_weights(model)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that peft has put in the place of the model's own."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer"):
            yield path, module


def _names(path: str, layer: Any) -> list[str]:
    return [plain_name(f"{path}.{name}") for name, _ in layer.get_base_layer().named_parameters()]


def _merged(layer: Any) -> list[Tensor]:
    copies = getattr(layer, "ln_tuning_layers", None)
    if copies is not None:  # peft exchanges the layers
        return [p.detach().clone() for p in copies[layer.active_adapters[0]].parameters()]
    if quantized_layers(layer):
        return _merged_into_plain(layer)
    parameters = list(layer.get_base_layer().parameters())
    kept = [p.data for p in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.clone()
    try:
        layer.merge()
        return [p.data for p in parameters]
    finally:
        layer.merged_adapters.clear()
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data


def _merged_into_plain(layer: Any) -> list[Tensor]:
    """The same for a quantized layer: into its dequantized weight, where peft would quantize the sum again or cannot
    merge at all. peft has a class for each kind of layer; the one for plain layers does it, with this one's weights."""
    kind, base = type(layer), layer.base_layer
    backend = getattr(layer, "quantization_backend", None)
    plain = plain_layer(base)
    layer.base_layer = plain
    try:
        layer.__class__ = _class_for_plain(kind)
        if backend is not None:
            layer.quantization_backend = None
        if not hasattr(layer, "fan_in_fan_out"):  # some of peft's classes for quantized layers do without
            layer.fan_in_fan_out = False
        layer.merge()
        return [p.data for p in plain.parameters()]
    finally:
        layer.merged_adapters.clear()
        layer.base_layer, layer.__class__ = base, kind
        if backend is not None:
            layer.quantization_backend = backend


def _class_for_plain(kind: type) -> type:
    """Of peft's, beside lora.bnb.Linear4bit: lora.layer.Linear. Newer kinds of adapter have one class for both."""
    package, _, module = kind.__module__.rpartition(".")
    if module != "bnb":
        return kind
    name = kind.__name__.removesuffix("4bit").removesuffix("8bitLt")
    return getattr(import_module(f"{package}.layer"), name)
