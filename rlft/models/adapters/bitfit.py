"""BitFit (Ben Zaken et al. 2021, arXiv:2106.10199): only biases train. They are weights of the plain model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlft.config.adapters import AdapterConfig
from rlft.errors import UserError
from rlft.models.adapters.own import OwnAdapter, Whole


class BitFit(OwnAdapter):
    """All parameters named bias: of linear layers and of normalisation layers."""

    def __init__(self, model: nn.Module, adapter: AdapterConfig) -> None:
        named = [(name, p) for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not named:
            raise UserError(
                f"model.adapter.type: bitfit trains biases, and {type(model).__name__} has none (most Llama, Qwen3 and "
                "Mistral models are without). Take a model with biases (Qwen2, GPT-2, Phi) or another kind: lora, "
                "ln_tuning"
            )
        super().__init__(model, adapter, [name for name, _ in named])
        model.requires_grad_(False)
        self._biases = [p for _, p in named]
        self._initial = [p.detach().clone() for p in self._biases]
        for bias in self._biases:
            bias.requires_grad_(True)

    @contextmanager
    def off(self, writing: Whole) -> Iterator[None]:
        """With the biases as they were. The trained ones come back to the last bit."""
        with writing(self._biases), torch.no_grad():
            kept = [p.detach().clone() for p in self._biases]
            self._put(self._initial)
        try:
            yield
        finally:
            with writing(self._biases), torch.no_grad():
                self._put(kept)

    def _put(self, values: list[Tensor]) -> None:
        for bias, value in zip(self._biases, values, strict=True):
            bias.copy_(value)

    def merged(self, whole: Whole) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """See OwnAdapter: the biases themselves."""
        for name, bias in zip(self.names, self._biases, strict=True):
            with whole([bias]):
                yield name, bias.detach().clone
