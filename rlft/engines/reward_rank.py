"""One rank of a reward model that learns from pairs, or from steps with labels.

Knows nothing about Ray or how often it is called. In the configuration it is the learner.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlft.algorithms.preference import bradley_terry
from rlft.algorithms.statistics import Stats, mean_of
from rlft.algorithms.steps import step_loss
from rlft.batch import Pack
from rlft.config import Config
from rlft.config.derived import learns_from, loss_average, zero_stage
from rlft.engines.deepspeed import Rendezvous, ZeroEngine, join
from rlft.engines.scoring import score_micro_batches
from rlft.engines.updating import RankUpdate, accumulate
from rlft.models.load import trainable_names
from rlft.models.quantization import write_quantization
from rlft.models.reward import load_reward_model, mark, mark_adapter
from rlft.samples import Group, Totals


class RewardRank:
    """A rank of the reward model."""

    def __init__(self, config: Config, rendezvous: Rendezvous, device: str = "cpu") -> None:
        """Load the model, join the other ranks and hand the model to DeepSpeed."""
        self._config, self._where, self._device = config, rendezvous, torch.device(device)
        self._centering, self._average = config.algorithm.centering, loss_average(config.algorithm)
        self._loss = self._of_steps if learns_from(config.algorithm) == "steps" else self._of_pairs
        join(rendezvous, self._device)
        torch.manual_seed(config.run.seed * 1_000_003 + rendezvous.rank)
        self._model = load_reward_model(config.model, device, config.run.seed)
        mark(self._model, config.algorithm.type)
        model: Any = self._model.model
        if config.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        self._trainable = trainable_names(model)
        stage = zero_stage(config.learner, config.model.dtype)
        self._engine = ZeroEngine(self._model, config.learner, stage, config.model.dtype, rendezvous, self._device)

    def values(self, micro_batches: Sequence[Sequence[Group]]) -> list[list[list[np.ndarray]]]:
        """The score in the place of each trained token, [micro-batch][group][sample] -> f32 [T]."""
        self._engine.eval()
        with torch.no_grad():
            return score_micro_batches(self._engine, micro_batches, self._device)

    def update(self, micro_batches: Sequence[Sequence[Group]], totals: Totals, lr: float) -> RankUpdate:
        """One optimizer step. Every rank is given as many micro-batches as every other."""
        loss_sum, stats = accumulate(self._engine, micro_batches, totals, self._average, self._device, self._loss)
        grad_norm, applied = self._engine.step(lr)
        return RankUpdate(loss_sum, stats, grad_norm, applied)

    def _of_pairs(self, pack: Pack) -> tuple[Tensor, Stats]:
        scores = self._engine(pack)
        if not bool(pack.advantages.any()):  # no work of its own
            return scores.sum() * 0.0, {}
        pairs, signs = scores.view(-1, 2), pack.advantages.view(-1, 2)
        assert bool((signs == signs.new_tensor([1.0, -1.0])).all()), "the chosen one comes first"
        chosen, rejected = pairs.unbind(1)
        margin = None if pack.returns is None else pack.returns.view(-1, 2)[:, 0]
        loss = bradley_terry(chosen, rejected, margin, self._centering)
        stats: Stats = {
            "preference/accuracy": mean_of(chosen > rejected),
            "preference/margin": mean_of(chosen - rejected),
            "preference/chosen": mean_of(chosen),
            "preference/rejected": mean_of(rejected),
        }
        return (loss * pack.weights.view(-1, 2).sum(1)).sum(), stats

    def _of_steps(self, pack: Pack) -> tuple[Tensor, Stats]:
        scores, labels = self._engine(pack), pack.returns
        if labels is None:  # no work of its own
            return scores.sum() * 0.0, {}
        good = labels > 0.5
        stats: Stats = {
            "steps/accuracy": mean_of((scores > 0) == good),
            "steps/good": mean_of(scores[good]),
            "steps/bad": mean_of(scores[~good]),
        }
        return (step_loss(scores, labels) * pack.weights).sum(), stats

    def save(self, folder: Path) -> None:
        """What AutoModelForSequenceClassification loads (or an adapter for it) into `folder`, DeepSpeed's and random
        state into `folder`/learner."""
        model = self._model.model
        names = [name for name, _ in model.named_parameters()]
        self._engine.write_pretrained(model, names if self._config.model.adapter is None else self._trainable, folder)
        if self._where.rank == 0:
            write_quantization(self._config.model, folder)
            if self._config.model.adapter is not None:
                mark_adapter(folder, self._config.algorithm.type, self._config.model.dtype)
        self._engine.save(folder / "learner")

    def restore(self, folder: Path) -> None:
        """Back to what `save` wrote."""
        self._engine.restore(folder / "learner")
