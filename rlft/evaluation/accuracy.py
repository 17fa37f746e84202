"""Accuracy, pass@k and text metrics on held-out prompts, with the generator and the rewards of the run.

Knows the roles only by their Protocols.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlft.config.data import EvaluationConfig
from rlft.evaluation.text_metrics import TextMetrics
from rlft.roles import Generator, Metrics, Rewarder
from rlft.rollout import collect, draw
from rlft.samples import Group, Prompt, SamplingParams

_STEP = -1  # stands for the step in sampling seeds: every evaluation of a run draws with the same seeds


class Evaluation:
    """Held-out prompts and how to judge them. `last` holds the groups of the last evaluation."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        seed: int,
        settings: EvaluationConfig,
        has_rewards: bool = True,
    ) -> None:
        """Without rewards only the text metrics say how good completions are. Raises UserError when the prompts have
        not what those compare with, or a package of theirs is missing."""
        self.prompts, self.last = prompts, list[Group]()
        self._params, self._seed, self._settings, self._has_rewards = params, seed, settings, has_rewards
        self._texts: TextMetrics | None = None
        if settings.metrics:
            assert settings.reference_column is not None
            self._texts = TextMetrics(settings.metrics, settings.reference_column, prompts)

    def __call__(self, generator: Generator, rewarder: Rewarder, version: int) -> Metrics:
        """Draw and score. eval/accuracy: part of the scored completions that pass; eval/pass@k: chance that one of k
        passes; eval/failed: completions that could not be scored, which count in neither; eval/<metric>: see
        TextMetrics."""
        stream = draw(generator, self.prompts, self._params, self._seed, _STEP, version)
        self.last = collect(stream, rewarder, len(self.prompts)).groups
        samples = [s for group in self.last for s in group.samples]
        metrics: Metrics = self._of_rewards() if self._has_rewards else {}
        if self._texts is not None:
            metrics |= self._texts(self.last)
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

    def _of_rewards(self) -> Metrics:
        scored = [[s.reward for s in group.samples if s.reward is not None] for group in self.last]
        passed = [[reward >= self._settings.pass_threshold for reward in rewards] for rewards in scored if rewards]
        metrics: Metrics = {"eval/failed": float(sum(s.reward is None for group in self.last for s in group.samples))}
        if passed:
            metrics["eval/accuracy"] = float(np.mean([np.mean(p) for p in passed]))
            metrics["eval/reward_mean"] = float(np.mean([np.mean(r) for r in scored if r]))
            metrics |= self._accuracy_by_source()
            for k in reported_ks(self._params.num_samples):
                metrics[f"eval/pass@{k}"] = float(np.mean([pass_at_k(len(p), sum(p), k) for p in passed]))
        return metrics


def reported_ks(num_samples: int) -> list[int]:
    """The k of pass@k that are reported: 2, 4, 8 ... below the number of samples, and that number. None for one sample:
    pass@1 is the accuracy."""
    if num_samples == 1:
        return []
    return [*(2**i for i in range(1, num_samples.bit_length()) if 2**i < num_samples), num_samples]


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples passes, from n >= k samples of which c passed
    (Chen et al. 2021, arXiv:2107.03374): 1 - C(n - c, k) / C(n, k). With fewer than k samples, k is n."""
    k = min(k, num_samples)
    if num_samples - num_passed < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(num_samples - num_passed + 1, num_samples + 1)))
