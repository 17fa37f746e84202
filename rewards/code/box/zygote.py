"""A warm interpreter that forks one process for each piece of work. It never sees a program or a test: these are read
by its children, after they have given up everything, from a socket that the supervisor hands over."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
from typing import Any

from rewards.code.box import confine, frames, paths, unhooked
from rewards.code.box.confine import JOB, PEER, Cell, Limits, Tier
from rewards.code.box.kernel import bound_capabilities, die_with_parent, drop_capabilities, prctl
from rewards.code.box.landlock import EXECUTE, SCRATCH, make_ruleset
from rewards.code.box.namespaces import SCRATCH as INSIDE
from rewards.code.box.namespaces import enter_namespaces
from rewards.code.box.rehearsal import rehearse
from rewards.code.box.scratch import empty_folder
from rewards.code.box.seccomp import Profile, make_filter
from rewards.code.box.solution import run_program, serve_calls
from rewards.code.box.tests_side import judge

SCRATCHES = ("solution", "tests")
_WARM = (
    "abc array ast bisect collections copy ctypes dataclasses datetime decimal enum fractions functools heapq io "
    "itertools json math operator random re string struct threading time traceback typing"
)
WARM = tuple(_WARM.split())  # what solutions import most: a child has them at once
_PROFILES: dict[str, Profile] = {"command": "command", "compile": "compiler"}
_CONFINED = frames.packed({"confined": True})  # what a child says before it reads its job
_GIVEN = 5  # descriptors of each child: its standard streams, JOB, PEER
_MOVED, _RULES = 100, 200  # descriptors from here on: of children while they are arranged, of rulesets
_NOT_DUMPABLE, _SUBREAPER = 4, 36  # PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER


def run_zygote(
    control: socket.socket, tier: Tier, folder: str, disk_mb: int, modules: dict[str, list[str]], parent: int
) -> None:
    """Serve until the supervisor closes. `folder` on the host has a folder for each of SCRATCHES, and `root`.
    `modules`: what programs may import besides the standard library, and where it is. First says {"ready": true} or
    {"refused": why}."""
    try:
        cells = _prepare(tier, folder, disk_mb, modules, parent)
    except Exception as error:
        control.send(json.dumps({"refused": f"{type(error).__name__}: {error}"}).encode())
        return
    control.send(json.dumps({"ready": True}).encode())
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(control, 4096, 2 * _GIVEN)
        except OSError:
            return
        if not data:
            return
        request = json.loads(data)
        if "end" in request:
            control.send(json.dumps(_end(request["end"], cells, request["empty"])).encode())
            continue
        pids = [
            _fork(wanted, descriptors[_GIVEN * i : _GIVEN * (i + 1)], cells, control)
            for i, wanted in enumerate(request["start"])
        ]
        handles = [os.pidfd_open(pid) for pid in pids]
        socket.send_fds(control, [json.dumps(pids).encode()], handles)
        for descriptor in (*descriptors, *handles):
            os.close(descriptor)


def _prepare(tier: Tier, folder: str, disk_mb: int, modules: dict[str, list[str]], parent: int) -> dict[str, Cell]:
    """Import, enter namespaces, and make the rules of each kind of child. In the tier `namespaces` this goes on in the
    first process of the new ones, and the process that called only waits for it."""
    packages = [path for found in modules.values() for path in found]
    sys.path[:] = [*paths.library_paths(), *dict.fromkeys(os.path.dirname(path) for path in packages)]
    for name in [*WARM, *modules]:
        importlib.import_module(name)
    os.environ.clear()
    os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin", LANG="C.UTF-8")
    rehearse()
    confine.measure_mapped()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # when the machine runs out of memory, what runs programs goes first
    uid, scratches = None, {name: f"{folder}/{name}" for name in SCRATCHES}
    if tier == "namespaces":
        uid = enter_namespaces(f"{folder}/root", paths.visible_paths(packages), SCRATCHES, disk_mb)
        scratches = {name: f"{INSIDE}/{name}" for name in SCRATCHES}
        _become_first_process()
    bound_capabilities()
    prctl(_NOT_DUMPABLE, 0)  # no other process of this user looks into this one's memory
    if tier == "landlock":
        drop_capabilities()
    die_with_parent(0 if tier == "namespaces" else parent)
    prctl(_SUBREAPER, 1)  # what a compiler leaves behind comes here
    counts = tier == "namespaces" and (uid is not None or _kernel() >= (5, 14))
    cells = {}
    for place, kind in enumerate(("solution", "tests", "command"), _RULES):
        scratch = scratches["tests" if kind == "tests" else "solution"]
        rules = paths.readable_paths(packages)
        if kind == "command":
            rules += [(path, EXECUTE) for path in (*paths.program_paths(), scratch)]
        ruleset = None if tier == "none" else _moved(make_ruleset([*rules, (scratch, SCRATCH)]), place)
        cells[kind] = Cell(tier, scratch, ruleset, uid, counts)
    for profile in ("python", "command", "compiler"):
        make_filter(profile, os.getpid())  # remembers the larger part of the work
    _hide()
    unhooked.random.seed(0)  # programs are judged alike, whoever forks them
    gc.collect()
    gc.freeze()
    return cells


def _moved(descriptor: int, place: int) -> int:
    """The same as the number `place`, where no child's streams are put."""
    os.dup2(descriptor, place, inheritable=False)
    os.close(descriptor)
    return place


