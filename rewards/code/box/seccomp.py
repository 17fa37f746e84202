"""The filter of system calls, as a program for the kernel's packet filter (seccomp mode 2), without any library.

It names what is allowed; everything else fails with EPERM. So what is not thought of is refused: other ABIs (i386,
x32), io_uring, bpf, keyrings, ptrace, namespaces, new processes, sockets, permissions and owners of files.
Source: Documentation/userspace-api/seccomp_filter.rst of Linux; linux/bpf_common.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import lru_cache
from typing import Literal

from rewards.code.box.kernel import prctl
from rewards.code.box.syscalls import this_architecture

Profile = Literal["python", "command", "compiler"]
"""`python`: never starts another process or program. `command`: may become another program once and again, but has no
children. `compiler`: a trusted program with an untrusted input, which has children."""

_ALLOWED = (
    "read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending "
    "rt_sigtimedwait rt_sigsuspend sigaltstack pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 "
    "sched_yield mremap msync mincore madvise dup dup3 nanosleep clock_nanosleep getitimer setitimer getpid getppid "
    "gettid recvfrom shutdown getsockname getpeername getsockopt exit exit_group uname flock fsync fdatasync "
    "ftruncate getdents64 getcwd chdir fchdir mkdirat unlinkat renameat renameat2 readlinkat newfstatat "
    "statx fstatfs statfs faccessat faccessat2 gettimeofday clock_gettime clock_getres times getrusage sysinfo "
    "getuid geteuid getgid getegid getgroups getresuid getresgid getpgid getsid capget umask futex set_robust_list "
    "set_tid_address sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max "
    "sched_get_priority_min restart_syscall epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 eventfd2 timerfd_create "
    "timerfd_settime timerfd_gettime ppoll pselect6 pipe2 sendfile copy_file_range getrandom membarrier rseq wait4 "
    "waitid getcpu getpriority fadvise64 close_range stat lstat poll access pipe select dup2 pause alarm creat "
    "rename mkdir rmdir unlink readlink getdents time epoll_create epoll_wait eventfd getpgrp arch_prctl getrlimit"
)
ALLOWED = tuple(_ALLOWED.split())
_ALLOWED_FOR: dict[str, tuple[str, ...]] = {
    "python": (),
    "command": ("execve",),
    "compiler": ("execve", "fork", "vfork", "chmod", "fchmod", "fchmodat"),  # linkers make their output executable
}
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _IF_AT_LEAST, _AND, _RETURN, _GO = 0x20, 0x15, 0x45, 0x35, 0x54, 0x06, 0x05
_FARTHEST = 255  # instructions that a condition can skip
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NR, _ARCH = 0, 4  # offsets in struct seccomp_data; argument i is at 16 + 8 i, low half first
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)  # duplicates, flags, locks; not F_SETOWN: it sends signals
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020080  # all CLONE_NEW* flags, NEWTIME among them
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 1, 1, 0xF
_O_ACCMODE, _O_TRUNC = 0o3, 0o1000
_ANY_PID = 0x7FEDCBA9  # above every process number
_NEWEST = 463  # calls from here on are newer than this file: "not implemented" makes libraries fall back


def make_filter(profile: Profile, pid: int) -> bytes:
    """The filter for the process `pid`, as an array of struct sock_filter. Raises OSError on another architecture."""
    return _filter_for_all(profile).replace(struct.pack("<I", _ANY_PID), struct.pack("<I", pid))


@lru_cache
def _filter_for_all(profile: Profile, pid: int = _ANY_PID) -> bytes:
    """With a number in the place of the process's own, which differs from every other number in it."""
    architecture = this_architecture()
    if architecture is None:
        raise OSError(errno.ENOSYS, f"no table of system calls for {os.uname().machine}")
    calls = architecture.calls
    bodies = {calls[name]: [_ALLOW_ALL] for name in (*ALLOWED, *_ALLOWED_FOR[profile]) if name in calls}
    bodies |= {calls[name]: body for name, body in _looked_at(profile, pid) if name in calls}
    pieces: list[tuple[int, list[bytes]]] = []
    for number in range(_NEWEST):
        body = bodies.get(number, [_refuse()])
        if not pieces or pieces[-1][1] != body:
            pieces.append((number, body))
    pieces.append((_NEWEST, [_refuse(errno.ENOSYS)]))
    begin = [_op(_LOAD, _ARCH), _op(_IF_EQUAL, architecture.audit, 1, 0), _refuse(), _op(_LOAD, _NR)]
    return b"".join([*begin, *_search(pieces)])


