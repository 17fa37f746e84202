"""How well a model that learns from data does on rows that it does not learn from.

Knows nothing about how rows are read or how the model is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlft.config.algorithm import BY_TOKEN, AlgorithmConfig
from rlft.config.derived import learns_from
from rlft.roles import Metrics
from rlft.samples import Group, Sample

WithReference = Callable[[Sequence[Group]], list[Group]]


class HeldOut:
    """Held-out examples, pairs, labelled completions or completions with labelled steps."""

    def __init__(self, groups: Sequence[Group], settings: AlgorithmConfig) -> None:
        self._groups, self._settings = list(groups), settings

    def __call__(self, learner: Any, reference: WithReference | None) -> Metrics:
        """Metrics of all of them. `learner` is a Learner, or a reward model with `values`.

        Examples: eval/nll in nats a token and eval/perplexity. Pairs: eval/pair_accuracy, the share in which the chosen
        one is above the other (a tie counts half, so that a policy that is still the reference has 0.5; TRL counts it
        as wrong), and eval/margin, the mean of the difference; by log-probs less the reference's where there is one, or
        by the reward model's scores. Labels: eval/good and eval/bad, the means of what is compared.
        Steps: eval/step_accuracy, the share of steps whose score is above 0 exactly when the label is above 0.5, and
        eval/first_error_accuracy, the share of rows in which the first bad step, or that there is none, is found
        (ProcessBench, Zheng et al. 2024, arXiv:2412.06559).
        """
        if learns_from(self._settings) == "steps":
            return _of_steps(self._groups, learner.values(self._groups))
        groups = self._groups if reference is None else reference(self._groups)
        if self._settings.type == "reward":
            scores = learner.values(groups)
            return _of_pairs([[float(a[s.loss_mask][0]) for a, s in _zip(row, g)] for row, g in zip(scores, groups)])
        logprobs = learner.logprobs(groups)
        if learns_from(self._settings) == "examples":
            return _of_examples(groups, logprobs)
        values = [[self._value(a, s) for a, s in _zip(row, g)] for row, g in zip(logprobs, groups, strict=True)]
        return _of_pairs(values) if learns_from(self._settings) == "pairs" else _of_labels(values, groups)

    def _value(self, logprobs: np.ndarray, sample: Sample) -> float:
        """What the loss compares, as in rlft.algorithms.completions."""
        settings = self._settings
        each = logprobs if sample.ref_logprobs is None else logprobs - sample.ref_logprobs
        total = float(each[sample.loss_mask].sum(dtype=np.float64))
        by_token = settings.preference_per_token or settings.preference_loss in BY_TOKEN
        return settings.preference_beta * (total / sample.num_trained if by_token else total)


def _zip(arrays: Sequence[np.ndarray], group: Group) -> list[tuple[np.ndarray, Sample]]:
    return list(zip(arrays, group.samples, strict=True))


def _of_examples(groups: Sequence[Group], logprobs: Sequence[Sequence[np.ndarray]]) -> Metrics:
    total = sum(
        float(a[s.loss_mask].sum(dtype=np.float64)) for g, row in zip(groups, logprobs) for a, s in _zip(row, g)
    )
    nll = -total / max(1, sum(s.num_trained for g in groups for s in g.samples))
    return {"eval/nll": nll, "eval/perplexity": math.exp(min(nll, 700.0))}


def _of_pairs(values: Sequence[Sequence[float]]) -> Metrics:
    margins = np.array([chosen - rejected for chosen, rejected in values])
    return {
        "eval/pair_accuracy": float(((margins > 0) + 0.5 * (margins == 0)).mean()),
        "eval/margin": float(margins.mean()),
    }


def _of_labels(values: Sequence[Sequence[float]], groups: Sequence[Group]) -> Metrics:
    """Of each group the first sample; a second is only there to measure a distance."""
    good = np.array([bool(g.samples[0].advantages[0] > 0) for g in groups])  # type: ignore[index]
    first = np.array([row[0] for row in values])
    return {
        name: float(first[chosen].mean()) for name, chosen in (("eval/good", good), ("eval/bad", ~good)) if chosen.any()
    }


def _of_steps(groups: Sequence[Group], scores: Sequence[Sequence[np.ndarray]]) -> Metrics:
    """Whether steps are found to be what their labels say, and where the first bad one is."""
    right, found = list[bool](), list[bool]()
    for group, row in zip(groups, scores, strict=True):
        for score, sample in _zip(row, group):
            assert sample.returns is not None
            said, is_good = score[sample.loss_mask] > 0, sample.returns[sample.loss_mask] > 0.5
            right += (said == is_good).tolist()
            found.append(_first_bad(said) == _first_bad(is_good))
    return {"eval/step_accuracy": float(np.mean(right)), "eval/first_error_accuracy": float(np.mean(found))}


def _first_bad(is_good: np.ndarray) -> int:
    """Its number, or that of steps when all are good."""
    return len(is_good) if is_good.all() else int(is_good.argmin())