_ENDED: dict[int, Any] = {}  # process: its status and usage, when it was not the one that was waited for
_OURS: list[Any] = []  # our own modules, which programs do not see


def _become_first_process() -> None:
    """Go on in a child, which is the first process of its namespace: all others in it end when it does."""
    first = os.fork()
    if first:
        for descriptor in range(3, 64):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        os.waitpid(first, 0)
        os._exit(0)


def _fork(request: dict[str, Any], descriptors: list[int], cells: dict[str, Cell], control: socket.socket) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        _child(request, descriptors, cells, control)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            frames.send(socket.socket(fileno=JOB), {"broken": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(120)


def _child(request: dict[str, Any], descriptors: list[int], cells: dict[str, Cell], control: socket.socket) -> None:
    """Be what `request` asks for, confined first."""
    kind = request["kind"]
    parent = os.getppid()
    control.close()
    for place, descriptor in enumerate(descriptors):
        os.dup2(descriptor, _MOVED + place)
    for place in range(len(descriptors)):
        os.dup2(_MOVED + place, place)
    cell = cells["tests" if kind == "tests" else "command" if kind in _PROFILES else "solution"]
    limits = Limits(request["memory_mb"], request["cpu_s"], request["disk_mb"])
    os.environ["HOME"] = os.environ["TMPDIR"] = cell.scratch
    os.umask(0o077)
    confine.confine(cell, _PROFILES.get(kind, "python"), limits, parent)
    job_socket = socket.socket(fileno=JOB)
    job_socket.send(_CONFINED)
    job = frames.receive(job_socket)
    if kind in _PROFILES:
        job_socket.close()
        for name, text in job["files"].items():
            with open(name, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
        for which in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(which, signal.SIG_DFL)
        origin = os.path.dirname(job["words"][0])  # of the program, for its libraries: /proc may be out of sight
        os.execve(job["words"][0], job["words"], {**os.environ, "LD_ORIGIN_PATH": origin})
    atexit._clear()
    sys.argv = ["solution.py"]
    if kind == "tests":
        unhooked.random.seed()  # of the system, so that no program knows what its tests draw
        judge(job, socket.socket(fileno=PEER), job_socket)
    elif kind == "script":
        _fresh_streams()
        run_program(job, job_socket)
    else:
        job_socket.close()
        serve_calls(job, socket.socket(fileno=PEER))


def _fresh_streams() -> None:
    """Of any bytes. Without them Python's own of the zygote go on, which lead to /dev/null."""
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr


def _hide() -> None:
    """No child needs to find our modules any more, and no program is to."""
    names = [name for name in sys.modules if name == "rewards" or name.startswith("rewards.")]
    _OURS.extend(sys.modules.pop(name) for name in names)  # kept: taking them apart would be dear


def _end(pids: list[int], cells: dict[str, Cell], empty: bool) -> list[dict[str, Any]]:
    """Kill the children that still run and wait until they are gone; how each ended and what it used. `empty` what all
    have left behind in the scratch folders."""
    for pid in pids:
        for kill in (os.kill, os.killpg):  # a child leads its own group, in which a compiler's children are too
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)
    while not all(pid in _ENDED for pid in pids):
        other, status, usage = os.wait4(-1, 0)
        _ENDED[other] = status, usage
    ended = [_ENDED.pop(pid) for pid in pids]
    if empty:
        with contextlib.suppress(ChildProcessError):  # of what came here from a compiler nobody asks
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        _ENDED.clear()
    for scratch in {cell.scratch for cell in cells.values()} if empty else ():
        empty_folder(scratch)
    return [
        {
            "code": os.waitstatus_to_exitcode(status),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "memory_mb": usage.ru_maxrss >> 10,
        }
        for status, usage in ended
    ]


def _kernel() -> tuple[int, int]:
    major, minor, *_ = os.uname().release.split(".")
    return int(major), int("".join(letter for letter in minor if letter.isdigit()) or 0)