def _search(pieces: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """Goes to the body of the last piece that starts at or below the call's number, halving what is left: the
    kernel runs a new filter once for every number, and a list from front to back would make that dear."""
    if len(pieces) == 1:
        return pieces[0][1]
    middle = len(pieces) // 2
    below, above = _search(pieces[:middle]), _search(pieces[middle:])
    if len(below) <= _FARTHEST:
        return [_op(_IF_AT_LEAST, pieces[middle][0], len(below), 0), *below, *above]
    return [_op(_IF_AT_LEAST, pieces[middle][0], 0, 1), _op(_GO, len(below)), *below, *above]


def _looked_at(profile: Profile, pid: int) -> list[tuple[str, list[bytes]]]:
    """Calls that are allowed with some arguments only. A body ends in every case: nothing behind it is reached."""
    return [
        ("clone", _processes() if profile == "compiler" else _threads()),
        ("clone3", [_refuse(errno.ENOSYS)]),  # its flags are out of a filter's sight; libraries fall back to clone
        ("ioctl", _one_of(1, _IOCTLS, errno.ENOTTY)),
        ("fcntl", _one_of(1, _FCNTLS)),
        ("fallocate", [_refuse(errno.EOPNOTSUPP)]),  # gigabytes in no time; libraries fall back to writing
        ("prctl", _one_of(0, (_PR_SET_NAME, _PR_GET_NAME))),
        ("prlimit64", _one_of(0, (0, pid))),
        ("kill", _one_of(0, (pid,))),
        ("tgkill", _one_of(0, (pid,))),
        ("sendto", _connected_send()),
        ("socketpair", _pair()),
        ("open", _opens(1)),
        ("openat", _opens(2)),
    ]


def _threads() -> list[bytes]:
    return [_op(_LOAD, _low(0)), _op(_IF_ANY_BIT, _CLONE_NEW, 2, 0), _op(_IF_ANY_BIT, _CLONE_THREAD, 0, 1), *_ANSWER]


def _processes() -> list[bytes]:
    return [_op(_LOAD, _low(0)), _op(_IF_ANY_BIT, _CLONE_NEW, 1, 0), *_ANSWER]


def _connected_send() -> list[bytes]:
    """Without an address: both halves of the pointer are 0."""
    low, high = _op(_LOAD, _low(4)), _op(_LOAD, _low(4) + 4)
    return [low, _op(_IF_EQUAL, 0, 0, 3), high, _op(_IF_EQUAL, 0, 0, 1), *_ANSWER]


def _pair() -> list[bytes]:
    """A pipe of two ways that cannot be pointed elsewhere; asyncio wakes itself with one."""
    family, kind = [_op(_LOAD, _low(0)), _op(_IF_EQUAL, _AF_UNIX, 0, 4)], [_op(_LOAD, _low(1)), _op(_AND, _SOCK_TYPE)]
    return [*family, *kind, _op(_IF_EQUAL, _SOCK_STREAM, 0, 1), *_ANSWER]


def _opens(argument: int) -> list[bytes]:
    """Not O_RDONLY with O_TRUNC: below Landlock's ABI 3 that empties a file which may only be read."""
    mask = [_op(_LOAD, _low(argument)), _op(_AND, _O_TRUNC | _O_ACCMODE)]
    return [*mask, _op(_IF_EQUAL, _O_TRUNC, 1, 0), *_ANSWER]


def _one_of(argument: int, values: tuple[int, ...], otherwise: int = errno.EPERM) -> list[bytes]:
    """Allow when the low half of the argument is one of these; all of them are 32 bits wide for the kernel."""
    tests = [_op(_IF_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values)]
    return [_op(_LOAD, _low(argument)), *tests, _refuse(otherwise), _op(_RETURN, _ALLOW)]


def _low(argument: int) -> int:
    return 16 + 8 * argument


def _op(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter; the last two: how many instructions to skip."""
    return struct.pack("<HBBI", code, if_true, if_false, k)


def _refuse(number: int = errno.EPERM) -> bytes:
    return _op(_RETURN, _ERRNO | number)


_ALLOW_ALL = _op(_RETURN, _ALLOW)
_ANSWER = (_ALLOW_ALL, _refuse())


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install_filter(program: bytes) -> None:
    """Bind this process and its threads to the filter for good. Needs no_new_privs. Raises OSError."""
    wanted = _Program(len(program) // 8, program)
    prctl(22, 2, ctypes.addressof(wanted))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
