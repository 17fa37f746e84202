"""Calls that wait for different processes, run side by side: the first that fails is heard at once, whatever the others
wait for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What all of them return. Raises what any of them raises, without waiting for the others, which then are left to
    end with their process; each has a bound on its own waits."""
    ended: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()

    def run(number: int, call: Callable[[], Any]) -> None:
        try:
            ended.put((number, call(), None))
        except BaseException as error:
            ended.put((number, None, error))

    for number, call in enumerate(calls):
        threading.Thread(target=run, args=(number, call), name=f"together-{number}", daemon=True).start()
    results: list[Any] = [None] * len(calls)
    for _ in calls:
        number, result, error = ended.get()
        if error is not None:
            raise error
        results[number] = result
    return results
