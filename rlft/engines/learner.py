"""Learner and critic as loops see them, over their DeepSpeed ranks: deal the work out, bring the answers together.

Knows nothing about DeepSpeed or Ray: a rank is reached through `call`, which runs one method on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlft.algorithms.sampler import MISMATCH
from rlft.algorithms.statistics import joined, metrics_of
from rlft.batch import plan_micro_batches
from rlft.config import Config
from rlft.config.adapters import num_virtual_tokens
from rlft.config.derived import compares, learning_rate, mismatch_stop
from rlft.config.roles import TrainedConfig
from rlft.engines.scoring import in_order
from rlft.engines.transport import merged
from rlft.engines.weights import WeightUpdate
from rlft.errors import RunError
from rlft.roles import Metrics
from rlft.samples import Group, Totals

Call = Callable[[str, Sequence[tuple[Any, ...]]], list[Any]]  # method, arguments for each rank -> answer of each rank


class Ranks:
    """The ranks of one trained model."""

    def __init__(
        self, section: str, settings: TrainedConfig, call: Call, whole_groups: bool = False, ahead: int = 0
    ) -> None:
        """`section` of the configuration, for messages. `ahead`: virtual tokens before every text."""
        self._section, self._settings, self._call, self._whole = section, settings, call, whole_groups
        self._ahead = ahead
        self.num_ranks = settings.num_ranks
        self._skipped_in_a_row = 0

    def plan(self, groups: Sequence[Group]) -> list[list[list[Group]]]:
        """Micro-batches for each rank."""
        budget = self._settings.tokens_per_micro_batch
        return plan_micro_batches(groups, self.num_ranks, budget, self._whole, self._ahead)

    def score(self, method: str, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """What a method of the ranks says of each sample."""
        plan = self.plan(groups)
        return in_order(groups, plan, self._call(method, [(part,) for part in plan]))

    def update(self, groups: Sequence[Group], step: int, *args: Any) -> list[Any]:
        """Each rank's RankUpdate. Raises RunError when not all did the same."""
        answers = self._call("update", [(part, *args) for part in self.plan(groups)])
        if len({(a.applied, a.refused) for a in answers}) != 1:
            raise RunError(f"step {step}: some {self._section} ranks applied the update and some did not: {answers}")
        return answers

    def outcome(self, name: str, answers: Sequence[Any], lr: float, step: int) -> Metrics:
        """Metrics under `name`. Counts updates skipped for a non-finite loss or gradient; raises RunError when more
        than max_skipped_updates are skipped in a row."""
        loss = sum(a.loss for a in answers)
        self._skipped_in_a_row = 0 if answers[0].applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row > self._settings.max_skipped_updates:
            raise RunError(
                f"step {step}: {self._skipped_in_a_row} updates in a row were skipped because loss or gradient was "
                f"not finite (loss {loss}, gradient norm {answers[0].grad_norm}). Weights are those before the "
                f"first of them. Look at the rewards and log-probs of the last rollouts; a lower {self._section}.lr "
                f"often mends it; {self._section}.max_skipped_updates sets the limit."
            )
        metrics = {f"{name}/loss": loss, f"{name}/grad_norm": answers[0].grad_norm, f"{name}/lr": lr}
        return metrics | {f"{name}/skipped_updates": float(not answers[0].applied)}


