"""The last stage of comparing: sympy, in a process that may be killed. This side of it, in the reward worker.

One process for each worker process, started when it is first needed and used for one pair at a time. A pair that takes
longer than its deadline costs that and an answer "timeout"; the process is killed and replaced. It ends with the
worker, even when that is killed. What goes over is text, and what comes back is a word.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple

from rlft.errors import RunError

START_S = 120.0  # sympy loads in a second; on a machine that starts many workers at once, in many
GRACE_S = 5.0  # beyond the deadline, for the keeper to kill and to answer
MEMORY_MB = 512  # that a comparison may take; usual ones take a few

Word = Literal["equal", "different", "unread", "gold_unread", "timeout", "memory", "died"]


class Reply(NamedTuple):
    """What became of a comparison. `unread` is an answer that is no mathematics, `timeout`, `memory` and `died` are
    those that the process did not survive."""

    word: Word
    detail: str = ""


class Comparer:
    """A process that compares, and whoever may use it: several threads, one at a time."""

    def __init__(self, memory_mb: int = MEMORY_MB) -> None:
        self._memory_mb = memory_mb
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._errors: IO[bytes] | None = None

    def compare(self, gold: str, answer: str, deadline_s: float, tolerance: float = 0.0) -> Reply:
        """Whether two pieces of LaTeX are the same. Takes at most the deadline and GRACE_S, once the process is there.
        Raises RunError when it cannot be started, or other threads keep it busy all the time."""
        with self._turn(START_S + 10 * (deadline_s + GRACE_S)):
            process = self._running()
            request = {"gold": gold, "answer": answer, "tolerance": tolerance, "deadline_s": deadline_s}
            try:
                os.write(process.stdin.fileno(), json.dumps(request).encode() + b"\n")  # type: ignore[union-attr]
                line = self._line(process, deadline_s + GRACE_S)
            except BrokenPipeError:
                line = b""
            if not line:  # the keeper itself is gone or stuck
                self._stop()
                return Reply("timeout" if line is None else "died", "its process was replaced")
            reply = json.loads(line)
            return Reply(reply["verdict"], reply["detail"])

    def start(self) -> float:
        """Start the process if it is not there. Seconds that this took; raises like `compare`."""
        begin = time.monotonic()
        with self._turn(START_S):
            if self._is_running():
                return 0.0
            self._running()
        return time.monotonic() - begin

    def close(self) -> None:
        """End the process. It starts again when it is needed."""
        with self._lock:
            self._stop()

    @property
    def pid(self) -> int | None:
        """Of the process, for tests."""
        return self._process.pid if self._process is not None else None

    @contextlib.contextmanager
    def _turn(self, timeout_s: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=timeout_s):
            raise RunError(f"reward 'math': other threads kept the comparing process busy for {timeout_s:.0f} s")
        try:
            yield
        finally:
            self._lock.release()

    def _is_running(self) -> bool:
        return self._process is not None and self._owner == os.getpid() and self._process.poll() is None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._is_running():
            return self._process
        if self._owner == os.getpid():
            self._stop()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in _stop)
        home = str(Path(__file__).resolve().parents[2])
        environment = {  # keys and tokens of the run stay out
            **{name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH", "HOME") if name in os.environ},
            "PYTHONPATH": os.pathsep.join([home, *(place for place in sys.path if place)]),
            "PYTHONHASHSEED": "0",  # sympy's orders, and so its times, are the same each time
            "OPENBLAS_NUM_THREADS": "1",
            "RLFT_MATH_MEMORY_MB": str(self._memory_mb),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rewards.math.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        self._owner = os.getpid()
        if self._line(self._process, START_S) != b"ready\n":
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            self._stop()
            raise RunError(
                f"reward 'math': the process that compares formulas did not start within {START_S:.0f} s. It said: "
                f"{said[-1] if said else 'nothing'}. Is math-verify installed beside rlft (see pyproject.toml)? "
                "Without it set args: {symbolic: false}, which compares numbers and texts only."
            )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], timeout_s: float) -> bytes | None:
        """The next line; b"" when the process is gone, None when nothing came in time."""
        end, line = time.monotonic() + timeout_s, b""
        fd = process.stdout.fileno()  # type: ignore[union-attr]
        while not line.endswith(b"\n"):
            if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            piece = os.read(fd, 65536)
            if not piece:
                return b""
            line += piece
        return line

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()  # its worker dies with it
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            for pipe in (process.stdin, process.stdout, self._errors):
                if pipe is not None:
                    pipe.close()


_shared: Comparer | None = None
_shared_lock = threading.Lock()


def shared() -> Comparer:
    """The one of this process."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Comparer()
            atexit.register(_shared.close)
        return _shared
