"""Folders that programs have written in: how much there is, and empty again. Whatever is in there is never opened, no
link is followed, and no depth of folders is too much."""

from __future__ import annotations

import contextlib
import os


def used(folder: str, most_files: int) -> tuple[int, int]:
    """Bytes and number of files and folders below `folder`; stops counting after `most_files`."""
    size, count, waiting = 0, 0, [folder]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue  # gone meanwhile, or a path too long to be named, which a count of folders stops
        for entry in entries:
            count += 1
            if count > most_files:
                return size, count
            try:
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
            except OSError:
                continue
    return size, count


def empty_folder(folder: str) -> None:
    """Remove all that is in there. Folders are taken apart from above: what is in one is moved up, so that a chain of
    them of any length needs neither a stack nor a long path."""
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        number, ours = 0, ""
        while entries := _entries(top):
            ours = ours or os.urandom(8).hex()  # names that nobody has put there to be in the way
            for name, is_folder in entries:
                if not is_folder:
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
                for child, _ in _entries(inner):
                    number += 1
                    os.rename(child, f"{ours}-{number}", src_dir_fd=inner, dst_dir_fd=top)
                os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def remove_folder(folder: str) -> None:
    """Remove what a supervisor has worked in, with the scratch folders in it. For itself, and for who started one that
    was killed."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            with contextlib.suppress(OSError):
                empty_folder(entry.path)
                os.rmdir(entry.path)
        os.rmdir(folder)


def _entries(descriptor: int) -> list[tuple[str, bool]]:
    with os.scandir(descriptor) as found:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
