"""Takes away from a process what judging text needs none of: memory beyond a limit, files to write, other processes,
the network, running text as code. It cannot be put back. Knows nothing about what is judged.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

MAX_STACK = 64 << 20  # bytes; deep expressions recurse in C as well
_PR_SET_PDEATHSIG = 1
_FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "urllib.", "ftplib.", "pty.")
_NO_MODULES = frozenset(
    ["ctypes", "_ctypes", "subprocess", "_posixsubprocess", "socket", "_socket", "multiprocessing", "pty"]
)
_trusts = False


@contextlib.contextmanager
def trusted() -> Iterator[None]:
    """While a library works on nothing that a model wrote: text may be compiled."""
    global _trusts
    _trusts = True
    try:
        yield
    finally:
        _trusts = False


def confine(keep: set[int], keeper: int, memory_mb: int) -> None:
    """See the module. File descriptors but `keep` are closed; the kernel ends this process with its parent `keeper`.
    The audit hook is a second fence behind never calling eval."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != keeper:  # it died before the line above
        os._exit(0)
    for fd in range(3, 256):
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    memory = _used_memory() + (memory_mb << 20)
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_STACK, MAX_STACK),
    ):
        hard = resource.getrlimit(limit)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))
    sys.addaudithook(_refuse)


def _used_memory() -> int:
    """Bytes of address space that this process has already."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """Refuse what a string could ask for if some library handed it to eval after all. Modules of sympy that are loaded
    late come from files, and are let through: they are read and compiled under their own names."""
    if event == "open":
        writes = isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or (args[1] is None and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            raise PermissionError("no files are written here")
    elif event == "import":
        if args[0].split(".")[0] in _NO_MODULES:
            raise PermissionError(f"{args[0]} is not for here")
    elif event == "compile":
        is_syntax_only = args[0] is None or args[1] == "<unknown>"  # of a tree, or ast.parse, which runs nothing
        if not (_trusts or is_syntax_only or (isinstance(args[1], str) and os.path.isabs(args[1]))):
            raise PermissionError("no text is run as code here")
    elif event.startswith(_FORBIDDEN) and event not in ("os.listdir", "os.scandir"):
        raise PermissionError(f"{event} is not for here")
