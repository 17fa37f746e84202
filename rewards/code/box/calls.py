"""Judges functions: the solution in one process, the tests in another, a socket between them, a clock beside them."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from typing import Any

from rewards.code.box import frames
from rewards.code.box.children import TICK_S, BoxError, Child, Start, Zygote

CLOCK_FACTOR = 2.0  # so much longer than its CPU time a program may take by the clock: the machine may be busy
TOLD_TO_TESTS = ("setup", "tests", "entry", "names", "stop_at_first")
NO_VERDICT = "the tests' process ended without a verdict"
_TESTS_MB = 512  # for the tests' process: what it makes itself, and what the solution hands over


def judge_calls(zygote: Zygote, job: dict[str, Any], owner: socket.socket) -> dict[str, Any]:
    """The outcome of a job {"program", "timeout_s", "memory_mb"} and TOLD_TO_TESTS. Raises BoxError when the sandbox
    does not work, FrameError when the owner has gone."""
    begin = time.monotonic()
    ours, theirs = socket.socketpair()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    started: list[Child] = []
    try:
        with ours, theirs:
            cpu_s = int(job["timeout_s"]) + 2
            limits = {"memory_mb": job["memory_mb"], "cpu_s": cpu_s}
            started += zygote.start(
                Start("calls", limits, [null] * 3, ours.fileno()),
                Start("tests", {**limits, "memory_mb": _TESTS_MB}, [null] * 3, theirs.fileno()),
            )
        solution, tests = started
        solution.tell({"program": job["program"]})
        tests.tell({name: job[name] for name in TOLD_TO_TESTS})
        solution.confirmed()
        tests.confirmed()
        found = _wait(zygote, solution, tests, job["timeout_s"], owner)
    finally:
        os.close(null)
        ends = zygote.end(*started) if started else []
    found = outcome_of_tests(found, ends[1], cpu_s)
    used = {"cpu_s": round(ends[0]["cpu_s"], 4), "memory_mb": ends[0]["memory_mb"]}
    return {**found, **used, "seconds": time.monotonic() - begin}


def _wait(zygote: Zygote, solution: Child, tests: Child, timeout_s: float, owner: socket.socket) -> dict[str, Any]:
    """Until there is a verdict, or too much of anything was used."""
    poll = select.poll()
    for descriptor in (tests.job.fileno(), tests.handle, owner.fileno()):
        poll.register(descriptor, select.POLLIN)
    deadline, started = time.monotonic() + CLOCK_FACTOR * timeout_s, False
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(1000 * TICK_S)}
        if owner.fileno() in ready:
            check_owner(owner)
        if tests.job.fileno() in ready:
            said = _verdict(tests)
            if said is None:
                return outcome("wrong" if started else "error", detail=NO_VERDICT)
            if "started" not in said:
                return _from_verdict(said)
            started = True
        elif tests.handle in ready:
            return outcome("wrong" if started else "error", detail=NO_VERDICT)
        excess = "time" if time.monotonic() > deadline else ""
        if not ready and not excess:
            excess = zygote.excess(solution, timeout_s) or ("time" if tests.usage()[0] > timeout_s else "")
        if excess == "time":
            what = f"took longer than {timeout_s:g} s" if started else f"the tests did nothing for {timeout_s:g} s"
            return outcome("timeout" if started else "error", detail=what)
        if excess:
            return outcome("wrong", detail=excess)


def outcome_of_tests(found: dict[str, Any], ended: dict[str, Any], cpu_s: float) -> dict[str, Any]:
    """What `_wait` has found, unless the tests' process was killed while it had CPU time left. No program can do that:
    the machine ran out of memory, or somebody outside did it, and that is no program's fault."""
    if found["detail"] == NO_VERDICT and ended["code"] == -signal.SIGKILL and ended["cpu_s"] < cpu_s - 1:
        return outcome("error", detail="the tests' process was killed from outside the sandbox")
    return found


def _verdict(tests: Child) -> dict[str, Any] | None:
    try:
        return frames.receive(tests.job, 1 << 16)
    except (frames.FrameError, OSError):
        return None


def _from_verdict(said: dict[str, Any]) -> dict[str, Any]:
    if said["fault"]:
        return outcome("error", detail=f"the tests are at fault: {said['detail']}")
    passed, total = said["passed"], said["total"]
    return outcome("ok" if passed == total else "wrong", passed, total, said["detail"])


def outcome(status: str, passed: int = 0, total: int = 1, detail: str = "") -> dict[str, Any]:
    """What is answered to a job: status ok, wrong, timeout or error (no verdict), how many tests passed, and why."""
    return {"status": status, "passed": passed, "total": total, "detail": detail[:1000]}


def check_owner(owner: socket.socket) -> None:
    """Raise FrameError when whoever asked has gone. It says nothing while it waits."""
    if not owner.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
        raise frames.FrameError("the owner has gone")


__all__ = ["BoxError", "check_owner", "judge_calls", "outcome"]
