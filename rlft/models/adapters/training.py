"""What some kinds of adapter need in each update, besides a gradient: learning rates of their own, a penalty, a
schedule. Knows nothing about losses or engines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlft.config.adapters import AdapterConfig


class AdapterTraining:
    """Nothing, for kinds that are trained as any weights are."""

    def __init__(self, model: nn.Module, adapter: AdapterConfig | None) -> None:
        self.model: Any = model
        self.adapter = adapter

    def rates(self) -> dict[str, float]:
        """By parameter its learning rate as a part of the run's; 1 where it is not named."""
        return {}

    def penalty(self) -> Tensor | None:
        """What is added to the loss of each update, once."""
        return None

    def gradient_is_there(self) -> None:
        """Before the optimizer steps: `p.grad` is the update's, averaged over ranks (ZeRO stage 0)."""

    def stepped(self, step: int) -> dict[str, float]:
        """After the optimizer has made 0-based `step`. Metrics."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, besides parameters."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Back to what `state` gave."""


class LoraPlus(AdapterTraining):
    """B learns faster than A (Hayou et al. 2024, arXiv:2402.12354)."""

    def rates(self) -> dict[str, float]:
        """See AdapterTraining."""
        assert self.adapter is not None
        return {n: self.adapter.lr_ratio for n, _ in self.model.named_parameters() if ".lora_B." in n}


class AdaLora(AdapterTraining):
    """Ranks go where they matter (Zhang et al. 2023, arXiv:2303.10512): peft's allocator, driven from outside because
    the loss is not the model's own, and because the schedule counts steps of the run, which may have several updates or
    none that is applied. What matters is seen in the first update of a step."""

    def __init__(self, model: nn.Module, adapter: AdapterConfig | None) -> None:
        super().__init__(model, adapter)
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._step = -1

    @property
    def _allocator(self) -> Any:
        return self.model.base_model.rankallocator

    def penalty(self) -> Tensor | None:
        """The factors' distance from orthogonality: mean over P and Q of |P P' - I|, as peft has it."""
        assert self.adapter is not None
        parts = []
        for name, p in self.model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                products = p @ p.T if ".lora_A." in name else p.T @ p
                parts.append(torch.linalg.norm(products - torch.eye(len(products), device=p.device, dtype=p.dtype)))
        return self.adapter.orthogonality * torch.stack(parts).mean() if self.adapter.orthogonality else None

    def gradient_is_there(self) -> None:
        """See AdapterTraining. The optimizer's step takes them away."""
        trained = [p for p in self.model.parameters() if p.requires_grad and p.grad is not None]
        self._gradients = {p: p.grad.clone() for p in trained}

    def stepped(self, step: int) -> dict[str, float]:
        """See AdapterTraining."""
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient
        self._allocate(step + 1, first=step != self._step)
        self._step = step
        for parameter in self._gradients:
            parameter.grad = None
        self._gradients = {}
        kept = [int((p != 0).sum()) for n, p in self.model.named_parameters() if ".lora_E." in n]
        return {"adapter/mean_rank": sum(kept) / len(kept)}

    def _allocate(self, now: int, first: bool) -> None:
        """peft's `update_and_allocate`, which expects each step once: the one that decides for good above all."""
        settings, allocator = self.model.peft_config["default"], self._allocator
        end = settings.total_step - settings.tfinal
        if now >= end and settings.rank_pattern and not allocator.ipt:  # decided, and the importances are gone
            allocator.mask_using_rank_pattern(self.model.base_model.model, settings.rank_pattern)
        elif now >= end:
            if not allocator.ipt:
                allocator.update_ipt(self.model.base_model.model)
            self.model.base_model.update_and_allocate(end)
        elif first:
            self.model.base_model.update_and_allocate(now)

    def state(self) -> dict[str, Any]:
        """See AdapterTraining."""
        allocator = self._allocator
        parts = {name: getattr(allocator, name) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        return {**parts, "rank_pattern": self.model.peft_config["default"].rank_pattern}

    def restore(self, state: dict[str, Any]) -> None:
        """See AdapterTraining."""
        self.model.peft_config["default"].rank_pattern = state["rank_pattern"]
        for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            setattr(self._allocator, name, dict(state[name]))


_KINDS: dict[str, type[AdapterTraining]] = {"lora_plus": LoraPlus, "adalora": AdaLora}


def adapter_training(model: nn.Module, adapter: AdapterConfig | None) -> AdapterTraining:
    """What the configured kind needs."""
    own: Any = getattr(model, "rlft_adapter", None)  # a kind of ours: see own.py
    if own is not None:
        return own.training()
    kind = AdapterTraining if adapter is None else _KINDS.get(adapter.type, AdapterTraining)
    return kind(model, adapter)
