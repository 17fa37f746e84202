"""One rank of the critic: a model of its own that says what a sample will earn, with its own optimizer and ZeRO state.

Knows nothing about Ray, rewards or how often it is called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from rlft.algorithms.statistics import Mean, Stats, joined, mean_of
from rlft.algorithms.value import clipped_value_loss
from rlft.batch import make_pack
from rlft.config import Config
from rlft.config.derived import zero_stage
from rlft.engines.deepspeed import Rendezvous, ZeroEngine, join
from rlft.engines.policy_rank import RankUpdate
from rlft.engines.scoring import EMPTY, score_micro_batches
from rlft.models.value import ValueModel, load_value_model
from rlft.samples import Group, Totals


class CriticRank:
    """A rank of the critic."""

    def __init__(self, config: Config, rendezvous: Rendezvous, device: str = "cpu") -> None:
        """Load the model, join the other ranks and hand the model to DeepSpeed."""
        self._settings, self._where, self._device = config.critic, rendezvous, torch.device(device)
        join(rendezvous, self._device)
        torch.manual_seed(config.run.seed * 1_000_003 + rendezvous.rank)
        path = config.critic.path or config.model.path
        assert path is not None
        self._model: ValueModel = load_value_model(
            path, config.model.dtype, device, config.critic.gradient_checkpointing
        )
        stage = zero_stage(config.critic, config.model.dtype)
        self._engine = ZeroEngine(self._model, config.critic, stage, config.model.dtype, rendezvous, self._device)

    def values(self, micro_batches: Sequence[Sequence[Group]]) -> list[list[list[np.ndarray]]]:
        """What is expected before each trained token, [micro-batch][group][sample] -> f32 [T]."""
        self._engine.eval()
        with torch.no_grad():
            return score_micro_batches(self._engine, micro_batches, self._device)

    def update(self, micro_batches: Sequence[Sequence[Group]], totals: Totals, lr: float) -> RankUpdate:
        """One optimizer step. Every rank is given as many micro-batches as every other."""
        self._engine.train()
        loss_sum, parts = 0.0, list[Stats]()
        for number, groups in enumerate(micro_batches, 1):
            pack = make_pack(groups or [EMPTY], totals if groups else None, "token", self._device)
            values = self._engine(pack)
            if groups:
                assert pack.values is not None and pack.returns is not None
                loss = clipped_value_loss(values, pack.values, pack.returns, self._settings.value_clip)
                total = (loss.per_token * pack.weights).sum()
                parts.append(_stats(values, pack.returns) | {"critic/clip_fraction": mean_of(loss.clipped)})
            else:
                total = values.sum() * 0.0
            loss_sum += float(total.detach())
            self._engine.accumulate(total, number == len(micro_batches))
        grad_norm, applied = self._engine.step(lr)
        return RankUpdate(loss_sum, joined(parts), grad_norm, applied)

    def save(self, folder: Path) -> None:
        """The model into `folder`/critic as Hugging Face writes it, the head beside it; DeepSpeed's and random state
        below."""
        own = folder / "critic"
        own.mkdir(parents=True, exist_ok=True)
        parameters = dict(self._model.named_parameters())
        tensors = self._engine.gathered(parameters, list(parameters))
        if self._where.rank == 0:
            save_file({name: t.contiguous().cpu() for name, t in tensors}, own / "value_model.safetensors")
        else:
            deque(tensors, maxlen=0)
        self._engine.save(own / "state")

    def restore(self, folder: Path) -> None:
        """Back to what `save` wrote."""
        self._engine.restore(folder / "critic" / "state")


def _stats(values: torch.Tensor, returns: torch.Tensor) -> Stats:
    """Sums from which the explained variance of a whole update follows."""
    values, returns = values.detach().double(), returns.double()
    count = len(returns)
    return {
        "critic/value_mean": mean_of(values),
        "critic/return_mean": mean_of(returns),
        "critic/return_square": Mean(float((returns**2).sum()), count),
        "critic/error_mean": mean_of(returns - values),
        "critic/error_square": Mean(float(((returns - values) ** 2).sum()), count),
    }
