"""The training loop for learning from a data set, on the same learner as the on-policy loop.

restore -> each step: rows -> reference log-probs (each row's once) -> learner step -> log, save, evaluate
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from rlft.config import Config
from rlft.config.derived import learns_from
from rlft.evaluation.held_out import HeldOut
from rlft.loops.clock import Clock
from rlft.loops.learning import refuse_what_is_not_finite
from rlft.roles import Learner, Scorer, Trained
from rlft.runs.run import Run
from rlft.samples import Group, Sample, count_totals


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
    places: Mapping[str, str] = field(default_factory=dict)


class Reference:
    """Log-probs of samples under the reference policy, each asked for once: whatever the epoch, they stay the same."""

    def __init__(self, scorer: Scorer, known: dict[bytes, np.ndarray] | None = None) -> None:
        """`known`: from a checkpoint, so that a resumed run has them to the digit."""
        self._scorer = scorer
        self.known = {} if known is None else known  # f32 [trained tokens], by a digest of the sample

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with ref_logprobs on every sample."""
        new = [g for g in groups if any(_digest(s) not in self.known for s in g.samples)]
        if new:
            for group, arrays in zip(new, self._scorer.logprobs(new), strict=True):
                for sample, array in zip(group.samples, arrays, strict=True):
                    self.known[_digest(sample)] = array[sample.loss_mask]
        return [g.with_samples([self._with_logprobs(s) for s in g.samples]) for g in groups]

    def _with_logprobs(self, sample: Sample) -> Sample:
        full = np.zeros(len(sample.token_ids), dtype=np.float32)
        full[sample.loss_mask] = self.known[_digest(sample)]
        return replace(sample, ref_logprobs=full)


def _digest(sample: Sample) -> bytes:
    content = sample.token_ids.tobytes() + np.packbits(sample.loss_mask).tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


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
    roles: OfflineRoles, examples: ExampleSource, run: Run, config: Config, held_out: HeldOut | None = None
) -> None:
    """Train until loop.steps, from where the run's last checkpoint stands."""
    step, known = run.restore(roles.learner)
    reference = None if roles.scorer is None else Reference(roles.scorer, known)
    learner: Any = roles.learner
    if held_out is not None and step == 0:
        run.log_evaluation(0, held_out(learner, reference))
    while step < config.loop.steps:
        clock, metrics = Clock(), dict[str, float]()
        groups = examples.batch(step, config.loop.prompts_per_step)
        if reference is not None:
            with clock("reference"):
                groups = reference(groups)
                refuse_what_is_not_finite(groups)
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
