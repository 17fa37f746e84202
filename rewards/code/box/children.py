"""Children of the zygote as the supervisor sees them: started, told their job, watched, ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
import traceback
from dataclasses import dataclass
from typing import Any

from rewards.code.box import frames, scratch
from rewards.code.box.confine import MAX_THREADS, Tier
from rewards.code.box.zygote import SCRATCHES, run_zygote

MAX_FILES = 1000  # in a scratch folder
TICK_S = 0.02  # how often a process that goes on is looked at
_START_S = 30.0  # a fork and a few system calls; more than that is a machine that does not answer
_PAGE, _TICKS = os.sysconf("SC_PAGESIZE"), os.sysconf("SC_CLK_TCK")


class BoxError(Exception):
    """The sandbox itself does not work. No verdict on any program."""


@dataclass(frozen=True)
class Start:
    """A child to fork. `kind`: calls, tests, script, compile or command; `limits`: memory_mb and cpu_s; `streams`: its
    standard streams."""

    kind: str
    limits: dict[str, int]
    streams: list[int]
    peer: int | None = None


@dataclass
class Child:
    """One process in the sandbox."""

    pid: int  # as the zygote counts
    handle: int  # pidfd
    job: socket.socket
    host_pid: int | None = None

    def confirmed(self) -> None:
        """Wait until it has given up everything. Raises BoxError when it could not: then it reads no job."""
        try:
            answer = frames.receive(self.job, 4096)
        except (frames.FrameError, OSError) as error:
            raise BoxError(f"a process of the sandbox did not start: {error}") from None
        if answer != {"confined": True}:
            raise BoxError(f"a process of the sandbox could not be confined: {answer.get('broken', answer)}")

    def tell(self, job: dict[str, Any]) -> None:
        """Hand over the job, which it reads when it has given up everything."""
        try:
            frames.send(self.job, job)
        except (frames.FrameError, OSError) as error:
            self.confirmed()  # says why, if that was it
            raise BoxError(f"a process of the sandbox did not take its job: {error}") from None

    def usage(self) -> tuple[float, int]:
        """CPU seconds and number of threads by now; zeros when it has ended."""
        try:
            if self.host_pid is None:
                with open(f"/proc/self/fdinfo/{self.handle}") as file:
                    self.host_pid = int(file.read().partition("Pid:")[2].split()[0])
            with open(f"/proc/{self.host_pid}/stat") as file:
                words = file.read().rpartition(")")[2].split()
        except (OSError, IndexError, ValueError):
            return 0.0, 0
        return (int(words[11]) + int(words[12])) / _TICKS, int(words[17])


class Zygote:
    """Starts the zygote as a child of this process, which must not have seen anything secret yet."""

    def __init__(self, tier: Tier, folder: str, disk_mb: int, modules: dict[str, list[str]], close: list[int]) -> None:
        """`close`: descriptors that the zygote must not have. Raises BoxError when the tier does not work here."""
        self.tier, self._disk_mb = tier, disk_mb
        self._folders = [f"{folder}/{name}" for name in SCRATCHES]
        for path in (*self._folders, f"{folder}/root"):
            os.makedirs(path, mode=0o700)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent, self._pid = os.getpid(), os.fork()
        if self._pid == 0:
            try:
                self._control.close()
                for descriptor in close:
                    os.close(descriptor)
                run_zygote(theirs, tier, folder, disk_mb, modules, parent)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        theirs.close()
        self._control.settimeout(_START_S)
        answer = self._answer()
        if "refused" in answer:
            raise BoxError(answer["refused"])

    def start(self, *wanted: Start) -> list[Child]:
        """Fork a child for each. One message for all: what the zygote does after a fork costs it more than the same
        before, since its memory is not its own alone then."""
        pairs = [socket.socketpair() for _ in wanted]
        requests, descriptors = [], []
        for one, (mine, theirs) in zip(wanted, pairs):
            mine.settimeout(_START_S)
            requests.append({"kind": one.kind, "disk_mb": self._disk_mb, **one.limits})
            descriptors += [*one.streams, theirs.fileno(), one.streams[2] if one.peer is None else one.peer]
        try:
            socket.send_fds(self._control, [json.dumps({"start": requests}).encode()], descriptors)
            data, handles, _, _ = socket.recv_fds(self._control, 4096, len(wanted))
        except OSError as error:
            raise BoxError(f"the zygote does not answer: {error}") from None
        for _, theirs in pairs:
            theirs.close()
        if not data or len(handles) != len(wanted):
            raise BoxError("the zygote has ended")
        return [Child(pid, handle, mine) for pid, handle, (mine, _) in zip(json.loads(data), handles, pairs)]

    def end(self, *children: Child, empty: bool = True) -> list[dict[str, Any]]:
        """Kill the children, wait until they are gone, and `empty` the scratch folders; of each {"code", "cpu_s",
        "memory_mb"}. Once for a child."""
        for child in children:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(child.handle, signal.SIGKILL)
            os.close(child.handle)
            child.job.close()
        try:
            self._control.send(json.dumps({"end": [child.pid for child in children], "empty": empty}).encode())
        except OSError as error:
            raise BoxError(f"the zygote does not answer: {error}") from None
        return self._answer()

    def excess(self, child: Child, cpu_s: float) -> str:
        """What the child uses too much of; empty: nothing. CPU time says `time`."""
        seconds, threads = child.usage()
        if seconds > cpu_s:
            return "time"
        if threads > MAX_THREADS:
            return f"more than {MAX_THREADS} threads"
        if self.tier != "namespaces":  # there the file system bounds it
            size, count = map(sum, zip(*(scratch.used(path, MAX_FILES) for path in self._folders), strict=True))
            if count > MAX_FILES:
                return f"more than {MAX_FILES} files"
            if size > self._disk_mb << 20:
                return f"more than {self._disk_mb} MB of files"
        return ""

    def close(self) -> None:
        """End it and its children."""
        self._control.close()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                return
            time.sleep(0.005)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _answer(self) -> Any:
        try:
            data = self._control.recv(4096)
        except OSError as error:
            raise BoxError(f"the zygote does not answer: {error}") from None
        if not data:
            raise BoxError("the zygote has ended")
        return json.loads(data)
