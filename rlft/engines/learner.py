"""The learner as loops see it, over its DeepSpeed ranks: deals the work out, brings the answers together.

Knows nothing about DeepSpeed or Ray: a rank is reached through `call`, which runs one method on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlft.algorithms.statistics import joined, metrics_of
from rlft.algorithms.table import MISMATCH
from rlft.batch import plan_micro_batches
from rlft.config import Config
from rlft.config.derived import learning_rate, mismatch_stop
from rlft.engines.scoring import in_order
from rlft.engines.transport import merged
from rlft.engines.weights import WeightUpdate
from rlft.errors import RunError
from rlft.roles import Metrics
from rlft.samples import Group, Totals

Call = Callable[[str, Sequence[tuple[Any, ...]]], list[Any]]  # method, arguments for each rank -> answer of each rank


class RankedLearner:
    """See rlft.roles.Learner."""

    def __init__(self, config: Config, call: Call) -> None:
        self._config, self._call = config, call
        self._num_ranks = config.learner.num_ranks
        self._skipped_in_a_row = 0

    def _plan(self, groups: Sequence[Group]) -> list[list[list[Group]]]:
        return plan_micro_batches(groups, self._num_ranks, self._config.learner.tokens_per_micro_batch)

    def _same(self, *args: Any) -> list[tuple[Any, ...]]:
        return [args] * self._num_ranks

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """See rlft.roles.Learner."""
        plan = self._plan(groups)
        return in_order(groups, plan, self._call("logprobs", [(part,) for part in plan]))

    def update(self, groups: Sequence[Group], totals: Totals, step: int) -> Metrics:
        """See rlft.roles.Learner. The weights that begin step s are version s. Counts updates skipped for a non-finite
        loss or gradient; raises RunError when more than learner.max_skipped_updates are skipped in a row, and, before
        the weights are touched, when sampler and learner are further apart than loop.mismatch_stop."""
        lr = learning_rate(self._config, step)
        answers = self._call("update", [(part, totals, lr, step) for part in self._plan(groups)])
        loss = sum(a.loss for a in answers)
        metrics = metrics_of(joined(a.stats for a in answers))
        if len({(a.applied, a.refused) for a in answers}) != 1:
            raise RunError(f"step {step}: some learner ranks applied the update and some did not: {answers}")
        if answers[0].refused:
            raise RunError(
                f"step {step}: with the same weights, the log-probs of generator and learner differ by "
                f"{metrics[MISMATCH]:.3g} a token on average (the largest by "
                f"{metrics['sampler/logprob_diff_max']:.3g}); allowed is {mismatch_stop(self._config):g}. The update "
                "was not made, weights are those before it. Look at dtype, attention and library versions on both "
                "sides, and at whatever changes the generator's distribution (top-p, temperature). If the difference "
                "is to be tolerated, raise loop.mismatch_stop."
            )
        if answers[0].applied:
            self._skipped_in_a_row = 0
        else:
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row > self._config.learner.max_skipped_updates:
                raise RunError(
                    f"step {step}: {self._skipped_in_a_row} updates in a row were skipped because loss or gradient was "
                    f"not finite (loss {loss}, gradient norm {answers[0].grad_norm}). Weights are those before the "
                    "first of them. Look at the rewards and log-probs of the last rollouts; a lower learner.lr often "
                    "mends it; learner.max_skipped_updates sets the limit."
                )
        metrics |= {"policy/loss": loss, "policy/grad_norm": answers[0].grad_norm, "policy/lr": lr}
        return metrics | {"policy/skipped_updates": float(not answers[0].applied)}

    def publish(self, version: int, everything: bool = False) -> Any:
        """See rlft.roles.Learner."""
        parts = [part for part in self._call("publish", self._same(version, everything)) if part is not None]
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
