"""Weight sync as a loop sees it: publish and load are two ends of one operation, and a probe proves the result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlft.config import Config
from rlft.config.derived import probe_tolerance
from rlft.errors import WeightSyncError
from rlft.loops.together import together
from rlft.roles import Generator, Learner
from rlft.samples import Prompt, Sample, SamplingParams, sample_seed

_TOKENS = 8  # drawn in a probe: enough to pass through prefill, the cache and several steps of decoding
_INTACT = (
    "Every tensor arrived intact, so the two compute differently: look at dtype, attention and library versions on "
    "both sides."
)
_UNPROVED = (
    "The generator repacks or quantizes some weights of this model, so they could not be compared: it may have loaded "
    "them wrongly, or compute differently. Use generator.engine transformers to see which."
)
_STEP = -2  # stands for the step in the seeds of probes


class WeightSync:
    """Brings generators onto the learner's weights, provably."""

    def __init__(self, learner: Learner, generator: Generator, prompts: Sequence[Prompt], config: Config) -> None:
        """The longest of `prompts` is what the probe draws for."""
        self._learner, self._generator = learner, generator
        self._prompt = max(prompts, key=lambda prompt: len(prompt.token_ids))
        self._every, self._tolerance = config.loop.probe_every, probe_tolerance(config)
        self._seed = config.run.seed
        self._params = SamplingParams(
            num_samples=1,
            max_new_tokens=min(_TOKENS, config.generator.max_new_tokens),
            temperature=config.generator.temperature,
            ignore_eos=True,
        )
        self._is_first = True

    def __call__(self, version: int) -> dict[str, float]:
        """Publish, load, verify; at the first call every parameter, later those that train. Metrics of the sync."""
        update = self._learner.publish(version, everything=self._is_first)
        proved, _ = together(lambda: self._generator.load(update), lambda: self._learner.send(update))
        metrics = {"sync/version": float(version), "sync/bytes": float(update.num_bytes)}
        due = self._every and version % self._every == 0  # at fixed versions: a resumed run probes where it would have
        if self._is_first or due or not proved:
            metrics["sync/probe_diff"] = self._probe(version, proved)
        self._is_first = False
        return metrics

    def _probe(self, version: int, proved: bool) -> float:
        """Every generator draws a sample; the largest difference of a token's log-prob from what the learner says."""
        seed = sample_seed(self._seed, _STEP, version, 0)
        drawn = self._generator.probe(self._prompt, seed, self._params)
        scores = self._learner.logprobs(list(drawn.values()))
        pairs = zip(drawn.items(), scores, strict=True)
        return max(self._compare(group.samples[0], ours, name, version, proved) for (name, group), (ours,) in pairs)

    def _compare(self, sample: Sample, ours: np.ndarray, name: str, version: int, proved: bool) -> float:
        made_by = set(sample.weight_versions[sample.loss_mask].tolist())
        if made_by != {version}:
            raise WeightSyncError(
                f"probe after weight version {version}: {name} drew with version {', '.join(map(str, sorted(made_by)))}"
            )
        gaps = np.abs(ours - sample.logprobs)
        diff = float(gaps.max())
        if not diff <= self._tolerance:
            at = int(np.where(np.isnan(gaps), np.inf, gaps).argmax())
            raise WeightSyncError(
                f"probe after weight version {version}: {name} and the learner disagree on prompt {self._prompt.id}, "
                f"token {at}: log-prob {sample.logprobs[at]:.6g} against {ours[at]:.6g}, a difference of {diff:.3g}, "
                f"allowed is {self._tolerance:g} (loop.probe_tolerance). " + (_INTACT if proved else _UNPROVED)
            )
        return diff
