"""Which files of this machine the processes in the sandbox may read."""

from __future__ import annotations

import glob
import os
import sys
import sysconfig
from collections.abc import Sequence

from rewards.code.box.landlock import DEVICE, READ

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
_PROGRAMS = ("/bin", "/lib", "/lib64", "/usr", "/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf")
_PACKAGES = ("site-packages", "dist-packages")


def readable_paths(packages: Sequence[str]) -> list[tuple[str, int]]:
    """Paths and rights for Landlock: the standard library without what is installed beside it, shared libraries, and
    `packages`, the folders of modules that programs may import."""
    found = [(path, READ) for path in (*_FILES, *_native_libraries(), *_standard_library(), *packages)]
    return [*found, *((device, DEVICE) for device in DEVICES)]


def visible_paths(packages: Sequence[str]) -> list[str]:
    """What a file system of its own shows; Landlock's rules hold in it too, so these may be larger pieces."""
    python = (*library_paths(), _own_libraries())
    return [*_LIBRARIES, *_FILES, *program_paths(), *python, *packages, *DEVICES]


def program_paths() -> list[str]:
    """Folders of compilers and interpreters of other languages, which only commands may read and execute."""
    return [path for path in (*_PROGRAMS, *glob.glob("/etc/java*")) if os.path.exists(path)]


def library_paths() -> list[str]:
    """sys.path of the standard library alone, without what is installed beside it."""
    return [os.path.dirname(os.__file__), *(path for path in sys.path if path.endswith("lib-dynload"))]


def _standard_library() -> list[str]:
    """Each entry by itself: site-packages is in the same folder, and is no business of a program."""
    folders = [folder for folder in library_paths() if os.path.isdir(folder)]
    return [os.path.join(folder, name) for folder in folders for name in os.listdir(folder) if name not in _PACKAGES]


def _native_libraries() -> list[str]:
    """Shared libraries: the system's folder for this architecture as a whole, of other folders only the libraries right
    there, because packages of Python may be further down."""
    triplet, found = sysconfig.get_config_var("MULTIARCH"), []
    for folder in (*_LIBRARIES, _own_libraries()):
        if os.path.isdir(folder):
            found += [os.path.join(folder, triplet)] if triplet else []
            found += [entry.path for entry in os.scandir(folder) if ".so" in entry.name]
    return found


def _own_libraries() -> str:
    """Where this interpreter's own are, libpython among them."""
    return os.path.join(sys.base_prefix, "lib")
