"""Sandboxes of this process: supervisors (box/supervisor.py), started when they are needed, kept, ended with it."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.code.box import frames
from rewards.code.box.scratch import remove_folder
from rewards.code.languages import LANGUAGES
from rlft.errors import UserError

logger = logging.getLogger(__name__)
TIERS = ("namespaces", "landlock")  # the best first
MAX_PARALLEL = 8  # unless the settings say more
UNSANDBOXED = (
    "model-written code runs WITHOUT a sandbox (allow_unsandboxed: true): it can read, change and send whatever this "
    "user can"
)
_ROOT = str(Path(__file__).resolve().parents[2])
_START = (
    "import sys; sys.path.insert(0, {root!r}); from rewards.code.box.supervisor import main; sys.path.pop(0); "
    "main({descriptor})"
)
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_START_S = 120.0  # an interpreter, a fork and some attacks: under a second, but the machine may be very busy
_SAMPLE_S = 30.0  # for a program of one line in another language
_MARGIN_S = 60.0  # beyond what a job may take by its own limits
_LONGEST = 12.0  # a job takes at most so many times its timeout_s: 4 for all inputs, 2 by the clock, and compiling


@dataclass(frozen=True)
class Settings:
    """Of a pool. `tier`: one of TIERS, or auto."""

    tier: str = "auto"
    parallel: int = 0  # judgements at a time; 0: one more than there are cores, at most MAX_PARALLEL
    disk_mb: int = 64
    modules: tuple[str, ...] = ()  # installed modules that programs and tests may import
    allow_unsandboxed: bool = False


class Refused(Exception):
    """No tier holds here: what was tried, and what each said."""


class Pool:
    """See rewards.code.executor.Executor. May be used by several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.parallel = settings.parallel or min(cores + 1, MAX_PARALLEL)  # one waits for its processes at times
        self._modules = _find_modules(settings.modules)
        self._lock = threading.Lock()
        self._free = threading.Semaphore(self.parallel)
        self._idle: list[_Supervisor] = []
        self._tier: str | None = None
        self._languages: dict[tuple[str, int], str] = {}  # and memory: why it does not work, or nothing
        self._pid = os.getpid()
        atexit.register(self.close)

    def run(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """See Executor."""
        if len(jobs) == 1:
            return [self._judge(jobs[0])]
        with ThreadPoolExecutor(self.parallel, "judge") as threads:
            return list(threads.map(self._judge, jobs))

    def facts(self) -> Mapping[str, Any]:
        """See Executor."""
        try:
            self._give_back(self._take())
        except Refused as error:
            raise UserError(f"reward 'code': {error}") from None
        found: dict[str, Any] = {"tier": self._tier, "parallel": self.parallel, "unsandboxed": self._tier == "none"}
        if self._tier == "none":
            found["warning"] = UNSANDBOXED
        return found

    def close(self) -> None:
        """End all that are idle. The others end with this process."""
        if os.getpid() == self._pid:
            with self._lock:
                idle, self._idle = self._idle, []
            for supervisor in idle:
                supervisor.close()

    def _judge(self, job: dict[str, Any]) -> dict[str, Any]:
        with self._free:
            try:
                supervisor = self._take()
            except Refused as error:
                return _none("refused", str(error))
            try:
                outcome = self._not_working(supervisor, job) or supervisor.judge(job)
            except (frames.FrameError, OSError) as error:
                supervisor.close()
                return _none("error", f"the sandbox's supervisor has failed: {error}")
            self._give_back(supervisor)
            return outcome

    def _not_working(self, supervisor: _Supervisor, job: dict[str, Any]) -> dict[str, Any] | None:
        """An outcome without a verdict when the job's language does not work in the sandbox of this machine."""
        if not job.get("command"):
            return None
        name = job["command"]["language"]
        asked = (name, job["memory_mb"])
        if asked not in self._languages:
            sample = {
                "program": LANGUAGES[name].sample,
                "cases": [{"stdin": "", "stdout": "1"}],
                "timeout_s": _SAMPLE_S,
            }
            outcome = supervisor.judge({**job, **sample})
            self._languages[asked] = "" if outcome["status"] == "ok" else outcome["detail"]
        why = self._languages[asked]
        words = f"language {name} does not work in the sandbox here, with {job['memory_mb']} MB: {why}"
        return _none("error", words) if why else None

    def _take(self) -> _Supervisor:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            tier = self._tier
        supervisor = self._started(tier)
        with self._lock:
            self._tier = supervisor.tier
        return supervisor

    def _give_back(self, supervisor: _Supervisor) -> None:
        with self._lock:
            self._idle.append(supervisor)

    def _started(self, tier: str | None) -> _Supervisor:
        """One of the best tier that holds here, or of `tier`. Raises Refused."""
        settings = self._settings
        wanted = (tier,) if tier else TIERS if settings.tier == "auto" else (settings.tier,)
        if settings.allow_unsandboxed and tier is None:
            wanted = (*wanted, "none")
        said = []
        for name in wanted:
            supervisor = _Supervisor(name, settings.disk_mb, self._modules)
            why = supervisor.start()
            if not why:
                if name == "none":
                    logger.warning("%s. %s", UNSANDBOXED, "; ".join(said))
                return supervisor
            supervisor.close()
            said.append(f"{name}: {why}")
        raise Refused(
            f"no sandbox holds on this machine ({'; '.join(said)}), so no model-written code is run. Needed is "
            "Linux on x86_64 or aarch64 with Landlock and seccomp, also inside a container; or name an executor "
            "elsewhere, or, where nothing can be lost, set allow_unsandboxed: true."
        )


class _Supervisor:
    """One process and our end of its socket."""

    def __init__(self, tier: str, disk_mb: int, modules: Mapping[str, Sequence[str]]) -> None:
        self.tier = tier
        self._settings = {"tier": tier, "disk_mb": disk_mb, "modules": modules, "folder": ""}
        self._sock, self._process = None, None

    def start(self) -> str:
        """Empty when it is ready; otherwise why not."""
        if not sys.platform.startswith("linux"):
            return f"this is {sys.platform}, not Linux"
        self._settings["folder"] = tempfile.mkdtemp(prefix="rlft-code-")
        self._sock, theirs = socket.socketpair()
        command = _START.format(root=_ROOT, descriptor=theirs.fileno())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-P", "-c", command], pass_fds=[theirs.fileno()], env=_ENVIRONMENT,
                cwd="/", start_new_session=True,  # a Ctrl-C is for the run, which ends it in its own time
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self._sock.settimeout(_START_S)
        try:
            frames.send(self._sock, self._settings)
            answer = frames.receive(self._sock)
        except (frames.FrameError, OSError) as error:
            return f"the supervisor did not start: {error}"
        return str(answer.get("refused", ""))

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        """The outcome. Raises FrameError or OSError when the supervisor is dead or does not answer in time."""
        assert self._sock is not None
        self._sock.settimeout(_LONGEST * job["timeout_s"] + _MARGIN_S)
        frames.send(self._sock, job)
        outcome = frames.receive(self._sock)
        if "refused" in outcome:
            raise frames.FrameError(outcome["refused"])
        return outcome

    def close(self) -> None:
        """End it: it does so itself when the socket is closed."""
        if self._sock is not None:
            self._sock.close()
        if self._process is not None:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            remove_folder(self._settings["folder"])


def _find_modules(names: Sequence[str]) -> dict[str, list[str]]:
    """Where each module is: its folder or file, and shared libraries that wheels keep beside it. Raises UserError."""
    found = {}
    for name in names:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.origin:
            raise UserError(f"reward 'code': modules names {name!r}, which is not installed here")
        path = str(spec.submodule_search_locations[0]) if spec.submodule_search_locations else spec.origin
        found[name] = [one for one in (path, f"{path}.libs") if os.path.exists(one)]
    return found


def _none(status: str, detail: str) -> dict[str, Any]:
    return {"status": status, "passed": 0, "total": 1, "detail": detail, "seconds": 0.0}
