"""What happens to the samples of a step:

    reference, critic, teacher look at them -> advantages (credit.py) -> updates of the policy, and of the critic

Knows the roles only by their Protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rlft.algorithms.policy import high_entropy
from rlft.config import Config
from rlft.config.derived import environment_weight, longest_completion
from rlft.errors import RunError
from rlft.loops.clock import Clock
from rlft.loops.credit import assign_advantages, cut_like, divergence_of, select, spread, worth_scoring
from rlft.loops.together import together
from rlft.roles import Critic, Learner, Metrics, Scorer, Teacher
from rlft.samples import Group, count_totals


@dataclass(frozen=True)
class Judges:
    """Who learns, and who looks at samples before."""

    learner: Learner
    scorer: Scorer | None = None  # the reference policy
    critic: Critic | None = None
    teacher: Teacher | None = None
    background: bool = False  # they run in other processes, so waiting for them can be left to threads


class KlControl:
    """The weight of the KL divergence. With algorithm.kl_target it follows what is measured (Ziegler et al. 2019,
    arXiv:1909.08593, section 2.2):

        coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon
    """

    def __init__(self, config: Config, coef: float | None = None) -> None:
        """`coef`: from a checkpoint."""
        self._settings = config.algorithm
        self.coef = config.algorithm.kl_coef if coef is None else coef

    def __call__(self, groups: Sequence[Group]) -> Metrics:
        """Measure, adapt; what was measured and the coefficient that is in force from the next step on."""
        samples = [s for g in groups for s in g.samples if s.ref_logprobs is not None]
        if not samples:
            return {}
        measured = float(np.mean([divergence_of(s, "k1").sum() for s in samples]))
        metrics = {"kl/sample_mean": measured, "kl/coef": self.coef}
        if self._settings.kl_target is not None:
            error = float(np.clip(measured / self._settings.kl_target - 1, -0.2, 0.2))
            self.coef *= 1 + error * len(samples) / self._settings.kl_horizon
        return metrics


_NUMBERS = {  # of samples, and who gives them
    "logprobs": "the generator", "ref_logprobs": "the reference", "teacher_logprobs": "the teacher",
    "values": "the critic",
}  # fmt: skip


def learn(
    judges: Judges, groups: Sequence[Group], step: int, config: Config, clock: Clock, kl: KlControl
) -> tuple[list[Group], Metrics]:
    """All updates of a step: num_epochs passes over its samples in num_minibatches parts, each part one update. The
    groups with their advantages, and metrics."""
    settings = config.algorithm
    groups = look_at(judges, groups, config, clock)
    coef = kl.coef
    groups = assign_advantages(groups, settings, coef, environment_weight(config) or 0.0)
    if settings.entropy_share is not None:
        groups = _keep_uncertain(judges.learner, groups, settings.entropy_share, config)
    metrics = advantage_metrics(groups, select(groups, settings, longest_completion(config))[0]) | kl(groups)
    with clock("learn"):
        num_updates = settings.num_epochs * settings.num_minibatches
        if num_updates > 1:
            trained, _ = select(groups, settings, longest_completion(config))
            groups = annotate(groups, trained, {"old_logprobs": judges.learner.logprobs(trained)})
        size, updates = len(groups) // settings.num_minibatches, list[Metrics]()
        for start in [*range(0, size * settings.num_minibatches, size)] * settings.num_epochs:
            part = groups[start : start + size]
            updates.append(_update(judges, part, step, config, coef))
    return groups, metrics | merged(updates)


def _update(judges: Judges, groups: Sequence[Group], step: int, config: Config, kl_coef: float) -> Metrics:
    """One update of the policy and, beside it, one of the critic, which alone learns while it warms up."""
    part, totals = select(groups, config.algorithm, longest_completion(config))
    learner, critic = judges.learner, judges.critic
    if critic is None:
        return learner.update(part, totals, step, kl_coef)
    seen = [g.with_samples([s for s in g.samples if s.returns is not None]) for g in groups]
    seen = [g for g in seen if g.samples]
    if step < config.critic.alone_steps:
        return critic.update(seen, count_totals(seen, totals.max_new_tokens), step) | {"policy/skipped_updates": 0.0}
    calls = (
        lambda: learner.update(part, totals, step, kl_coef),
        lambda: critic.update(seen, count_totals(seen, totals.max_new_tokens), step),
    )
    policy, value = together(*calls) if judges.background else [call() for call in calls]
    return policy | value


def look_at(judges: Judges, groups: Sequence[Group], config: Config, clock: Clock) -> list[Group]:
    """Everything that must be known of samples before their advantages are; who knows it works at the same time."""
    worth, settings = worth_scoring(groups, config.algorithm), config.algorithm
    asked: dict[str, tuple[str, Callable[[], Any]]] = {}  # field of the sample: stage for the clock, call
    if (scorer := judges.scorer) is not None:
        asked["ref_logprobs"] = "reference", lambda: scorer.logprobs(worth)
    if (critic := judges.critic) is not None:
        asked["values"] = "values", lambda: critic.values(worth)
    if (teacher := judges.teacher) is not None and settings.teacher_signal == "sampled":
        asked["teacher_logprobs"] = "teacher", lambda: teacher.logprobs(worth)
    elif teacher is not None:
        asked["teacher_top"] = "teacher", lambda: teacher.top_tokens(worth, settings.teacher_top_k)

    def timed(stage: str, call: Callable[[], Any]) -> Any:
        with clock(stage):
            return call()

    calls = [lambda stage=stage, call=call: timed(stage, call) for stage, call in asked.values()]
    answers = together(*calls) if judges.background else [call() for call in calls]
    groups = annotate(groups, worth, dict(zip(asked, answers, strict=True)))
    refuse_what_is_not_finite(groups)
    return groups


def refuse_what_is_not_finite(groups: Sequence[Group]) -> None:
    """Raise RunError for a number of a trained token that is infinite or NaN: from there it would reach every
    weight."""
    for group in groups:
        for place, sample in enumerate(group.samples):
            for name, whose in _NUMBERS.items():
                array = getattr(sample, name)
                if array is None or np.isfinite(array[sample.loss_mask]).all():
                    continue
                bad = np.flatnonzero(sample.loss_mask & ~np.isfinite(array))
                raise RunError(
                    f"{whose} says {array[bad[0]]} of token {bad[0]} of sample {place} of prompt {group.prompt.id} "
                    f"({len(bad)} tokens in all). A probability of 0 for a token that was drawn, or a model that "
                    "overflows: look at dtype, at the temperature, and at whatever changes the distribution."
                )


def annotate(groups: Sequence[Group], looked_at: Sequence[Group], found: Mapping[str, Any]) -> list[Group]:
    """Put what was found of the samples of `looked_at` on these same samples, wherever they stand in `groups`."""
    new = {
        id(sample): replace(sample, **{name: rows[p][i] for name, rows in found.items()})
        for p, group in enumerate(looked_at)
        for i, sample in enumerate(group.samples)
    }
    return [g.with_samples([new.get(id(s), s) for s in g.samples]) for g in groups]


def _keep_uncertain(learner: Learner, groups: list[Group], share: float, config: Config) -> list[Group]:
    """Advantage 0 for all tokens but those of highest entropy, of all that would be trained on in this step."""
    trained, _ = select(groups, config.algorithm, longest_completion(config))
    rows = learner.entropies(trained)
    flat = [e[s.loss_mask] for g, row in zip(trained, rows, strict=True) for s, e in zip(g.samples, row, strict=True)]
    if not flat:
        return groups
    kept = iter(cut_like(high_entropy(torch.from_numpy(np.concatenate(flat)), share).numpy(), flat))
    advantages = [[s.advantages * spread(s, next(kept)) for s in g.samples] for g in trained]  # type: ignore[operator]
    return annotate(groups, trained, {"advantages": advantages})


def advantage_metrics(groups: Sequence[Group], chosen: Sequence[Group]) -> Metrics:
    """What part of the step's samples is trained on, and how large all advantages are."""
    samples = [s for g in groups for s in g.samples]
    judged = [s for s in samples if s.advantages is not None]
    if not judged:
        return {"samples/trained": 0.0}
    everything = np.concatenate([s.advantages[s.loss_mask] for s in judged])  # type: ignore[index]
    return {
        "samples/trained": sum(len(g.samples) for g in chosen) / len(samples),
        "advantage/mean": float(everything.mean()),
        "advantage/std": float(everything.std()),
    }


def merged(updates: Sequence[Metrics]) -> Metrics:
    """Means over the updates of a step, maxima of what ends in _max, the sum of skipped ones."""
    merged_: Metrics = {}
    for name in {name: None for m in updates for name in m}:  # an update without samples lacks some
        values = [m[name] for m in updates if name in m]
        merged_[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    return merged_ | {"policy/skipped_updates": sum(m["policy/skipped_updates"] for m in updates)}
