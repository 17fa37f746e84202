"""`rlft eval` of a run that learns from data, without reward functions: what such a run measures of held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from actors.targets import Target
from rlft.batch import plan_micro_batches
from rlft.config.derived import makes_reward_model, uses_reference
from rlft.data.learning import load_held_out_rows
from rlft.engines.build import make_scorer
from rlft.engines.scoring import FrozenScorer, in_order, score_micro_batches
from rlft.evaluation.held_out import HeldOut
from rlft.loops.remembered import Reference
from rlft.models.load import window
from rlft.models.reward import load_trained_reward_model
from rlft.roles import Metrics
from rlft.samples import Group


class _Scores:
    """A reward model that is only asked."""

    def __init__(self, target: Target) -> None:
        self._model = load_trained_reward_model(str(target.folder), target.config.model.dtype, target.device)
        self._budget, self._device = target.config.learner.tokens_per_micro_batch, torch.device(target.device)

    def values(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """See rlft.engines.learner.RankedRewardModel."""
        plan = plan_micro_batches(groups, 1, self._budget)
        with torch.inference_mode():
            return in_order(groups, plan, [score_micro_batches(self._model, plan[0], self._device)])


def measure_held_out(target: Target) -> Metrics:
    """Likelihood of held-out examples, the share of held-out pairs that are the right way round, and so on: see
    rlft.evaluation.held_out. Raises UserError for rows that cannot be used."""
    config, learner = target.config, target.config.learner
    rows = load_held_out_rows(config, target.tokenizer(), window(target.whole, config.model.adapter))
    asked: Any
    if makes_reward_model(config):
        asked = _Scores(target)
    else:
        budget, chunk = learner.tokens_per_micro_batch, learner.tokens_per_logit_chunk
        asked = FrozenScorer(target.model(target.device), 1.0, budget, chunk, target.device)
    reference = Reference(make_scorer(config, target.device)) if uses_reference(config) else None
    return HeldOut(rows, config.algorithm)(asked, reference)
