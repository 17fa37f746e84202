"""The training loop for learning from a data set, on the same learner as the on-policy loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rlft.config import Config
from rlft.loops.clock import Clock
from rlft.roles import Learner
from rlft.runs.run import Run
from rlft.samples import Group, count_totals


class ExampleSource(Protocol):
    """Where examples come from: a pure function of the step."""

    def batch(self, step: int, num_examples: int) -> list[Group]:
        """The examples of a step, a group of one sample each."""
        ...


@dataclass(frozen=True)
class OfflineRoles:
    """Who plays, and for people, where each actor runs."""

    learner: Learner
    places: Mapping[str, str] = field(default_factory=dict)


def train(roles: OfflineRoles, examples: ExampleSource, run: Run, config: Config) -> None:
    """Train until loop.steps, from where the run's last checkpoint stands."""
    step, _ = run.restore(roles.learner)
    while step < config.loop.steps:
        clock = Clock()
        groups = examples.batch(step, config.loop.prompts_per_step)
        with clock("learn"):
            totals = count_totals(groups, config.generator.max_new_tokens)
            metrics = roles.learner.update(groups, totals, step)
        step += 1
        run.log_step(step, metrics, clock, totals.num_tokens)
        if run.save_is_due(step):
            run.save(step, roles.learner)
