"""The reward worker actor, and several of them as one rewarder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from actors.placement import Seat
from actors.process import here
from actors.supervisor import get_each
from rewards.combine import RewardSet
from rlft.config import Config
from rlft.samples import Group


@ray.remote
class RewardWorker:
    """Scores one group at a time."""

    def __init__(self, config: Config, seat: Seat, rewards: RewardSet) -> None:
        self._rewards = rewards  # made in the driver, so that relative file names start from its folder

    def ready(self) -> str:
        """Answers once the functions are loaded: where it runs."""
        return here()

    def score(self, group: Group) -> Group:
        """The group with its rewards."""
        return self._rewards.score_group(group)


class RewarderGroup:
    """See rlft.roles.Rewarder. Groups go to the workers in turn as they come in."""

    def __init__(self, workers: Sequence[Any], names: Sequence[str], timeout_s: float) -> None:
        self._workers, self._names, self._timeout_s = workers, names, timeout_s

    def score(self, groups: Iterator[tuple[int, Group]]) -> Iterator[tuple[int, Group]]:
        """Every group is handed on before the first answer is waited for."""
        places, waiting = {}, {}
        for i, (place, group) in enumerate(groups):
            who = i % len(self._workers)
            ref = self._workers[who].score.remote(group)
            places[ref], waiting[ref] = place, self._names[who]
        for ref, group in get_each(waiting, "score", self._timeout_s):
            yield places[ref], group
