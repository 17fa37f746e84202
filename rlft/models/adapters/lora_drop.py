"""LoRA-drop (Zhou et al. 2024, arXiv:2402.07721): own LoRAs for layers whose branch does much, one LoRA for the others.

For the first `sample_steps` steps every layer trains its own A and B, and the squared size of what its branch gives is
summed over all tokens: g = sum over x of |s B A x|^2. Then, among layers of the same name (whose matrices have the same
sizes), the largest g that make up `keep_share` of the sum keep their own; the others share one LoRA, which begins anew.

The paper measures on a sample of the data first and then trains; here training goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlft.config.adapters import AdapterConfig
from rlft.errors import UserError
from rlft.models.adapters.low_rank import LowRank, LowRankAdapter, new_pair
from rlft.models.adapters.training import AdapterTraining


class Family(nn.Module):
    """What layers of the same name and size share."""

    def __init__(self, like: nn.Linear, adapter: AdapterConfig, paths: Sequence[str]) -> None:
        super().__init__()
        self.paths = tuple(paths)
        self.lora_A, self.lora_B = new_pair(like, adapter.rank)
        own = torch.ones(len(paths), device=like.weight.device)
        self.own = nn.Parameter(own, requires_grad=False)  # f32 [layers], 1: has its own; travels and is saved


class DropLayer(LowRank):
    """A layer that may come to use its family's pair."""

    def __init__(self, base: nn.Linear, adapter: AdapterConfig) -> None:
        super().__init__(base, adapter)
        self.measured: Tensor | None = None  # f64, the sum so far; None: nothing is measured
        self._shared: list[Family] = []  # in a list: the family is registered elsewhere

    def share(self, family: Family | None) -> None:
        """Use the family's pair, or with None its own."""
        self._shared = [] if family is None else [family]

    @property
    def shares(self) -> bool:
        """Whether it uses its family's pair."""
        return bool(self._shared)

    def pair(self) -> tuple[Tensor, Tensor]:
        """See LowRank."""
        return (self._shared[0].lora_A, self._shared[0].lora_B) if self._shared else (self.lora_A, self.lora_B)

    def branch(self, x: Tensor) -> Tensor:
        """See LowRank."""
        given = super().branch(x)
        if self.training and self.measured is not None:
            self.measured += given.detach().double().square().sum()
        return given


class LoraDrop(LowRankAdapter[DropLayer]):
    """All layers, and what they may come to share."""

    def __init__(self, model: nn.Module, adapter: AdapterConfig) -> None:
        super().__init__(model, adapter, lambda linear: DropLayer(linear, adapter))
        members: dict[str, list[str]] = {}
        for path, layer in self.layers.items():
            out_size, in_size = layer.base_layer.weight.shape
            members.setdefault(f"{path.rpartition('.')[2]}_{out_size}x{in_size}", []).append(path)
        self.families = {key: paths for key, paths in members.items() if len(paths) > 1}
        if not self.families:
            raise UserError(
                "model.adapter.type: lora_drop makes layers of the same name share a LoRA, but no two of those that "
                f"model.adapter.target_modules names do: {', '.join(self.layers)}. Use lora"
            )
        made = {k: Family(self.layers[paths[0]].base_layer, adapter, paths) for k, paths in self.families.items()}
        model.lora_shared = nn.ModuleDict(made)  # type: ignore[assignment]
        self.shared = made
        self.names += tuple(f"lora_shared.{key}.{name}" for key in made for name in ("lora_A", "lora_B", "own"))

    def loaded(self) -> None:
        """See OwnAdapter: who shares is read from the weights."""
        for family in self.shared.values():
            for path, own in zip(family.paths, family.own.tolist(), strict=True):
                self.layers[path].share(None if own else family)

    def unused(self) -> set[str]:
        """See OwnAdapter: pairs of those that share, and of families in which nobody does."""
        paths = {path for path, layer in self.layers.items() if layer.shares}
        idle = [key for key, family in self.shared.items() if not paths.intersection(family.paths)]
        prefixes = [*paths, *(f"lora_shared.{key}" for key in idle)]
        return {f"{prefix}.{name}" for prefix in prefixes for name in ("lora_A", "lora_B")}

    def training(self) -> AdapterTraining:
        """See OwnAdapter."""
        return _Training(self)


