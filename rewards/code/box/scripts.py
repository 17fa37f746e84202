"""Judges whole programs: standard input in, standard output compared. Python by the zygote's fork, other languages by
their compilers and commands."""

from __future__ import annotations

import os
import select
import socket
import time
from dataclasses import dataclass
from typing import Any

from rewards.code.box import frames
from rewards.code.box.calls import CLOCK_FACTOR, check_owner, outcome
from rewards.code.box.children import TICK_S, Child, Start, Zygote
from rewards.code.box.compare import same_output

MAX_OUTPUT = 8 << 20  # bytes of standard output that are kept; a program that says more is ended
_TOTAL_FACTOR = 4  # all inputs of one program together may take so many times timeout_s
_COMPILE_MB, _COMPILE_S = 2048, 30


@dataclass(frozen=True)
class Ran:
    """One run of a program. `excess`: what it used too much of, `time` among it; then it was killed."""

    output: bytes
    code: int
    excess: str
    report: str
    cpu_s: float
    memory_mb: int


def judge_scripts(zygote: Zygote, job: dict[str, Any], owner: socket.socket) -> dict[str, Any]:
    """The outcome of a job {"program", "cases": [{"stdin", "stdout"}], "stop_at_first", "timeout_s", "memory_mb",
    "tolerance", "command"}. `command` is None for Python, else {"file", "compile", "run"}."""
    begin, command, total = time.monotonic(), job["command"], len(job["cases"])
    passed, detail, status, cpu_s, memory_mb = 0, "", "wrong", 0.0, 0
    if command and command["compile"]:
        files = {command["file"]: job["program"]}
        limits = {"memory_mb": _COMPILE_MB, "cpu_s": _COMPILE_S}
        made = _run(
            zygote, "compile", limits, {"words": command["compile"], "files": files}, b"", _COMPILE_S, owner, False
        )
        if made.code or made.excess:
            first = made.output.decode("utf-8", "replace").strip().splitlines()[:1] or [made.excess]
            return {**outcome("wrong", 0, total, f"does not compile: {first[0]}"), "seconds": time.monotonic() - begin}
    for number, case in enumerate(job["cases"], 1):
        if time.monotonic() - begin > _TOTAL_FACTOR * job["timeout_s"]:
            detail = detail or f"all inputs together took longer than {_TOTAL_FACTOR} x {job['timeout_s']:g} s"
            status = "timeout"
            break
        ran = _run_case(zygote, job, case, owner, last=number == total)
        cpu_s, memory_mb = cpu_s + ran.cpu_s, max(memory_mb, ran.memory_mb)
        why = _why_wrong(ran, case, job)
        passed += not why
        detail = detail or (why and f"input {number}: {why}")
        if ran.excess == "time":
            status = "timeout"
        if why and (job["stop_at_first"] or ran.excess):
            break
    used = {"cpu_s": round(cpu_s, 4), "memory_mb": memory_mb, "seconds": time.monotonic() - begin}
    return {**outcome("ok" if passed == total else status, passed, total, detail), **used}


def _run_case(zygote: Zygote, job: dict[str, Any], case: dict[str, str], owner: socket.socket, last: bool) -> Ran:
    command, limits = job["command"], {"memory_mb": job["memory_mb"], "cpu_s": int(job["timeout_s"]) + 2}
    text = case["stdin"].encode("utf-8", "surrogateescape")
    if command is None:
        return _run(zygote, "script", limits, {"program": job["program"]}, text, job["timeout_s"], owner)
    files = {} if command["compile"] else {command["file"]: job["program"]}
    return _run(
        zygote, "command", limits, {"words": command["run"], "files": files}, text, job["timeout_s"], owner, last
    )


def _why_wrong(ran: Ran, case: dict[str, str], job: dict[str, Any]) -> str:
    """Empty when the output is right."""
    if ran.excess:
        return f"took longer than {job['timeout_s']:g} s" if ran.excess == "time" else ran.excess
    if ran.code:
        return ran.report or (f"exit code {ran.code}" if ran.code > 0 else f"killed by signal {-ran.code}")
    said = ran.output.decode("utf-8", "replace")
    if same_output(said, case["stdout"], job["tolerance"]):
        return ""
    return f"printed {said.strip()[:100]!r}; expected {case['stdout'].strip()[:100]!r}"


