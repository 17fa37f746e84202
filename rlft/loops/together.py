"""Two ends of one operation, run side by side: the first that fails is heard at once, whatever the other waits for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


def together(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """What both return. Raises what either raises, without waiting for the other, which then is left to end with its
    process; each has a bound on its own waits."""
    ended: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()

    def run(number: int, call: Callable[[], Any]) -> None:
        try:
            ended.put((number, call(), None))
        except BaseException as error:
            ended.put((number, None, error))

    for number, call in enumerate((first, second)):
        threading.Thread(target=run, args=(number, call), name=f"together-{number}", daemon=True).start()
    results: dict[int, Any] = {}
    while len(results) < 2:
        number, result, error = ended.get()
        if error is not None:
            raise error
        results[number] = result
    return results[0], results[1]
