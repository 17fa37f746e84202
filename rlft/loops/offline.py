"""The training loop for learning from a data set, on the same learner as the on-policy loop.

restore -> each step: rows -> what reference or teacher say of them (once) -> learner step -> log, evaluate, save
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from rlft.config import Config
from rlft.config.derived import learns_from
from rlft.evaluation.held_out import HeldOut
from rlft.evaluation.tasks import HeldOutTasks
from rlft.loops.clock import Clock
from rlft.loops.learning import refuse_what_is_not_finite
from rlft.loops.remembered import Reference, TaughtRows
from rlft.roles import Learner, Scorer, Teacher, Trained
from rlft.runs.run import Run
from rlft.runs.store import RowStore
from rlft.samples import Group, count_totals


class ExampleSource(Protocol):
    """Where examples come from: a pure function of the step."""

    def batch(self, step: int, num_examples: int) -> list[Group]:
        """The examples of a step: groups of one sample, pairs, or labelled ones."""
        ...


@dataclass(frozen=True)
class OfflineRoles:
    """Who plays, and for people, where each actor runs."""

    learner: Trained
    scorer: Scorer | None = None  # the reference policy
    teacher: Teacher | None = None
    places: Mapping[str, str] = field(default_factory=dict)


def divergence_on_others(learner: Learner, groups: Sequence[Group]) -> tuple[list[Group], float]:
    """KTO's reference point: the groups without their second samples, and the mean over these of policy less reference,
    at least 0 (Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1)."""
    others = [g.with_samples(g.samples[1:]) for g in groups]
    logprobs = learner.logprobs(others)
    gaps = [
        float((logprob - sample.ref_logprobs)[sample.loss_mask].sum(dtype=np.float64))
        for group, row in zip(others, logprobs, strict=True)
        for sample, logprob in zip(group.samples, row, strict=True)
    ]
    return [g.with_samples(g.samples[:1]) for g in groups], max(0.0, float(np.mean(gaps))) if gaps else 0.0


def train(
    roles: OfflineRoles,
    examples: ExampleSource,
    run: Run,
    config: Config,
    held_out: HeldOut | HeldOutTasks | None = None,
    store: RowStore | None = None,
) -> None:
    """Train until loop.steps, from where the run's last checkpoint stands. `store` keeps what the teacher says of rows,
    where they will be asked for again."""
    step, known = run.restore(roles.learner)
    reference = None if roles.scorer is None else Reference(roles.scorer, known)
    learner: Any = roles.learner
    taught = None if roles.teacher is None else TaughtRows(roles.teacher, config.algorithm.teacher_top_k, store)
    if held_out is not None and step == 0:
        run.log_evaluation(0, held_out(learner, reference))
    while step < config.loop.steps:
        clock, metrics = Clock(), dict[str, float]()
        groups = examples.batch(step, config.loop.prompts_per_step)
        if reference is not None:
            with clock("reference"):
                groups = reference(groups)
                refuse_what_is_not_finite(groups)
        if taught is not None:
            with clock("teacher"):
                groups = taught(groups, step)
        totals = count_totals(groups, config.generator.max_new_tokens)
        if learns_from(config.algorithm) == "labels":
            with clock("kl"):
                groups, kl = divergence_on_others(learner, groups)
            totals = replace(count_totals(groups, config.generator.max_new_tokens), kl=kl)
            metrics["preference/kl"] = kl
        with clock("learn"):
            metrics |= learner.update(groups, totals, step)
        step += 1
        run.log_step(step, metrics, clock, totals.num_tokens)
        if held_out is not None and config.evaluation.is_due(step, config.loop.steps):
            run.log_evaluation(step, held_out(learner, reference))
        if run.save_is_due(step):
            run.save(step, learner, None if reference is None else reference.known)
