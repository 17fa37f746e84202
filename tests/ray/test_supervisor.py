"""Which error a run ends with when a process dies and others, which talked to it, fail first."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import ray

from actors.supervisor import DeathError, deaths_named, get_all
from rlft.errors import RunError

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0)
class Peer:
    def pid(self) -> int:
        return os.getpid()

    def lose(self) -> None:
        raise ConnectionError("connection reset by peer")


@pytest.fixture
def peers(joined_ray: None) -> dict[str, Any]:
    kind: Any = Peer
    return {"learner-0": kind.remote(), "generator-0": kind.remote()}


def lose(peers: dict[str, Any]) -> None:
    get_all([peers["learner-0"].lose.remote()], ["learner-0"], "learner send", 60)


def test_a_death_explains_the_errors_of_others(peers: dict[str, Any]) -> None:
    pid = ray.get(peers["generator-0"].pid.remote(), timeout=60)
    with pytest.raises(DeathError) as caught, deaths_named(peers):
        os.kill(pid, signal.SIGKILL)
        lose(peers)
    assert "generator-0 died (because its worker process has died." in str(caught.value)
    assert "The error: learner send: learner-0 failed" in str(caught.value)
    assert "connection reset by peer" in str(caught.value)


def test_an_error_among_the_living_stays_what_it_is(peers: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="^learner send: learner-0 failed") as caught, deaths_named(peers):
        lose(peers)
    assert not isinstance(caught.value, DeathError)
