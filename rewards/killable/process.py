"""A process that judges what a model wrote and may be killed: this side of it, in the reward worker.

It is started when it is first needed and used for one request at a time. A request that takes longer than its deadline
costs that and a verdict "timeout"; what worked on it is killed and replaced. It ends with the worker, even when that is
killed. What goes over is JSON, and so is what comes back: never an object that could be more than it seems.
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
from typing import IO, Any

from rlft.errors import RunError

START_S = 120.0  # libraries load in seconds; on a machine that starts many workers at once, in many
GRACE_S = 5.0  # beyond the deadline, for the keeper to kill and to answer


class Killable:
    """A process with a module (see rewards/killable/child.py), for several threads, one at a time."""

    def __init__(self, module: str, memory_mb: int, purpose: str, hint: str) -> None:
        """`memory_mb`: what a request may take. `purpose` and `hint` stand in the message when it does not start."""
        self._module, self._memory_mb, self._purpose, self._hint = module, memory_mb, purpose, hint
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._errors: IO[bytes] | None = None
        atexit.register(self.close)

    def ask(self, request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """The module's reply, or one with the verdict timeout, memory, died or raised. Takes at most the deadline and
        GRACE_S, once the process is there. Raises RunError when it cannot be started, or other threads keep it busy."""
        with self._turn(START_S + 10 * (deadline_s + GRACE_S)):
            process = self._running()
            line: bytes | None
            try:
                text = json.dumps({**request, "deadline_s": deadline_s})
                os.write(process.stdin.fileno(), text.encode() + b"\n")  # type: ignore[union-attr]
                line = self._line(process, deadline_s + GRACE_S)
            except BrokenPipeError:
                line = b""
            if not line:  # the keeper itself is gone or stuck
                self._stop()
                return {"verdict": "timeout" if line is None else "died", "detail": "its process was replaced"}
            return json.loads(line)

    def start(self) -> float:
        """Start the process if it is not there. Seconds that this took; raises like `ask`."""
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
            raise RunError(f"{self._purpose}: other threads kept the process busy for {timeout_s:.0f} s")
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
            "PYTHONHASHSEED": "0",  # orders of sets, and so times, are the same each time
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rewards.killable.child", self._module, str(self._memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        self._owner = os.getpid()
        line = self._line(self._process, START_S)
        if line != b"ready\n":
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            self._stop()
            raise RunError(
                f"{self._purpose}: its process "
                f"{f'did not start within {START_S:.0f} s' if line is None else 'ended as it started'}. It said: "
                f"{said[-1] if said else 'nothing'}. {self._hint}"
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
