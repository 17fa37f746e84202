"""A process gives up, for good, all that it could do harm with. Called in a fresh fork, before it reads its job."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rewards.code.box.kernel import die_with_parent, drop_capabilities, prctl
from rewards.code.box.landlock import restrict
from rewards.code.box.seccomp import Profile, install_filter, make_filter

Tier = Literal["namespaces", "landlock", "none"]
"""`landlock`: files by Landlock, system calls by seccomp, resource limits. `namespaces`: besides these a file system, a
network and processes of its own. `none`: resource limits only."""

MAX_THREADS = 64
JOB = 3  # descriptor: the socket to the supervisor
PEER = 4  # descriptor: the socket between solution and tests
_MB = 1 << 20
_STACK = 64 * _MB  # deep recursion in C (re, json, pickle) needs more than the usual 8
_NO_NEW_PRIVILEGES = 38


class Limits(NamedTuple):
    """What one process may use."""

    memory_mb: int  # on top of what the interpreter has mapped when it starts
    cpu_s: int
    disk_mb: int


@dataclass(frozen=True)
class Cell:
    """What the zygote has prepared for one kind of process."""

    tier: Tier
    scratch: str  # folder to write in, the working directory
    ruleset: int | None  # Landlock's; None in the tier `none`
    uid: int | None  # to become; None: stay who we are
    counts_threads: bool  # whether RLIMIT_NPROC counts this sandbox alone


def confine(cell: Cell, profile: Profile, limits: Limits, parent: int) -> None:
    """Bind this process. Raises OSError when something cannot be given up; then nothing untrusted may run."""
    os.setpgid(0, 0)  # a session of its own is not needed: the supervisor has one, without a terminal
    os.chdir(cell.scratch)
    _set_limits(limits, profile, cell.counts_threads)
    if cell.uid is not None:
        os.setgroups([])
        os.setresgid(cell.uid, cell.uid, cell.uid)
        os.setresuid(cell.uid, cell.uid, cell.uid)
    if cell.tier == "none":
        die_with_parent(parent)
        os.closerange(PEER + 1, 1024)
        return
    drop_capabilities()
    die_with_parent(parent)
    prctl(_NO_NEW_PRIVILEGES, 1)
    assert cell.ruleset is not None
    restrict(cell.ruleset)
    os.closerange(PEER + 1, 1024)
    install_filter(make_filter(profile, os.getpid()))


def _set_limits(limits: Limits, profile: Profile, counts_threads: bool) -> None:
    memory = limits.memory_mb * _MB
    if profile == "python":
        _limit(resource.RLIMIT_AS, _mapped_bytes() + memory)
    else:
        _limit(resource.RLIMIT_DATA, memory)  # other runtimes reserve addresses by the gigabyte and use few
    _limit(resource.RLIMIT_CPU, limits.cpu_s)
    _limit(resource.RLIMIT_FSIZE, limits.disk_mb * _MB)
    _limit(resource.RLIMIT_NOFILE, 64 if profile == "python" else 256)
    _limit(resource.RLIMIT_STACK, _STACK)
    for nothing in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
        _limit(nothing, 0)
    if counts_threads:
        _limit(resource.RLIMIT_NPROC, MAX_THREADS + 8)  # the zygote and the tests count too


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    least = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (least, least))


def _mapped_bytes() -> int:
    """Address space that this process has now, measured once by the zygote: /proc may be out of sight here."""
    return mapped_at_start


mapped_at_start = 0


def measure_mapped() -> None:
    """For the zygote, while /proc is in sight and everything is imported."""
    global mapped_at_start
    with open("/proc/self/statm") as file:
        mapped_at_start = int(file.read().split()[0]) * resource.getpagesize()
