"""What of a policy travels to its generators, and under which names.

    full      every weight, always
    adapter   every weight once, then the adapter's
    merged    for generators that know nothing of the adapter: every weight of the plain model once, then those that the
              adapter changes, merged

Knows nothing about how bytes travel (see transport.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from rlft.engines.deepspeed import ZeroEngine
from rlft.models.adapters.attach import own_names
from rlft.models.adapters.merging import merged_names, merged_weights, plain_name
from rlft.models.quantization import dequantized, quantized_layers


class Unsplit:
    """In the place of an engine, for a model that this process holds alone."""

    def gathered(self, parameters: dict[str, Any], names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """See ZeroEngine."""
        yield from ((name, parameters[name].detach()) for name in names)

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[Any]:
        """See ZeroEngine."""
        return nullcontext()


class Published:
    """The weights of one rank's policy."""

    def __init__(self, model: nn.Module, merged: bool) -> None:
        self._model, self._merged = model, merged
        self._parameters: dict[str, Any] = dict(model.named_parameters())
        self._own, self._quantized = own_names(model), quantized_layers(model)
        self.always = tuple(merged_names(model)) if merged else tuple(self._own)  # what every update brings

    def saved_names(self) -> list[str]:
        """Of the parameters that a checkpoint keeps: the adapter's, or all."""
        return self._own

    def entries(self, everything: bool) -> Iterator[tuple[str, Any]]:
        """Names and parameters where weights travel as they are."""
        assert not self._merged
        return ((n, p) for n, p in self._parameters.items() if everything or n in set(self.always))

    def tensors(self, engine: ZeroEngine | Unsplit, everything: bool) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by name. All ranks take part in gathering them."""
        if not self._merged:
            yield from self._gathered(engine, [name for name, _ in self.entries(everything)])
            return
        if everything:
            changed, own = set(self.always), set(self._own)
            rest = [n for n in self._parameters if n not in own and plain_name(n) not in changed]
            yield from ((plain_name(name), tensor) for name, tensor in self._gathered(engine, rest))
        yield from merged_weights(self._model, engine.whole)

    def _gathered(self, engine: ZeroEngine | Unsplit, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors, those of a quantized base dequantized: generators know nothing of it."""
        for name, tensor in engine.gathered(self._parameters, names):
            yield name, dequantized(self._quantized[name]) if name in self._quantized else tensor
