"""The reward worker actor, and several of them as one rewarder."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from actors.placement import Seat
from actors.process import here
from actors.supervisor import value_of
from rewards.combine import RewardSet
from rlft.config import Config
from rlft.errors import RunError
from rlft.samples import Group

GROUPS_AT_ONCE = 32  # in threads that mostly wait for a judge; more groups wait in the actor's queue


@ray.remote(max_concurrency=GROUPS_AT_ONCE)  # pyright: ignore[reportCallIssue]
class RewardWorker:
    """Scores groups; side by side only as far as their functions wait for others (see RewardSet.score_group)."""

    def __init__(self, config: Config, seat: Seat, rewards: RewardSet) -> None:
        self._alone = threading.Lock()
        self._rewards = rewards  # made in the driver, so that relative file names start from its folder

    def ready(self) -> str:
        """Answers once the functions are loaded: where it runs."""
        return here()

    def facts(self) -> dict[str, Any]:
        """What the functions say of where they run."""
        return dict(self._rewards.facts())

    def score(self, group: Group) -> Group:
        """The group with its rewards."""
        return self._rewards.score_group(group, self._alone)


class RewarderGroup:
    """See rlft.roles.Rewarder. Groups go to the workers in turn as they come in; each is handed back as soon as it is
    scored, while others are still coming in."""

    def __init__(self, workers: Sequence[Any], names: Sequence[str], timeout_s: float) -> None:
        self._workers, self._names, self._timeout_s = workers, names, timeout_s
        self._turns = itertools.count()

    def score(self, groups: Iterator[tuple[int, Group]]) -> Iterator[tuple[int, Group]]:
        """Reads `groups` on a thread of its own."""
        events: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._hand_out, args=(groups, events), daemon=True).start()
        handed, scored, last = 0, 0, False
        while not last or scored < handed:
            try:
                event = events.get(timeout=self._timeout_s)
            except queue.Empty:
                raise RunError(
                    f"score: no group came in or was scored for {self._timeout_s:.0f} s (cluster.stage_timeout_s); "
                    f"{handed - scored} are with {', '.join(self._names)}"
                ) from None
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, int):  # all are handed out, so many
                handed, last = event, True
                continue
            place, name, ref = event
            scored += 1
            yield place, value_of(ref, name, "score")

    def _hand_out(self, groups: Iterator[tuple[int, Group]], events: queue.Queue[Any]) -> None:
        count = 0
        try:
            for place, group in groups:
                count += 1
                who = next(self._turns) % len(self._workers)
                ref = self._workers[who].score.remote(group)
                event = (place, self._names[who], ref)
                ref.future().add_done_callback(lambda _, event=event: events.put(event))
            events.put(count)
        except BaseException as error:
            events.put(error)
