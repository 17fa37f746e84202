"""Weight sync as a loop sees it: publish and load are two ends of one operation, and a probe proves the result."""

from __future__ import annotations

import numpy as np

from rlft.config import Config
from rlft.config.derived import probe_tolerance
from rlft.errors import WeightSyncError
from rlft.roles import Generator, Learner
from rlft.samples import Group, Prompt, Sample


def probe_group(prompts: list[Prompt]) -> Group:
    """The longest of these prompts as a sample whose own tokens are scored."""
    prompt = max(prompts, key=lambda p: len(p.token_ids))
    ids = prompt.token_ids if len(prompt.token_ids) > 1 else np.repeat(prompt.token_ids, 2)
    mask = np.arange(len(ids)) > 0
    nothing = np.zeros(len(ids), dtype=np.float32)
    return Group(prompt, (Sample(ids, mask, nothing, np.full(len(ids), -1, np.int32), "stop", 0, prompt.text),))


class WeightSync:
    """Brings generators onto the learner's weights, provably."""

    def __init__(self, learner: Learner, generator: Generator, probe: Group, config: Config) -> None:
        self._learner, self._generator, self._probe = learner, generator, probe
        self._every, self._tolerance = config.loop.probe_every, probe_tolerance(config)
        self._temperature = config.generator.temperature  # at which the learner's log-probs are
        self._is_first = True

    def __call__(self, version: int) -> dict[str, float]:
        """Publish, load, verify; at the first call every parameter, later those that train. Metrics of the sync."""
        update = self._learner.publish(version, everything=self._is_first)
        self._generator.load(update)
        metrics = {"sync/version": float(version), "sync/bytes": float(update.num_bytes)}
        if self._is_first or (self._every and version % self._every == 0):  # a resumed run probes where it would have
            metrics["sync/probe_diff"] = self._check(version)
        self._is_first = False
        return metrics

    def _check(self, version: int) -> float:
        """Largest difference of a token's log-prob between any generator and the learner."""
        ours = self._learner.logprobs([self._probe])[0][0]
        answers = self._generator.token_logprobs(self._probe, self._temperature)
        return max(self._compare(ours, theirs, name, version) for name, (theirs,) in answers.items())

    def _compare(self, ours: np.ndarray, theirs: np.ndarray, name: str, version: int) -> float:
        diff = float(np.abs(ours - theirs).max())
        if not diff <= self._tolerance:
            at = int(np.abs(ours - theirs).argmax())
            raise WeightSyncError(
                f"probe after weight version {version}: {name} and the learner disagree on prompt "
                f"{self._probe.prompt.id}, token {at}: log-prob {theirs[at]:.6g} against {ours[at]:.6g}, a difference "
                f"of {diff:.3g}, allowed is {self._tolerance:g} (loop.probe_tolerance). Every tensor arrived intact, "
                "so the two compute differently: look at dtype, attention and library versions on both sides."
            )
        return diff