class RankedLearner:
    """See rlft.roles.Learner."""

    def __init__(self, config: Config, call: Call) -> None:
        self._config, self._call = config, call
        pairs = compares(config.algorithm)  # whose two samples must meet in one pack
        ahead = num_virtual_tokens(config.model.adapter)
        self._ranks = Ranks("learner", config.learner, call, whole_groups=pairs, ahead=ahead)

    def _same(self, *args: Any) -> list[tuple[Any, ...]]:
        return [args] * self._ranks.num_ranks

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """See rlft.roles.Learner."""
        return self._ranks.score("logprobs", groups)

    def reference_logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """Log-probs of trained tokens under the model without its adapter."""
        return self._ranks.score("reference_logprobs", groups)

    def entropies(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """See rlft.roles.Learner."""
        return self._ranks.score("entropies", groups)

    def update(self, groups: Sequence[Group], totals: Totals, step: int, kl_coef: float | None = None) -> Metrics:
        """See rlft.roles.Learner. The weights that begin step s are version s. Counts updates skipped for a non-finite
        loss or gradient; raises RunError when more than learner.max_skipped_updates are skipped in a row, and, before
        the weights are touched, when sampler and learner are further apart than loop.mismatch_stop."""
        lr = learning_rate(self._config.learner, self._config.loop.steps, step)
        coef = self._config.algorithm.kl_coef if kl_coef is None else kl_coef
        answers = self._ranks.update(groups, step, totals, lr, step, coef)
        metrics = metrics_of(joined(a.stats for a in answers))
        if answers[0].refused:
            raise RunError(
                f"step {step}: with the same weights, the log-probs of generator and learner differ by "
                f"{metrics[MISMATCH]:.3g} a token on average (the largest by "
                f"{metrics['sampler/logprob_diff_max']:.3g}); allowed is {mismatch_stop(self._config):g}. The update "
                "was not made, weights are those before it. Look at dtype, attention and library versions on both "
                "sides, and at whatever changes the generator's distribution (top-p, temperature). If the difference "
                "is to be tolerated, raise loop.mismatch_stop."
            )
        return metrics | self._ranks.outcome("policy", answers, lr, step)

    def publish(self, version: int, everything: bool = False, carried: bool = False) -> Any:
        """See rlft.roles.Learner."""
        answers = self._call("publish", self._same(version, everything, carried))
        parts = [part for part in answers if part is not None]
        return parts[0] if len(parts) == 1 else merged(parts)

    def send(self, update: WeightUpdate) -> None:
        """See rlft.roles.Learner."""
        if update.transport == "collective":
            self._call("send", self._same(update.complete))

    def save(self, folder: Path) -> None:
        """See rlft.roles.Learner."""
        self._call("save", self._same(folder))

    def restore(self, folder: Path) -> None:
        """See rlft.roles.Learner."""
        self._call("restore", self._same(folder))


class ReferenceInLearner:
    """See rlft.roles.Scorer: the policy that training started from is the learner's model with its adapter off, so
    there is no second copy of it. It does not change, and needs nothing in a checkpoint."""

    def __init__(self, learner: RankedLearner) -> None:
        self._learner = learner

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """See rlft.roles.Scorer."""
        return self._learner.reference_logprobs(groups)

    def load(self, update: WeightUpdate) -> None:
        """See rlft.roles.Scorer."""
        raise AssertionError("checked with the configuration: algorithm.reference_every is 0 with an adapter")

    def save(self, folder: Path) -> None:
        """See rlft.roles.Scorer."""

    def restore(self, folder: Path) -> None:
        """See rlft.roles.Scorer."""


class RankedCritic:
    """See rlft.roles.Critic."""

    def __init__(self, config: Config, call: Call) -> None:
        self._config, self._call = config, call
        self._ranks = Ranks("critic", config.critic, call)

    def values(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """See rlft.roles.Critic."""
        return self._ranks.score("values", groups)

    def update(self, groups: Sequence[Group], totals: Totals, step: int) -> Metrics:
        """See rlft.roles.Critic. critic/explained_variance is 1 - Var(return - value) / Var(return)."""
        lr = learning_rate(self._config.critic, self._config.loop.steps, step)
        answers = self._ranks.update(groups, step, totals, lr)
        metrics = metrics_of(joined(a.stats for a in answers))
        if "critic/return_square" in metrics:
            spread = metrics.pop("critic/return_square") - metrics["critic/return_mean"] ** 2
            missed = metrics.pop("critic/error_square") - metrics.pop("critic/error_mean") ** 2
            if spread > 1e-12:
                metrics["critic/explained_variance"] = 1 - missed / spread
        return metrics | self._ranks.outcome("critic", answers, lr, step)

    def save(self, folder: Path) -> None:
        """See rlft.roles.Critic."""
        self._call("save", [(folder,)] * self._ranks.num_ranks)

    def restore(self, folder: Path) -> None:
        """See rlft.roles.Critic."""
        self._call("restore", [(folder,)] * self._ranks.num_ranks)


class RankedRewardModel:
    """A reward model that learns from pairs or from steps with labels. See rlft.roles.Trained."""

    def __init__(self, config: Config, call: Call) -> None:
        self._config, self._call = config, call
        self._ranks = Ranks("learner", config.learner, call, whole_groups=True)

    def values(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """The score in the place of each trained token, f32 [T] for each sample of each group, 0 elsewhere."""
        return self._ranks.score("values", groups)

    def update(self, groups: Sequence[Group], totals: Totals, step: int) -> Metrics:
        """See rlft.roles.Trained."""
        lr = learning_rate(self._config.learner, self._config.loop.steps, step)
        answers = self._ranks.update(groups, step, totals, lr)
        return metrics_of(joined(a.stats for a in answers)) | self._ranks.outcome("policy", answers, lr, step)

    def save(self, folder: Path) -> None:
        """See rlft.roles.Trained."""
        self._call("save", [(folder,)] * self._ranks.num_ranks)

    def restore(self, folder: Path) -> None:
        """See rlft.roles.Trained."""
        self._call("restore", [(folder,)] * self._ranks.num_ranks)
