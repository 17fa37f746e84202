"""The scorer actor (the reference policy), and several of them as one scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from actors.placement import Seat
from actors.process import here, prepare
from actors.supervisor import get_all
from rlft.config import Config
from rlft.engines.build import make_scorer
from rlft.samples import Group


@ray.remote
class ScorerActor:
    """Holds one frozen model."""

    def __init__(self, config: Config, seat: Seat) -> None:
        prepare(config, seat.gpus, seat.cpus)
        self._scorer = make_scorer(config, seat.device)

    def ready(self) -> str:
        """Answers once the model is loaded: where it runs."""
        return here()

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """See rlft.roles.Scorer."""
        return self._scorer.logprobs(groups)


class ScorerGroup:
    """See rlft.roles.Scorer. Group i goes to actor i modulo their number."""

    def __init__(self, actors: Sequence[Any], names: Sequence[str], timeout_s: float) -> None:
        self._actors, self._names, self._timeout_s = actors, names, timeout_s

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """All actors at the same time."""
        count = len(self._actors)
        refs = [actor.logprobs.remote(groups[i::count]) for i, actor in enumerate(self._actors)]
        parts = get_all(refs, self._names, "reference", self._timeout_s)
        return [parts[i % count][i // count] for i in range(len(groups))]
