"""Which files a process may touch (Linux's Landlock): what a list of paths names, and nothing else.

Source: Documentation/userspace-api/landlock.rst of Linux; linux/landlock.h. With newer ABIs also no TCP port, no ioctl
of devices, no abstract sockets and no signals to the outside; seccomp.py refuses these by itself on every kernel.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

from rewards.code.box.kernel import syscall

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every architecture
_EXECUTE, _WRITE, _READ, _READ_DIR = 1, 2, 4, 8
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_FILE, _RENAME, _TRUNCATE = 16, 32, 128, 256, 1 << 13, 1 << 14
_ALL_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # number of rights of each ABI; later ones have as many as 5
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE  # the others are rights on folders
READ, EXECUTE, SCRATCH = (
    _READ | _READ_DIR,
    _READ | _READ_DIR | _EXECUTE,
    _READ | _READ_DIR | _WRITE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE | _RENAME | _TRUNCATE,
)
DEVICE = _READ | _WRITE


def landlock_abi() -> int:
    """The kernel's ABI. Raises OSError where there is no Landlock, or it is off."""
    return syscall("landlock_create_ruleset", _CREATE, None, ctypes.c_size_t(0), 1)


def make_ruleset(paths: Sequence[tuple[str, int]]) -> int:
    """A descriptor of the rules: all rights that the kernel knows are refused, but for `paths` with their rights (READ,
    EXECUTE, SCRATCH, DEVICE). Paths that do not exist are left out. Raises OSError without Landlock."""
    abi = landlock_abi()
    handled = (1 << _ALL_FILE_RIGHTS[min(abi, 5)]) - 1
    net, scoped = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    sizes = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}
    attributes = struct.pack("<QQQ", handled, net, scoped)[: sizes.get(abi, 24)]
    ruleset = syscall("landlock_create_ruleset", _CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    for path, rights in paths:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("<Qi", rights & handled, place)  # packed: 12 bytes
        syscall(f"landlock_add_rule {path}", _ADD, ruleset, 1, rule, 0)
        os.close(place)
    return ruleset


def restrict(ruleset: int) -> None:
    """Bind this process and its threads to the rules for good. Needs no_new_privs."""
    syscall("landlock_restrict_self", _RESTRICT, ruleset, 0)
