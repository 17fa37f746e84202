"""The actors that train: one DeepSpeed rank of the learner or of the critic each."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from actors.placement import Seat
from actors.process import here, prepare
from actors.supervisor import get_all
from rlft.config import Config
from rlft.engines.critic_rank import CriticRank
from rlft.engines.deepspeed import Rendezvous
from rlft.engines.learner import Call
from rlft.engines.policy_rank import PolicyRank
from rlft.engines.reward_rank import RewardRank
from rlft.engines.task_rank import TaskRank
from rlft.engines.weights import WeightUpdate

RANKS: dict[str, Any] = {
    "learner": PolicyRank, "critic": CriticRank, "reward_model": RewardRank, "tasks": TaskRank,
}  # fmt: skip


@ray.remote
class LearnerActor:
    """Holds one rank. It joins the others in `start`, when the address of rank 0 is known."""

    def __init__(self, config: Config, seat: Seat, role: str = "learner") -> None:
        prepare(config, seat.gpus, seat.cpus)
        self._config, self._seat, self._role = config, seat, role
        self._rank: Any = None

    def address(self) -> tuple[str, int]:
        """This node's address and a port that is free now."""
        with socket.socket() as s:
            s.bind(("", 0))
            return ray.util.get_node_ip_address(), s.getsockname()[1]

    def start(self, rendezvous: Rendezvous) -> str:
        """Load the model and join the other ranks: where it runs."""
        self._rank = RANKS[self._role](self._config, rendezvous, self._seat.device)
        return here()

    def call(self, method: str, args: Sequence[Any]) -> Any:
        """Run a method of the rank. Published weights go into the object store and only refs to them come back."""
        result = getattr(self._rank, method)(*args)
        if isinstance(result, WeightUpdate):
            return replace(result, buckets=tuple(ray.put(bucket) for bucket in result.buckets))
        return result


def start_ranks(
    actors: Sequence[Any], names: Sequence[str], config: Config, role: str = "learner"
) -> tuple[Call, list[str]]:
    """Let the ranks find each other; gives the way to call them all, and where each runs."""
    host, port = get_all([actors[0].address.remote()], names[:1], "starting", config.cluster.start_timeout_s)[0]
    where = [Rendezvous(i, len(actors), host, port, config.cluster.stage_timeout_s) for i in range(len(actors))]
    starts = [actor.start.remote(w) for actor, w in zip(actors, where, strict=True)]
    places = get_all(starts, names, f"starting the {role}", config.cluster.start_timeout_s)

    def call(method: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
        refs = [actor.call.remote(method, a) for actor, a in zip(actors, args, strict=True)]
        return get_all(refs, names, f"{role} {method}", config.cluster.stage_timeout_s)

    return call, places
