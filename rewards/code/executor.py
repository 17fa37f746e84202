"""What runs jobs: in sandboxes of this process's own, or somewhere else over HTTP. Same jobs, same outcomes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.code.pool import Pool, Settings
from rewards.code.remote import RemoteExecutor

Job = dict[str, Any]
"""{"mode": "call", "program", "setup", "tests", "entry", "names", "stop_at_first", "timeout_s", "memory_mb"} or
{"mode": "script", "program", "cases", "tolerance", "command", ...}: see box/calls.py and box/scripts.py. Plain data."""


class Executor(Protocol):
    """Runs jobs."""

    def run(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """An outcome for each: {"status": ok | wrong | timeout | error | refused, "passed", "total", "detail",
        "seconds"}. `error` and `refused`: no verdict. Never raises for what a program does."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """Where and in what sandbox it runs. Raises UserError when it cannot run anything."""
        ...


@dataclass(frozen=True)
class Choice:
    """What decides which executor serves a reward function."""

    settings: Settings
    url: str | None = None


_LOCK = threading.Lock()
_EXECUTORS: dict[Choice, Executor] = {}


def executor_for(choice: Choice) -> Executor:
    """The executor of this process for `choice`, made when it is first asked for and kept."""
    with _LOCK:
        if choice not in _EXECUTORS:
            _EXECUTORS[choice] = RemoteExecutor(choice.url) if choice.url else Pool(choice.settings)
        return _EXECUTORS[choice]