def _run(
    zygote: Zygote, kind: str, limits: dict[str, int], told: dict[str, Any], text: bytes, timeout_s: float,
    owner: socket.socket, empty: bool = True,
) -> Ran:  # fmt: skip
    """One process from its start to its end, with `text` as standard input."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    (stdin, feed), (collect, stdout) = os.pipe(), os.pipe()
    child, streams, report = None, _Streams(feed, collect, text), ""
    try:
        try:
            (child,) = zygote.start(Start(kind, limits, [stdin, stdout, stdout if kind == "compile" else null]))
        finally:
            for descriptor in (stdin, stdout, null):
                os.close(descriptor)
        child.tell(told)
        child.confirmed()
        excess = _wait(zygote, child, streams, timeout_s, owner)
        if kind == "script" and not excess:
            report = _report(child)
    finally:
        streams.close()
        ended = zygote.end(child, empty=empty)[0] if child is not None else {}
    return Ran(bytes(streams.output), ended["code"], excess, report, ended["cpu_s"], ended["memory_mb"])


def _wait(zygote: Zygote, child: Child, streams: _Streams, timeout_s: float, owner: socket.socket) -> str:
    """Until it has ended, or used too much of something: that."""
    poll, feed, collect = select.poll(), streams.feed, streams.collect
    for descriptor in (child.handle, owner.fileno(), collect):
        poll.register(descriptor, select.POLLIN)
    poll.register(feed, select.POLLOUT)
    looked, deadline = time.monotonic(), time.monotonic() + CLOCK_FACTOR * timeout_s
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(1000 * TICK_S)}
        if owner.fileno() in ready:
            check_owner(owner)
        if feed in ready and not streams.write():
            poll.unregister(feed)
        if collect in ready and not streams.read():
            poll.unregister(collect)
        if child.handle in ready:
            while streams.read():
                pass
            return streams.excess()
        now = time.monotonic()
        if now > deadline:
            return "time"
        if now > looked + TICK_S:
            looked, excess = now, zygote.excess(child, timeout_s)
            if excess:
                return excess
        if streams.excess():
            return streams.excess()


def _report(child: Child) -> str:
    """The exception that ended it, as it says itself."""
    child.job.setblocking(False)
    try:
        return str(frames.receive(child.job, 1 << 14))[:300]
    except (frames.FrameError, OSError):
        return ""


class _Streams:
    """Our ends of a child's standard input and output."""

    def __init__(self, feed: int, collect: int, text: bytes) -> None:
        self.feed, self.collect, self.output = feed, collect, bytearray()
        self._text, self._fed = memoryview(text), 0
        os.set_blocking(feed, False)
        os.set_blocking(collect, False)

    def write(self) -> bool:
        """Feed what goes in now; False when nothing is to follow, and the pipe is closed."""
        try:
            self._fed += os.write(self.feed, self._text[self._fed : self._fed + 65536]) if self._text else 0
        except BlockingIOError:
            return True
        except OSError:  # it does not read
            self._fed = len(self._text)
        if self._fed < len(self._text):
            return True
        os.close(self.feed)
        self.feed = -1
        return False

    def read(self) -> bool:
        """Collect what there is now; False when there is nothing more, or too much."""
        try:
            part = os.read(self.collect, 65536)
        except OSError:
            return False
        self.output += part
        return bool(part) and not self.excess()

    def excess(self) -> str:
        """That there is too much; empty: there is not."""
        return f"more than {MAX_OUTPUT >> 20} MB of output" if len(self.output) > MAX_OUTPUT else ""

    def close(self) -> None:
        """Close what is open."""
        for descriptor in (self.feed, self.collect):
            if descriptor >= 0:
                os.close(descriptor)
        self.feed = self.collect = -1
