"""The channel between the learner and all generators over which weights are broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from actors.supervisor import get_all
from rlft.config import Config
from rlft.engines.transport import ChannelSeat


def connect(
    learners: Sequence[Any], learner_name: str, generators: Sequence[Any], names: Sequence[str], config: Config
) -> None:
    """Let rank 0 of the learner and every process of every generator join one process group."""
    limit = config.cluster.start_timeout_s
    counts = get_all([g.num_receivers.remote() for g in generators], names, "counting receivers of weights", limit)
    host, port = get_all([learners[0].address.remote()], [learner_name], "opening the channel for weights", limit)[0]
    firsts = list(accumulate(counts, initial=1))
    places = [ChannelSeat(host, port, rank, firsts[-1], config.cluster.stage_timeout_s) for rank in [0, *firsts[:-1]]]
    joining = [learners[0].call.remote("join", (places[0],))]
    joining += [g.join.remote(place) for g, place in zip(generators, places[1:], strict=True)]
    get_all(joining, [learner_name, *names], "joining the channel for weights", limit)
