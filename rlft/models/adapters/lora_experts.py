"""MOELoRA (Liu et al. 2023, arXiv:2310.18339): experts of low rank, mixed for each task by a gate.

    y = W x + s sum over i of w[task, i] B_i A_i x        w[task] = softmax(gate e_task), over num_experts experts

Each expert has rank / num_experts of the rank, and one gate serves all layers, as in the paper. A row's task is the
source of data.mixture that it is from. The gate is applied token by token, so a pack may hold rows of several tasks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlft.config.adapters import AdapterConfig
from rlft.errors import UserError
from rlft.models.adapters.low_rank import LowRank, LowRankAdapter

NO_WORK = "(no work)"  # the source of what a rank runs that has no rows of its own; its weights are 0


class Gate(nn.Module):
    """The experts' weights by task."""

    def __init__(self, num_tasks: int, num_experts: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_tasks, size))
        self.weight = nn.Parameter(torch.randn(num_experts, size) / size**0.5)
        self.now: Tensor | None = None  # [..., experts], for each token of the pass that is under way

    def forward(self, tasks: Tensor) -> Tensor:
        """int64 [...] -> [..., experts], each a distribution."""
        return torch.softmax(self.embedding.float() @ self.weight.float().T, -1).to(self.weight.dtype)[tasks]


class ExpertLayer(LowRank):
    """The experts' matrices one behind the other: A [rank, in], B [out, rank]."""

    def __init__(self, base: nn.Linear, adapter: AdapterConfig, gate: Gate) -> None:
        super().__init__(base, adapter)
        self._each, self._gate = adapter.rank // adapter.num_experts, [gate]  # in a list: not this layer's child

    def branch(self, x: Tensor) -> Tensor:
        """See LowRank."""
        weights = self._gate[0].now
        if weights is None:
            raise UserError("a model with lora_experts was run without saying of which source its rows are")
        inner = F.linear(self.dropout(x), self.lora_A) * weights.repeat_interleave(self._each, -1)
        return self.scale * F.linear(inner, self.lora_B)


class LoraExperts(LowRankAdapter[ExpertLayer]):
    """All layers, and their gate."""

    by_source = True

    def __init__(self, model: nn.Module, adapter: AdapterConfig) -> None:
        like: Any = next(p for p in model.parameters() if p.is_floating_point())
        gate = Gate(len(adapter.tasks), adapter.num_experts, adapter.gate_size).to(like.device, like.dtype)
        super().__init__(model, adapter, lambda linear: ExpertLayer(linear, adapter, gate))
        model.lora_gate = gate  # type: ignore[assignment]
        self._gate, self._tasks = gate, {name: i for i, name in enumerate(adapter.tasks)} | {NO_WORK: 0}
        self.names += tuple(f"lora_gate.{name}" for name, _ in gate.named_parameters())

    def use_sources(self, sources: tuple[str, ...], source_of: Tensor) -> None:
        """See OwnAdapter. Raises UserError for a source that is no task."""
        unknown = sorted(set(sources) - set(self._tasks))
        if unknown:
            found = ", ".join(repr(name) for name in unknown)
            raise UserError(
                f"model.adapter.type lora_experts: rows of source {found}, but model.adapter.tasks knows "
                f"{', '.join(self.adapter.tasks)}. Rows for it come from data.mixture, or say their source in "
                "evaluation.source_column"
            )
        numbers = torch.tensor([self._tasks[name] for name in sources], device=source_of.device)
        self._gate.now = self._gate(numbers[source_of])
