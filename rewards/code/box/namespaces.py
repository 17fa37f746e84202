"""The zygote's own view of the machine: a file system of a few read-only folders, no network, no other processes.

A plain user gets it with a user namespace; root makes it directly and then gives each zygote a user id of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from rewards.code.box import kernel

SCRATCH = "/scratch"  # where the scratch folders are, seen from inside
FIRST_ID = 2_000_000_000  # user ids from here on belong to nobody: one for each zygote of root
_READ_ONLY, _NO_SUID, _NO_DEVICES, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_KEPT = {8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}  # statvfs flags that must stay when remounting: mount's
_DETACH = 2
_MOST_FILES = 2000


def enter_namespaces(root: str, paths: Sequence[str], scratches: Sequence[str], disk_mb: int) -> int | None:
    """Leave the host's namespaces; the next child is the first process of a new one. `root`: an empty folder; `paths`:
    what can be seen; `scratches`: names of folders to write in, in memory. Returns the user id that children take, None
    for a plain user. Raises OSError where the kernel, or a container, does not allow it."""
    uid, gid = os.geteuid(), os.getegid()
    new = kernel.NEW_MOUNTS | kernel.NEW_IPC | kernel.NEW_NET | kernel.NEW_PIDS | kernel.NEW_HOST | kernel.NEW_CGROUPS
    if uid != 0:
        kernel.unshare(kernel.NEW_USER | new)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
    else:
        kernel.unshare(new)
    kernel.mount("none", "/", None, _RECURSIVE | _PRIVATE)
    kernel.mount("tmpfs", root, "tmpfs", _NO_SUID | _NO_DEVICES, "size=1m,mode=755")
    for path in _outermost(os.path.realpath(path) for path in paths if os.path.exists(path)):
        _show(root, path)
    for path in paths:
        if os.path.realpath(path) != path and os.path.exists(path) and not os.path.lexists(root + path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(os.path.realpath(path), root + path)
    own = FIRST_ID + os.getpid() if uid == 0 else None
    for name in scratches:
        target = f"{root}{SCRATCH}/{name}"
        os.makedirs(target)
        options = f"size={disk_mb}m,nr_inodes={_MOST_FILES},mode=700"
        kernel.mount("tmpfs", target, "tmpfs", _NO_SUID | _NO_DEVICES, options)
        if own is not None:
            os.chown(target, own, own)
    old = f"{root}/old"
    os.mkdir(old)
    kernel.pivot_root(root, old)
    os.chdir("/")
    kernel.unmount("/old", _DETACH)
    os.rmdir("/old")
    kernel.mount("none", "/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES)
    return own


def _outermost(paths: Iterable[str]) -> list[str]:
    """Without those that lie in another one."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(f"{outer}/") for outer in found):
            found.append(path)
    return found


def _show(root: str, path: str) -> None:
    """The file or folder at the same place below `root`, read-only."""
    target = root + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    kernel.mount(path, target, None, _BIND | _RECURSIVE)
    if path.startswith("/dev/"):
        return  # a device cannot be used in a mount without devices; it is the host's own, with its own permissions
    kept = sum(flag for found, flag in _KEPT.items() if os.statvfs(target).f_flag & found)
    kernel.mount("none", target, None, _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEVICES | kept)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
