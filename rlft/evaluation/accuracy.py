"""Accuracy and pass@k on held-out prompts, with the generator and the rewards of the run.

Knows the roles only by their Protocols.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlft.config.data import EvaluationConfig
from rlft.roles import Generator, Metrics, Rewarder
from rlft.rollout import collect, draw
from rlft.samples import Group, Prompt, SamplingParams

_STEP = -1  # stands for the step in sampling seeds: every evaluation of a run draws with the same seeds


class Evaluation:
    """Held-out prompts and how to judge them. `last` holds the groups of the last evaluation."""

    def __init__(
        self, prompts: Sequence[Prompt], params: SamplingParams, seed: int, settings: EvaluationConfig
    ) -> None:
        self.prompts, self.last = prompts, list[Group]()
        self._params, self._seed, self._settings = params, seed, settings

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to evaluate after so many of `steps` steps."""
        return step >= steps or (self._settings.every > 0 and step % self._settings.every == 0)

    def __call__(self, generator: Generator, rewarder: Rewarder, version: int) -> Metrics:
        """Draw and score. eval/accuracy: part of the scored completions that pass; eval/pass@k: chance that one of k
        passes; eval/failed: completions that could not be scored, which count in neither."""
        stream = draw(generator, self.prompts, self._params, self._seed, _STEP, version)
        self.last = collect(stream, rewarder, len(self.prompts)).groups
        scored = [[s.reward for s in group.samples if s.reward is not None] for group in self.last]
        passed = [[reward >= self._settings.pass_threshold for reward in rewards] for rewards in scored if rewards]
        samples = [s for group in self.last for s in group.samples]
        metrics: Metrics = {"eval/failed": float(sum(s.reward is None for s in samples))}
        if passed:
            metrics["eval/accuracy"] = float(np.mean([np.mean(p) for p in passed]))
            metrics["eval/reward_mean"] = float(np.mean([np.mean(r) for r in scored if r]))
            metrics |= self._accuracy_by_source()
            k = self._params.num_samples
            if k > 1:
                metrics[f"eval/pass@{k}"] = float(np.mean([pass_at_k(len(p), sum(p), k) for p in passed]))
        metrics["eval/length_mean"] = float(np.mean([s.num_trained for s in samples]))
        metrics["eval/truncated"] = float(np.mean([s.finish_reason == "length" for s in samples]))
        return metrics

    def _accuracy_by_source(self) -> Metrics:
        """eval/accuracy/SOURCE, where prompts have a source (evaluation.source_column)."""
        passed: dict[str, list[float]] = {}
        for group in self.last:
            rewards = [s.reward for s in group.samples if s.reward is not None]
            if group.prompt.source and rewards:
                share = float(np.mean([reward >= self._settings.pass_threshold for reward in rewards]))
                passed.setdefault(group.prompt.source, []).append(share)
        return {f"eval/accuracy/{source}": float(np.mean(shares)) for source, shares in sorted(passed.items())}


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples passes, from n >= k samples of which c passed
    (Chen et al. 2021, arXiv:2107.03374): 1 - C(n - c, k) / C(n, k). With fewer than k samples, k is n."""
    k = min(k, num_samples)
    if num_samples - num_passed < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(num_samples - num_passed + 1, num_samples + 1)))
