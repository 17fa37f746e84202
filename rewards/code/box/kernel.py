"""Linux's system calls that Python has no function for, by ctypes. Each raises OSError with the call's name."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_LIBC.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
NEW_USER, NEW_MOUNTS, NEW_IPC, NEW_NET, NEW_PIDS, NEW_HOST, NEW_CGROUPS = (
    0x10000000, 0x00020000, 0x08000000, 0x40000000, 0x20000000, 0x04000000, 0x02000000,
)  # fmt: skip
_CALLS = {"x86_64": (126, 155), "aarch64": (91, 41)}  # capset, pivot_root
_CAPABILITIES = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, of this process
_NONE_OF_THEM = (ctypes.c_uint32 * 6)()


def prctl(option: int, *arguments: int) -> int:
    """prctl(2)."""
    return _checked("prctl", _LIBC.prctl(option, *arguments, *[0] * (4 - len(arguments))))


def syscall(name: str, number: int, *arguments: Any) -> int:
    """Any system call, by number; `name` for messages."""
    return _checked(name, _LIBC.syscall(ctypes.c_long(number), *arguments))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked("unshare", _LIBC.unshare(flags))


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    _checked(f"mount {target}", _LIBC.mount(*words, flags, data.encode()))


def unmount(target: str, flags: int) -> None:
    """umount2(2)."""
    _checked(f"umount {target}", _LIBC.umount2(target.encode(), flags))


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    syscall("pivot_root", _CALLS[os.uname().machine][1], new.encode(), old.encode())


def bound_capabilities() -> None:
    """No program that is executed from here on gets a capability that this process does not have."""
    for capability in range(64):
        if _LIBC.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP: not for plain users, who have nothing to lose
            break


def drop_capabilities() -> None:
    """Give up every capability."""
    syscall("capset", _CALLS[os.uname().machine][0], _CAPABILITIES, _NONE_OF_THEM)


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends. For after the last change of credentials, which takes it back."""
    prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != parent:
        os._exit(1)


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
