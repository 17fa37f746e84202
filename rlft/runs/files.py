"""Writing files so that a kill or a full disk leaves either the old content or the new, never half of it.

Knows nothing about what is in the files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlft.errors import RunError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_TEXTS = tuple(
    text.lower()
    for code in sorted(_FULL)
    for text in (os.strerror(code), f"os error {code})", f"[errno {code}]")  # Rust's way and Python's, after pickling
) + ("unexpected pos ", "pytorchstreamwriter failed writing")  # torch.save: its writer says no more than this


def is_out_of_space(error: BaseException) -> bool:
    """Whether this error, or one that caused it, says that the disk, the quota or the file size limit is used up.
    safetensors and torch raise types of their own, and errors that crossed a process keep only their text."""
    seen: list[BaseException] = []
    todo: list[object] = [error]
    while todo:
        e = todo.pop()
        if not isinstance(e, BaseException) or any(e is s for s in seen):
            continue
        seen.append(e)
        if isinstance(e, OSError) and e.errno in _FULL:
            return True
        text = str(e).lower()
        if not isinstance(e, RunError) and any(t in text for t in _FULL_TEXTS):
            return True
        todo += [e.__cause__, e.__context__, getattr(e, "cause", None)]  # `cause`: Ray's errors
    return False


def bytes_free(path: Path) -> int:
    """Bytes that this user may still write on the disk that holds `path` or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def readable_bytes(count: int) -> str:
    """For instance "1.5 GB"."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn a full disk while writing `path` into a RunError that names it. Other errors travel."""
    try:
        yield
    except Exception as error:
        if not is_out_of_space(error):
            raise
        raise RunError(
            f"{path}: cannot be written, the disk, quota or file size limit is used up ({error}); "
            f"{readable_bytes(bytes_free(path))} free. Make room, then go on with --resume auto."
        ) from error


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write(temporary)` make the file beside `path`, flush it to the disk, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}.tmp")  # one writer per run (its lock), so the name need not be unique
    try:
        with full_disk_named(path):
            write(temporary)
            fsync_path(temporary)
            os.replace(temporary, path)
            fsync_path(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write` of a UTF-8 text."""
    atomic_write(path, lambda temporary: temporary.write_bytes(text.encode()))


def fsync_path(path: Path) -> None:
    """Flush a file or a folder (the names in it) to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_numbered(path: Path, word: str) -> Path:
    """`path` with `.word-<n>` before its suffix, n the first number from 1 that no file has yet."""
    n = 1
    while (found := path.with_name(f"{path.stem}.{word}-{n}{path.suffix}")).exists():
        n += 1
    return found


def whole_lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """(number from 1, line, where it begins) of each line of a file that lines are appended to. Half a last line, which
    a killed process leaves, is cut off."""
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                os.truncate(path, place)
                return
            yield number, line, place
            place += len(line)
