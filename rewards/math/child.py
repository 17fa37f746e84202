"""The process that compares mathematics: `python -m rewards.math.child`. Started by rewards/math/symbolic.py.

Two processes: the keeper, which has sympy loaded and never looks at what it passes on, and its worker, a fork of it
that does. A worker that is late is killed and forked anew, in milliseconds instead of the seconds that loading takes.
Both end with whoever started them: the keeper reads the end of its input (or sees that its parent has changed, should
somebody else hold the other end), and the kernel kills the worker when the keeper dies.

One line of JSON in, {"gold", "answer", "tolerance", "deadline_s"}, and one out, {"verdict", "detail"}.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any

WATCH_S = 2.0  # between looks at whether the parent is still there
MAX_REQUESTS = 2000  # of one worker; sympy's caches grow
MAX_STACK = 64 << 20  # bytes; deep expressions recurse in C as well
MEMORY_ENV = "RLFT_MATH_MEMORY_MB"  # more than what the keeper has when it forks
_PR_SET_PDEATHSIG = 1
_FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "urllib.", "ftplib.", "pty.")


def main() -> None:
    """Be the keeper until the input ends."""
    parent = os.getppid()
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not pass for a reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's affair
    _load()
    worker = _Worker()
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
            worker = _Worker()
        reply = worker.ask(line, json.loads(line)["deadline_s"])
        if not worker.is_alive:
            worker = _Worker()
        os.write(replies, reply + b"\n")


def _load() -> None:
    """Import what workers need and use each part once, so that no fork has to build its tables again."""
    import logging

    from rewards.math import algebra

    logging.disable(logging.CRITICAL)  # math-verify logs what it cannot compare
    for gold, answer in (
        (r"\frac{x^{2}-1}{2}=0", r"(x-1)(x+1)=0"),
        (r"\sin^2 x+\sqrt{2}\pi", "1"),
        (r"[1,2)\cup\{3\}", r"\{3\}\cup[1,2)"),
        (r"1 \le x < 2", "[1,2)"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
        (r"\sum_{k=1}^{3} k", r"|\log_2 8|+3i"),
    ):
        algebra.judge(gold, answer, 0.0)


class _Worker:
    """A fork of this process, and the two pipes to it."""

    def __init__(self) -> None:
        there, self._requests = os.pipe()
        replies, here = os.pipe()
        keeper = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._requests)
            os.close(replies)
            _serve(there, here, keeper)
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


def _serve(requests: int, replies: int, keeper: int) -> None:
    """Be the worker: answer until killed. Does not return."""
    try:
        _confine({requests, replies}, keeper)
        from rewards.math import algebra

        lines = _Lines(requests)
        while line := lines.next_line(1e6):
            request = json.loads(line)
            verdict, detail = _judged(algebra, request)
            os.write(replies, json.dumps({"verdict": verdict, "detail": detail}).encode() + b"\n")
    finally:
        os._exit(0)


def _judged(algebra: Any, request: dict[str, Any]) -> tuple[str, str]:
    try:
        return algebra.judge(request["gold"], request["answer"], request["tolerance"])
    except MemoryError:
        return "memory", ""
    except RecursionError:
        return "unread", "it is nested too deeply"
    except Exception as error:  # sympy raises all there is on what it cannot compare
        return "different", f"sympy could not compare them: {type(error).__name__}"


def _confine(keep: set[int], keeper: int) -> None:
    """Take away what comparing needs none of: memory beyond the limit, files, other processes, the network, running
    text as code. The audit hook is a second fence behind never calling eval; it cannot be taken off again."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != keeper:  # it died before the line above
        os._exit(0)
    for fd in range(3, 256):
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    memory = _used_memory() + (int(os.environ.get(MEMORY_ENV, "512")) << 20)
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_STACK, MAX_STACK),
    ):
        hard = resource.getrlimit(limit)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))
    sys.addaudithook(_refuse)


def _used_memory() -> int:
    """Bytes of address space that this process has already."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """Refuse what a string could ask for if some library handed it to eval after all. Modules of sympy that are loaded
    late come from files, and are let through: they are read and compiled under their own names."""
    if event == "open":
        writes = isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or (args[1] is None and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            raise PermissionError("no files are written here")
    elif event == "compile":
        if not (isinstance(args[1], str) and os.path.isabs(args[1])):
            raise PermissionError("no text is run as code here")
    elif event.startswith(_FORBIDDEN) and event not in ("os.listdir", "os.scandir"):
        raise PermissionError(f"{event} is not for here")


if __name__ == "__main__":
    main()
