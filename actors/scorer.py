"""The scorer actor (the reference policy, or a teacher), and several of them as one scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.placement import Seat
from actors.process import here, prepare
from actors.supervisor import get_all
from rlft.config import Config
from rlft.engines.build import make_scorer
from rlft.engines.weights import WeightUpdate
from rlft.samples import Group, TopTokens


@ray.remote
class ScorerActor:
    """Holds one frozen model."""

    def __init__(self, config: Config, seat: Seat, role: str = "scorer") -> None:
        prepare(config, seat.gpus, seat.cpus)
        self._scorer = make_scorer(config, seat.device, role)

    def ready(self) -> str:
        """Answers once the model is loaded: where it runs."""
        return here()

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """See rlft.roles.Scorer."""
        return self._scorer.logprobs(groups)

    def top_tokens(self, groups: Sequence[Group], count: int) -> list[list[TopTokens]]:
        """See rlft.roles.Teacher."""
        return self._scorer.top_tokens(groups, count)

    def load(self, update: WeightUpdate) -> None:
        """See rlft.roles.Scorer; the buckets are object refs."""
        self._scorer.load(replace(update, buckets=tuple(ray.get(list(update.buckets), timeout=600))))

    def save(self, folder: Path) -> None:
        """See rlft.roles.Scorer."""
        self._scorer.save(folder)

    def restore(self, folder: Path) -> None:
        """See rlft.roles.Scorer."""
        self._scorer.restore(folder)


class ScorerGroup:
    """See rlft.roles.Scorer and Teacher. Group i goes to actor i modulo their number."""

    def __init__(self, actors: Sequence[Any], names: Sequence[str], timeout_s: float, stage: str = "reference") -> None:
        self._actors, self._names, self._timeout_s, self._stage = actors, names, timeout_s, stage

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """All actors at the same time."""
        return self._scattered("logprobs", groups)

    def top_tokens(self, groups: Sequence[Group], count: int) -> list[list[TopTokens]]:
        """All actors at the same time."""
        return self._scattered("top_tokens", groups, count)

    def load(self, update: WeightUpdate) -> None:
        """Every actor."""
        self._wait([actor.load.remote(update) for actor in self._actors])

    def save(self, folder: Path) -> None:
        """All hold the same: the first."""
        get_all([self._actors[0].save.remote(folder)], self._names[:1], f"{self._stage} save", self._timeout_s)

    def restore(self, folder: Path) -> None:
        """Every actor."""
        self._wait([actor.restore.remote(folder) for actor in self._actors])

    def _scattered(self, method: str, groups: Sequence[Group], *args: Any) -> list[Any]:
        count = len(self._actors)
        refs = [getattr(actor, method).remote(groups[i::count], *args) for i, actor in enumerate(self._actors)]
        parts = self._wait(refs)
        return [parts[i % count][i // count] for i in range(len(groups))]

    def _wait(self, refs: Sequence[Any]) -> list[Any]:
        return get_all(refs, self._names, self._stage, self._timeout_s)
