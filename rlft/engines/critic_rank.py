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

from rlft.algorithms.statistics import Mean, Stats, mean_of
from rlft.algorithms.value import clipped_value_loss
from rlft.batch import Pack
from rlft.config import Config
from rlft.config.derived import zero_stage
from rlft.engines.deepspeed import Rendezvous, ZeroEngine, join
from rlft.engines.scoring import score_micro_batches
from rlft.engines.updating import RankUpdate, accumulate
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
        loss_sum, stats = accumulate(self._engine, micro_batches, totals, "token", self._device, self._loss)
        grad_norm, applied = self._engine.step(lr)
        return RankUpdate(loss_sum, stats, grad_norm, applied)

    def _loss(self, pack: Pack) -> tuple[torch.Tensor, Stats]:
        values = self._engine(pack)
        if pack.values is None or pack.returns is None:  # no work of its own
            return values.sum() * 0.0, {}
        loss = clipped_value_loss(values, pack.values, pack.returns, self._settings.value_clip)
        stats = _stats(values, pack.returns) | {"critic/clip_fraction": mean_of(loss.clipped)}
        return (loss.per_token * pack.weights).sum(), stats

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
