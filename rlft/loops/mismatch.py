"""Tells people when generator and learner compute different log-probs from the same weights.

What is above loop.mismatch_stop never comes here: the learner refuses to learn from it.
"""

from __future__ import annotations

from collections.abc import Callable

from rlft.algorithms.sampler import MISMATCH
from rlft.config import Config
from rlft.config.derived import mismatch_stop, mismatch_warn
from rlft.roles import Metrics

_EVERY = 10  # steps from one warning to the next: a mismatch stays, and people must still see the rest


class MismatchWarning:
    """Looks at the metrics of each step."""

    def __init__(self, tell: Callable[[str], None], config: Config) -> None:
        """`tell` prints a line for people."""
        self._tell, self._dtype = tell, config.model.dtype
        self._warn, self._stop = mismatch_warn(config), mismatch_stop(config)
        self._quiet_until = 0

    def __call__(self, step: int, metrics: Metrics) -> None:
        """Warn when the step's mean difference is above loop.mismatch_warn, unless that was said a few steps ago."""
        mismatch = metrics.get(MISMATCH, 0.0)
        if mismatch <= self._warn or step < self._quiet_until:
            return
        self._quiet_until = step + _EVERY
        self._tell(
            f"warning: step {step}: with the same weights, the log-probs of generator and learner differ by "
            f"{mismatch:.3g} a token on average (the largest by {metrics['sampler/logprob_diff_max']:.3g}); in "
            f"{self._dtype} at most {self._warn:g} is expected (loop.mismatch_warn), and above {self._stop:g} the run "
            "stops (loop.mismatch_stop). Look at dtype, attention and library versions on both sides, and at whatever "
            "changes the generator's distribution (top-p, temperature)."
        )