def kept(importance: Sequence[float], share: float) -> list[bool]:
    """Which of the layers keep their own: the fewest that make up `share` of the sum. One that would share with nobody
    keeps its own too, and so do all where nothing was measured."""
    total, so_far = sum(importance), 0.0
    result = [False] * len(importance)
    for i in sorted(range(len(importance)), key=lambda i: -importance[i]):
        if so_far >= share * total * (1 - 1e-12) and total > 0:
            break
        result[i], so_far = True, so_far + importance[i]
    return result if result.count(False) > 1 else [True] * len(importance)


class _Training(AdapterTraining):
    def __init__(self, own: LoraDrop) -> None:
        super().__init__(own.model, own.adapter)
        self._own, self._decided = own, False
        self._measure({})

    def _measure(self, sums: dict[str, float]) -> None:
        """Go on measuring from these sums."""
        for path, layer in self._own.layers.items():
            at = layer.lora_A.device
            layer.measured = torch.tensor(sums.get(path, 0.0), dtype=torch.float64, device=at)

    def gradient_is_there(self) -> None:
        """See AdapterTraining. DeepSpeed makes zeros where there is none; with them AdamW would decay what nobody uses,
        and count steps for it."""
        parameters = dict(self.model.named_parameters())
        for name in self._own.unused():
            parameters[name].grad = None

    def stepped(self, step: int) -> dict[str, float]:
        """See AdapterTraining."""
        assert self.adapter is not None
        told = {}
        if not self._decided and step + 1 >= self.adapter.sample_steps:
            told = self._decide()
        sharing = sum(layer.shares for layer in self._own.layers.values())
        told |= {"adapter/own_layers": float(len(self._own.layers) - sharing), "adapter/sharing_layers": float(sharing)}
        if sharing:
            for key, family in self._own.shared.items():
                told[f"adapter/own_layers/{key.rpartition('_')[0]}"] = float(family.own.sum())
        return told

    def _decide(self) -> dict[str, float]:
        """Once: who keeps its own. The importance of each layer in its family."""
        assert self.adapter is not None
        layers, told = self._own.layers, {}
        sums = torch.stack([layer.measured for layer in layers.values() if layer.measured is not None])
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(sums)
        by_path = dict(zip(layers, sums.tolist(), strict=True))
        for family in self._own.shared.values():
            mine = [by_path[path] for path in family.paths]
            own = kept(mine, self.adapter.keep_share)
            with torch.no_grad():
                family.own.copy_(torch.tensor(own))
            told |= {f"adapter/importance/{p}": g / (sum(mine) or 1.0) for p, g in zip(family.paths, mine, strict=True)}
        self._own.loaded()
        self._after()
        with torch.no_grad():
            for layer in layers.values():
                if layer.shares:
                    layer.lora_A.zero_()
                    layer.lora_B.zero_()
        return told

    def _after(self) -> None:
        """Nothing more is measured."""
        self._decided = True
        for layer in self._own.layers.values():
            layer.measured = None

    def state(self) -> dict[str, Any]:
        """See AdapterTraining. Of this rank."""
        sums = {p: float(layer.measured) for p, layer in self._own.layers.items() if layer.measured is not None}
        return {"decided": self._decided, "sums": sums}

    def restore(self, state: dict[str, Any]) -> None:
        """See AdapterTraining. The weights are there already."""
        self._own.loaded()
        self._after()
        if not state["decided"]:
            self._decided = False
            self._measure(state["sums"])
