"""Bottleneck adapters: two small layers behind a sublayer, with a residual connection around them.

    y = h + up(activation(down(h)))        h: what the sublayer gives, before it is added to the stream

houlsby (Houlsby et al. 2019, arXiv:1902.00751): behind attention and behind the feed-forward layer; pfeiffer (Pfeiffer
et al. 2020, arXiv:2005.00247): behind the feed-forward layer alone. `up` is 0 at first, so that the model is what it
was (Houlsby draws it near 0). They stand in a row with the layers and not beside them, so they cannot be merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from rlft.config.adapters import AdapterConfig
from rlft.errors import UserError
from rlft.models.adapters.own import OwnAdapter, Whole

_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "temporal_block")
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "feedforward")
_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_STD = 0.01  # of the fresh matrix, as Houlsby has it


class Bottleneck(nn.Module):
    """Down, activation, up, and what came in."""

    def __init__(self, width: int, size: int, activation: str) -> None:
        super().__init__()
        self.down, self.activation, self.up = nn.Linear(width, size), _ACTIVATIONS[activation](), nn.Linear(size, width)
        nn.init.normal_(self.down.weight, std=_STD)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [..., width]"""
        return hidden + self.up(self.activation(self.down(hidden)))


class Bottlenecks(OwnAdapter):
    """In every layer of a decoder."""

    def __init__(self, model: nn.Module, adapter: AdapterConfig) -> None:
        model.requires_grad_(False)
        self._on = True
        config: Any = model.config
        width, before = config.get_text_config().hidden_size, set(dict(model.named_parameters()))
        kinds = (_ATTENTION, _FEED_FORWARD) if adapter.placement == "houlsby" else (_FEED_FORWARD,)
        like = next(p for p in model.parameters() if p.is_floating_point())
        for layer in decoder_layers(model):
            for names in kinds:
                sublayer = _sublayer(layer, names)
                bottleneck = Bottleneck(width, adapter.bottleneck_size, adapter.activation).to(like.device, like.dtype)
                sublayer.bottleneck = bottleneck
                sublayer.register_forward_hook(self._behind)
        super().__init__(model, adapter, [name for name, _ in model.named_parameters() if name not in before])

    def _behind(self, sublayer: Any, args: Any, output: Any) -> Any:
        if not self._on:
            return output
        if isinstance(output, tuple):
            return (sublayer.bottleneck(output[0]), *output[1:])
        return sublayer.bottleneck(output)

    @contextmanager
    def off(self, writing: Whole) -> Iterator[None]:
        """See OwnAdapter."""
        self._on = False
        try:
            yield
        finally:
            self._on = True


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's layers. Raises UserError when it is not built of such."""
    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and _children(module[0], _FEED_FORWARD):
            return list(module)
    raise UserError(
        f"model.adapter.type: {type(model).__name__} has no list of {count} layers with a feed-forward part named "
        f"{', '.join(_FEED_FORWARD)}, so bottlenecks have no place in it; use lora"
    )


def _children(layer: nn.Module, names: tuple[str, ...]) -> list[Any]:
    return [child for name in names if (child := getattr(layer, name, None)) is not None]


def _sublayer(layer: nn.Module, names: tuple[str, ...]) -> Any:
    found = _children(layer, names)
    if not found:
        parts = ", ".join(name for name, _ in layer.named_children())
        raise UserError(
            f"model.adapter.type: a layer of this model has no part named {', '.join(names)}, behind which a "
            f"bottleneck could stand. Its parts: {parts}. Use model.adapter.placement pfeiffer, or lora"
        )
    return found[0]
