"""Delta-LoRA (Zi et al. 2023, arXiv:2309.02411): the base weight follows the low-rank branch.

    W[t+1] = W[t] + ratio s (B[t+1] A[t+1] - B[t] A[t])        from step delta_start on, behind each update of A and B

The base weights that move are part of the adapter: they travel and are saved. The paper leaves dropout out of the
branch, because the change of BA stands for a gradient of W.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlft.config.adapters import AdapterConfig
from rlft.models.adapters.low_rank import LowRank, LowRankAdapter
from rlft.models.adapters.training import AdapterTraining


class DeltaLora(LowRankAdapter[LowRank]):
    """Layers whose own weight moves too."""

    def __init__(self, model: nn.Module, adapter: AdapterConfig) -> None:
        super().__init__(model, adapter, lambda linear: LowRank(linear, adapter))
        weights = {id(layer.base_layer.weight) for layer in self.layers.values()}
        parameters = dict(model.named_parameters())
        self.names = tuple(n for n, p in parameters.items() if n in set(self.names) or id(p) in weights)

    def training(self) -> AdapterTraining:
        """See OwnAdapter."""
        return _Training(self)


class _Training(AdapterTraining):
    def __init__(self, own: DeltaLora) -> None:
        super().__init__(own.model, own.adapter)
        self._layers = list(own.layers.values())
        self._before: list[tuple[Tensor, Tensor]] = []  # A and B of each layer, before the optimizer's step

    def gradient_is_there(self) -> None:
        """See AdapterTraining."""
        self._before = [(layer.lora_A.detach().clone(), layer.lora_B.detach().clone()) for layer in self._layers]

    @torch.no_grad()
    def stepped(self, step: int) -> dict[str, float]:
        """See AdapterTraining."""
        assert self.adapter is not None
        before, self._before = self._before, []
        if step < self.adapter.delta_start:
            return {"adapter/base_change": 0.0}
        square = 0.0
        for layer, (a, b) in zip(self._layers, before, strict=True):
            change = self.adapter.delta_ratio * (layer.product() - layer.scale * b @ a)
            layer.base_layer.weight += change
            square += float(change.square().sum())
        return {"adapter/base_change": square**0.5}
