"""A model that learns several tasks, as the loop sees it, over its DeepSpeed ranks.

Knows nothing about DeepSpeed or Ray: see rlft.engines.learner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rlft.algorithms.statistics import joined, metrics_of
from rlft.batch import plan_micro_batches
from rlft.config import Config
from rlft.config.derived import learning_rate
from rlft.config.roles import TrainedConfig
from rlft.config.tasks import TaskConfig
from rlft.engines.learner import Call, Ranks
from rlft.roles import Metrics
from rlft.samples import Group, Totals


class _RanksByPart(Ranks):
    """Ranks whose micro-batches each hold groups of one part only."""

    def __init__(self, settings: TrainedConfig, call: Call, part_of: Callable[[Group], str]) -> None:
        super().__init__("learner", settings, call)
        self._part_of = part_of

    def plan(self, groups: Sequence[Group]) -> list[list[list[Group]]]:
        """Micro-batches for each rank, part by part."""
        parts: dict[str, list[Group]] = {}
        for group in groups:
            parts.setdefault(self._part_of(group), []).append(group)
        budget = self._settings.tokens_per_micro_batch
        plans = [plan_micro_batches(part, self.num_ranks, budget) for part in parts.values()]
        return [[batch for plan in plans for batch in plan[rank]] for rank in range(self.num_ranks)]


class RankedTasks:
    """A model with a head for each task. See rlft.roles.Trained."""

    def __init__(self, config: Config, call: Call) -> None:
        self._config, self._call = config, call
        apart = config.algorithm.gradient_surgery != "none"
        parts = {t.name: t.name if apart or t.adapter == "own" else "" for t in config.tasks}
        self._ranks = _RanksByPart(config.learner, call, lambda group: parts[task_of(group)])

    def outputs(self, groups: Sequence[Group]) -> list[np.ndarray]:
        """What the head of each group's task says in each of its places, f32 [P, C]."""
        return [row[0] for row in self._ranks.score("outputs", groups)]

    def update(self, groups: Sequence[Group], totals: Totals, step: int) -> Metrics:
        """See rlft.roles.Trained. Each task's loss is divided by its own rows (words of token_classification) in
        `groups`, which are those of all ranks. tasks/<name>/loss is that mean, without the task's weight."""
        lr = learning_rate(self._config.learner, self._config.loop.steps, step)
        counts = task_counts(groups, self._config.tasks)
        answers = self._ranks.update(groups, step, counts, lr, step)
        return metrics_of(joined(a.stats for a in answers)) | self._ranks.outcome("policy", answers, lr, step)

    def save(self, folder: Path) -> None:
        """See rlft.roles.Trained."""
        self._call("save", [(folder,)] * self._ranks.num_ranks)

    def restore(self, folder: Path) -> None:
        """See rlft.roles.Trained."""
        self._call("restore", [(folder,)] * self._ranks.num_ranks)


def task_of(group: Group) -> str:
    """The name of the task whose row this is."""
    labels = group.samples[0].labels
    assert labels is not None, group.prompt.id
    return labels.task


def task_counts(groups: Sequence[Group], tasks: Sequence[TaskConfig]) -> tuple[int, ...]:
    """Of each task the rows, of token_classification the words, that these groups have."""
    by_word = {task.name: task.kind == "token_classification" for task in tasks}
    counts = dict.fromkeys(by_word, 0)
    for group in groups:
        name = task_of(group)
        counts[name] += group.samples[0].num_trained if by_word[name] else 1
    return tuple(counts.values())
