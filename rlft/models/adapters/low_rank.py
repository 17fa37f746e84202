"""LoRA's layer (Hu et al. 2021, arXiv:2106.09685), for kinds that do more with it than peft's can.

y = W x + s B A x        A [rank, in] drawn, B [out, rank] 0 at first, s the scale
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlft.config.adapters import AdapterConfig, lora_scale
from rlft.models.adapters.own import OwnAdapter, Whole


class LowRank(nn.Module):
    """A linear layer with a low-rank branch beside it."""

    def __init__(self, base: Any, adapter: AdapterConfig) -> None:
        super().__init__()
        self.base_layer, self.scale, self.on = base, lora_scale(adapter), True
        self.dropout = nn.Dropout(adapter.dropout)
        self.lora_A, self.lora_B = new_pair(base, adapter.rank)

    def pair(self) -> tuple[Tensor, Tensor]:
        """The A and B that this layer uses."""
        return self.lora_A, self.lora_B

    def branch(self, x: Tensor) -> Tensor:
        """s B A x"""
        a, b = self.pair()
        return self.scale * F.linear(F.linear(self.dropout(x), a), b)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        return self.base_layer(x) + self.branch(x) if self.on else self.base_layer(x)

    def product(self) -> Tensor:
        """s B A, [out, in]"""
        a, b = self.pair()
        return self.scale * b.detach() @ a.detach()


Layer = TypeVar("Layer", bound=LowRank)


def new_pair(base: Any, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A drawn as peft draws it, and B of zeros."""
    weight = base.weight
    kind = weight.dtype if weight.is_floating_point() else torch.float32
    a = torch.empty(rank, base.in_features, device=weight.device, dtype=kind)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    return nn.Parameter(a), nn.Parameter(torch.zeros(base.out_features, rank, device=weight.device, dtype=kind))


class LowRankAdapter(OwnAdapter, Generic[Layer]):
    """Layers with branches in the places of linear layers."""

    def __init__(self, model: nn.Module, adapter: AdapterConfig, make: Callable[[nn.Linear], Layer]) -> None:
        """`make`: the layer that takes a linear layer's place. Raises ValueError where target_modules fits none."""
        model.requires_grad_(False)
        self.layers: dict[str, Layer] = {}  # by the path of the linear layer
        before = {id(p) for p in model.parameters()}
        for path, linear in linear_targets(model, adapter):
            parent, _, leaf = path.rpartition(".")
            self.layers[path] = make(linear)
            setattr(model.get_submodule(parent), leaf, self.layers[path])
        super().__init__(model, adapter, [name for name, p in model.named_parameters() if id(p) not in before])

    @contextmanager
    def off(self, writing: Whole) -> Iterator[None]:
        """See OwnAdapter."""
        for layer in self.layers.values():
            layer.on = False
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.on = True

    def merged(self, whole: Whole) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """See OwnAdapter."""
        for path, layer in self.layers.items():
            with whole(list(layer.parameters())):
                yield f"{path}.weight", lambda layer=layer: layer.base_layer.weight.detach() + layer.product()


def linear_targets(model: nn.Module, adapter: AdapterConfig) -> list[tuple[str, nn.Linear]]:
    """Path and layer of what model.adapter.target_modules names; "all-linear" leaves the output layer out."""
    wanted, output = adapter.target_modules, getattr(model, "get_output_embeddings", lambda: None)()
    names = [wanted] if isinstance(wanted, str) else wanted
    found = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        named = any(path == name or path.endswith(f".{name}") for name in names)
        if named or (wanted == "all-linear" and module is not output):
            found.append((path, module))
    if not found:
        raise ValueError("no linear layer has such a name")
    return found
