"""Alarms for rewards that are gamed: the reward rises, and something else says that nothing gets better.

A step looks at the last `window` steps and at as many before them. It is a hint to look at rollouts, no proof. Knows
only the names of metrics.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rlft.roles import Metrics

REWARD, HELD_OUT = "reward/mean", "eval/accuracy"
_NOTICED = 0.02  # a fall of held-out accuracy that counts


class Sign(NamedTuple):
    """What goes the wrong way, and when."""

    metric: str
    wrong: Any  # (mean before, mean now) -> bool
    words: str


SIGNS = {
    "length": Sign("completion/length_mean", lambda before, now: not 0.67 < now / max(before, 1e-9) < 1.5, "length"),
    "entropy": Sign("policy/entropy", lambda before, now: now < 0.5 * before, "entropy"),
    "duplicates": Sign("completion/duplicates", lambda before, now: now > before + 0.2, "share of duplicates"),
}
"""Completions that get half as long again or a third shorter, that lose half their entropy, or of which another fifth
are repetitions of others of their group."""


class DriftWatch:
    """Keeps what it needs of the last steps; made again from metrics.jsonl and eval.jsonl when a run goes on."""

    def __init__(
        self, window: int, steps: Iterable[Mapping[str, Any]] = (), evaluations: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """`window` in steps; 0 watches nothing. `steps`, `evaluations`: what was logged so far, with "step"."""
        self._window, self._ringing = window, set[str]()
        self._steps: deque[Mapping[str, Any]] = deque(maxlen=max(2 * window, 1))
        self._evaluations: deque[tuple[int, float]] = deque(maxlen=max(2 * window, 1))
        for line in evaluations:
            self.evaluated(line["step"], line)
        for line in steps:
            self._ringing = {name for name in (*SIGNS, "held_out") if line.get(f"drift/{name}")}
            self._keep(line)

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take note of an evaluation."""
        if metrics.get(HELD_OUT) is not None:
            self._evaluations.append((step, metrics[HELD_OUT]))

    def __call__(self, step: int, metrics: Mapping[str, Any]) -> tuple[Metrics, list[str]]:
        """drift/held_out, drift/length, drift/entropy and drift/duplicates, 1 where the alarm rings and else 0, once
        two windows are full; and a line for people for each that has just begun to ring."""
        if not self._window or metrics.get(REWARD) is None:
            return {}, []
        self._keep(metrics)
        if len(self._steps) < 2 * self._window:
            return {}, []
        rise, held_out = self._rise(), self._held_out(step)
        ringing: dict[str, str] = {}
        if rise > 0:
            if held_out is not None and held_out[1] < held_out[0] - _NOTICED:
                ringing["held_out"] = _went("held-out accuracy", *held_out)
            if held_out is None or held_out[1] <= held_out[0]:
                ringing |= self._wrong_ways()
        told = [
            f"warning: step {step}: the reward rose by {rise:.3g} over {self._window} steps while {words}. Look at the "
            "rollouts: a reward may be gamed (tracking.drift_window)."
            for name, words in ringing.items()
            if name not in self._ringing
        ]
        self._ringing = set(ringing)
        return {f"drift/{name}": float(name in ringing) for name in ("held_out", *SIGNS)}, told

    def _keep(self, metrics: Mapping[str, Any]) -> None:
        if metrics.get(REWARD) is not None:
            self._steps.append(
                {name: metrics.get(name) for name in (REWARD, *(sign.metric for sign in SIGNS.values()))}
            )

    def _halves(self, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The metric's values [W] before and now; None when a step has none."""
        values = [line[metric] for line in self._steps]
        if any(value is None or not math.isfinite(value) for value in values):
            return None
        return np.array(values[: self._window]), np.array(values[self._window :])

    def _rise(self) -> float:
        """By how much the mean reward rose, 0 when that is within two standard errors of the difference."""
        halves = self._halves(REWARD)
        if halves is None:
            return 0.0
        before, now = halves
        rise = float(now.mean() - before.mean())
        return rise if rise > 2 * math.sqrt((before.var() + now.var()) / self._window) else 0.0

    def _held_out(self, step: int) -> tuple[float, float] | None:
        """Mean held-out accuracy of the evaluations before and now; None when one of them has none."""
        now = [value for at, value in self._evaluations if step - self._window < at <= step]
        before = [value for at, value in self._evaluations if step - 2 * self._window < at <= step - self._window]
        return (float(np.mean(before)), float(np.mean(now))) if before and now else None

    def _wrong_ways(self) -> dict[str, str]:
        found = {}
        for name, sign in SIGNS.items():
            halves = self._halves(sign.metric)
            if halves is not None:
                before, now = float(halves[0].mean()), float(halves[1].mean())
                if sign.wrong(before, now):
                    found[name] = _went(sign.words, before, now)
        return found


def _went(what: str, before: float, now: float) -> str:
    return f"the {what} went from {before:.3g} to {now:.3g}"
