"""A Ray that does not come up in time. Its slowness is made up; the Ray that is started then is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from actors.cluster import connected
from rlft.errors import RunError
from tests.helpers import make_config

pytestmark = pytest.mark.ray
SLOW = "The current node timed out during startup."


def slow_at_first(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Let Ray be so slow; the tries are counted in what this gives."""
    tries, start = list[int](), ray.init

    def init(**options: Any) -> Any:
        tries.append(len(tries))
        if len(tries) <= times:
            raise Exception(SLOW)  # as Ray does, which has no type for it
        return start(**options)

    monkeypatch.setattr(ray, "init", init)
    return tries


def test_it_is_tried_once_more(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = slow_at_first(monkeypatch, 1)
    with connected(make_config(tiny_folder, {"cluster.mode": "local"}), {}):
        assert ray.is_initialized() and ray.get(ray.remote(lambda: 7).remote(), timeout=60) == 7
    assert len(tries) == 2 and not ray.is_initialized()


def test_and_then_it_is_said_what_to_look_at(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = slow_at_first(monkeypatch, 2)
    with (
        pytest.raises(RunError, match=rf"Ray did not start on this machine, and was tried twice: {SLOW} Is .* busy"),
        connected(make_config(tiny_folder, {"cluster.mode": "local"}), {}),
    ):
        raise AssertionError("it has started")
    assert len(tries) == 2
