"""The training loop for policies that learn from their own samples. Start reading here.

    restore -> sync weights -> each step: rollouts -> learn (see learning.py) -> sync weights -> log, save

Synchronous training is this loop with max_staleness 0: the rollouts of a step begin only when the weights that they are
to train have arrived. With max_staleness k, rollouts of k further steps are under way meanwhile; new weights reach them
in flight, or wait for them where the run is to be repeatable. Knows the roles only by their Protocols.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from rewards.combine import check_failures
from rlft.config import Config
from rlft.config.derived import shares_gpus
from rlft.evaluation.accuracy import Evaluation
from rlft.loops.clock import Clock
from rlft.loops.credit import rollout_metrics
from rlft.loops.learning import Judges, KlControl, learn
from rlft.loops.mismatch import MismatchWarning
from rlft.loops.rollouts import Progress, PromptSource, Rollouts
from rlft.loops.sync import WeightSync
from rlft.roles import Critic, Generator, Rewarder, Scorer
from rlft.runs.run import Run
from rlft.samples import count_totals


@dataclass(frozen=True)
class Roles(Judges):
    """Who plays. `places`: for people, where each actor runs; `facts`: there, what reward functions say of it."""

    generator: Generator = field(kw_only=True)
    rewarder: Rewarder = field(kw_only=True)
    places: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Underway:
    """What a checkpoint keeps of a loop besides its roles."""

    rollouts: Progress | None
    kl_coef: float


def train(roles: Roles, prompts: PromptSource, evaluation: Evaluation | None, run: Run, config: Config) -> None:
    """Train until loop.steps, from where the run's last checkpoint stands."""
    steps = config.loop.steps
    step, underway = run.restore(roles.learner, kept(roles, config))
    kl = KlControl(config, underway.kl_coef if underway else None)
    sync = WeightSync(roles.learner, roles.generator, prompts.take(0, 64), config)
    sync(version=step)
    warn_of_mismatch = MismatchWarning(run.console.message, config)
    if evaluation and step == 0:
        run.log_evaluation(step, evaluation(roles.generator, roles.rewarder, version=step))
    progress = underway.rollouts if underway else None
    with closing(Rollouts(roles, prompts, config, progress, first_step=step)) as rollouts:
        while step < steps:
            clock = Clock()
            rollouts.admit(step)
            with clock("wait"):
                rollout = rollouts.take(step)
            if shares_gpus(config):
                roles.generator.sleep()
            check_failures(rollout.groups, config.rewards.max_failed_fraction)
            groups, learned = learn(roles, rollout.groups, step, config, clock, kl)
            metrics = rollout_metrics(rollout, version=step) | learned
            step += 1
            warn_of_mismatch(step, metrics)
            with clock("sync"):
                rollouts.await_drawn()
                metrics |= sync(version=step)
            run.log_step(step, metrics, clock, count_totals(groups, 1).num_tokens, groups)
            if config.algorithm.reference_every and step % config.algorithm.reference_every == 0:
                renew_reference(roles, step)
            if evaluation and config.evaluation.is_due(step, steps):
                run.log_evaluation(step, evaluation(roles.generator, roles.rewarder, version=step))
            if run.save_is_due(step):
                underway = Underway(rollouts.progress(step), kl.coef)
                run.save(step, roles.learner, underway, kept(roles, config))


def kept(roles: Roles, config: Config) -> list[Critic | Scorer]:
    """Who besides the learner has something to keep in checkpoints."""
    changing = roles.scorer if config.algorithm.reference_every else None
    return [role for role in (roles.critic, changing) if role is not None]


def renew_reference(roles: Roles, step: int) -> None:
    """The reference becomes what the policy is now: the next round of iterative preference learning."""
    assert roles.scorer is not None, "checked with the configuration"
    roles.scorer.load(roles.learner.publish(step, everything=True, carried=True))
