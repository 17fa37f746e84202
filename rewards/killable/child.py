"""A process that judges what a model wrote: `python -m rewards.killable.child MODULE MEMORY_MB`. See process.py beside.

Two processes: the keeper, which has the module loaded and never looks at what it passes on, and its worker, a fork
of it that does. A worker that is late is killed and forked anew, in milliseconds instead of the seconds that loading
takes. Both end with whoever started them: the keeper reads the end of its input (or sees that its parent has changed,
should somebody else hold the other end), and the kernel kills the worker when the keeper dies.

MODULE has `prepare()`, called once before the first fork, and `reply(request)`. One line of JSON in, with "deadline_s",
and one out, with "verdict": what `reply` says, or "timeout", "memory", "died" or "raised".
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
from typing import Any

from rewards.killable.fence import confine

WATCH_S = 2.0  # between looks at whether the parent is still there
MAX_REQUESTS = 2000  # of one worker; libraries' caches grow


def main() -> None:
    """Be the keeper until the input ends."""
    parent = os.getppid()
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not pass for a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's affair
    module, memory_mb = importlib.import_module(sys.argv[1]), int(sys.argv[2])
    module.prepare()
    worker = _Worker(module, memory_mb)
    os.write(replies, b"ready\n")
    requests = _Lines(0)
    while True:
        line = requests.next_line(WATCH_S)
        if line == b"" or os.getppid() != parent:
            worker.kill()
            return
        if line is None:
            continue
        if worker.served >= MAX_REQUESTS:
            worker.kill()
            worker = _Worker(module, memory_mb)
        reply = worker.ask(line, json.loads(line)["deadline_s"])
        if not worker.is_alive:
            worker = _Worker(module, memory_mb)
        os.write(replies, reply + b"\n")


class _Worker:
    """A fork of this process, and the two pipes to it."""

    def __init__(self, module: Any, memory_mb: int) -> None:
        there, self._requests = os.pipe()
        replies, here = os.pipe()
        keeper = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._requests)
            os.close(replies)
            confine({there, here}, keeper, memory_mb)
            _serve(module, there, here)
        os.close(there)
        os.close(here)
        self._replies = _Lines(replies)
        self._reply_fd = replies
        self.is_alive, self.served = True, 0

    def ask(self, line: bytes, deadline_s: float) -> bytes:
        """The worker's reply, or one that says why there is none; then the worker is gone."""
        self.served += 1
        end = time.monotonic() + deadline_s
        try:
            os.write(self._requests, line)
        except BrokenPipeError:
            return self._gone("died")
        while time.monotonic() < end:
            reply = self._replies.next_line(min(WATCH_S, max(0.0, end - time.monotonic())))
            if reply == b"":
                return self._gone("died")
            if reply is not None:
                if json.loads(reply)["verdict"] == "memory":  # it may have left anything half done
                    self.kill()
                return reply.rstrip()
        return self._gone("timeout")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._requests)
        os.close(self._reply_fd)
        self.is_alive = False

    def _gone(self, verdict: str) -> bytes:
        self.kill()
        return json.dumps({"verdict": verdict, "detail": ""}).encode()


class _Lines:
    """Lines from a file descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd, self._rest = fd, b""

    def next_line(self, timeout_s: float) -> bytes | None:
        """The next line; b"" at the end; None when none came in time."""
        end = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            if not select.select([self._fd], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            piece = os.read(self._fd, 65536)
            if not piece:
                return b""
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        return line + b"\n"


def _serve(module: Any, requests: int, replies: int) -> None:
    """Be the worker: answer until killed. Does not return."""
    try:
        lines = _Lines(requests)
        while line := lines.next_line(1e6):
            os.write(replies, json.dumps(_reply(module, json.loads(line))).encode() + b"\n")
    finally:
        os._exit(0)


def _reply(module: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return module.reply(request)
    except MemoryError:
        return {"verdict": "memory", "detail": ""}
    except Exception as error:  # whatever a library raises on what a model wrote
        return {"verdict": "raised", "detail": f"{type(error).__name__}: {error}"[:200]}


if __name__ == "__main__":
    main()
