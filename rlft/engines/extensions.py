"""C++ extensions that are compiled when they are first needed, by a folder of our own.

torch marks a build under way by a file `lock`. A build that is killed leaves it, and everyone who comes later waits for
ever without a word. So builds are taken in turn by a lock that the system lifts when its holder dies: who holds it and
finds torch's file knows that nobody is building.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlft.errors import RunError, UserError

BUILD_LIMIT_S = 3600.0  # cpu_adam took 2 to 6 minutes on one core; a slow shared disk may take its time
_VARIABLE = "RLFT_EXTENSIONS_DIR"


def extensions_folder() -> Path:
    """Where extensions are built: $RLFT_EXTENSIONS_DIR, or one in the cache for this Python and this torch. It is no
    folder that others build in, because locks in it are taken away."""
    if given := os.environ.get(_VARIABLE):
        return Path(given)
    import torch

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "rlft" / "extensions" / f"py{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}"


def built(name: str, build: Callable[[], Any], limit_s: float = BUILD_LIMIT_S) -> Any:
    """What `build` gives, which compiles the extension `name` if nobody has done so yet.

    Raises:
        UserError: it cannot be compiled here.
        RunError: another process on it for longer than `limit_s`.
    """
    root = extensions_folder()
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    with _turn(root / "turn", name, limit_s):
        for stale in root.glob("*/lock"):  # also of what this one needs
            stale.unlink()
            _tell(f"{stale}: left by a build of {stale.parent.name} that was killed, taken away")
        if not list(folder.glob("*.so")):
            _tell(f"building {name} in {folder}: once, some minutes")
        with _surroundings(root):
            try:
                return build()
            except (RuntimeError, ImportError, OSError) as error:
                why = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"DeepSpeed's {name} cannot be compiled here: {why[:500]}. It needs a C++ compiler and ninja; "
                    "without them choose an optimizer or memory setting that does not use it"
                ) from error


@contextlib.contextmanager
def _surroundings(root: Path) -> Iterator[None]:
    """torch's folder, and always the same ninja. torch takes the first on PATH: with a virtual environment that is
    activated only now and then, another one each time, which does not know what this one built and compiles it anew."""
    before, beside = dict(os.environ), Path(sys.executable).parent
    os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
    if (beside / "ninja").exists():
        os.environ["PATH"] = os.pathsep.join([str(beside), before.get("PATH", "")])
    try:
        yield
    finally:
        for name in ("TORCH_EXTENSIONS_DIR", "PATH"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


@contextlib.contextmanager
def _turn(file: Path, name: str, limit_s: float) -> Iterator[None]:
    began, told = time.monotonic(), False
    with open(file, "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - began
                if waited > limit_s:
                    raise RunError(
                        f"{name}: another process has been building for {limit_s:g} s and holds {file}. End it, or set "
                        f"{_VARIABLE} to another folder"
                    ) from None
                if not told and waited > 5:  # loading takes less
                    _tell(f"waiting for another process that builds in {file.parent}")
                    told = True
                time.sleep(0.2)
        yield


def _tell(text: str) -> None:
    print(f"rlft: {text}", file=sys.stderr, flush=True)
