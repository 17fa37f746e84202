"""Checkpoints that are whole or not there: written under a temporary name, listed in a manifest of hashes, flushed,
renamed. The newest few are kept, and only one whose every byte verifies is ever resumed from.

Knows nothing about what is in a checkpoint beyond state.json: the learner writes the rest.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlft.errors import RunError
from rlft.runs.files import bytes_free, free_numbered, fsync_path, is_out_of_space, readable_bytes, sha256_of

STATE = "state.json"
MANIFEST = "manifest.json"

_STEP = re.compile(r"step-(\d+)")
_logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, in `folder`: step-000050, step-000100, ... Only the process that holds the run's
    lock may call anything but `latest`."""

    def __init__(self, folder: Path, keep: int) -> None:
        """`keep`: the newest so many stay, at least 1."""
        assert keep >= 1, keep
        self.folder = Path(folder)
        self.keep = keep

    def paths(self) -> list[Path]:
        """Checkpoint folders, oldest first, by name only: nothing is verified."""
        found = [(step, p) for p in self.folder.glob("step-*") if (step := step_of(p)) is not None and p.is_dir()]
        return [path for _, path in sorted(found)]

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[Path], object]) -> Path:
        """Make checkpoint `step`: `write(folder)` puts the model and the learner's state there (other processes on the
        same file system may do it), `state` (what JSON can hold) goes into state.json with the step. Raises RunError on
        a full disk; whatever else `write` raises travels. Either way the earlier checkpoints stay."""
        assert state.get("step", step) == step, (state["step"], step)
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step-{step:06d}"
        temporary = self.folder / f".tmp-{target.name}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            write(temporary)
            (temporary / STATE).write_text(json.dumps({"step": step, **state}, indent=1), encoding="utf-8")
            _write_manifest(temporary)
        except BaseException as error:
            message = self._full_message(target, temporary, error) if is_out_of_space(error) else None
            shutil.rmtree(temporary, ignore_errors=True)
            if message is None:
                raise
            raise RunError(message) from error
        self._put_in_place(temporary, target)
        self._prune(target)
        return target

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint whose manifest verifies, and its state; None when there is no checkpoint at all.
        A corrupt one is named in a warning and kept aside as step-000050.corrupt. RunError when none is good."""
        bad: list[str] = []
        for path in reversed(self.paths()):
            problems = verify(path)
            if not problems:
                if bad:
                    _logger.warning("%s\n%s is the newest checkpoint that is whole: using it.", "\n".join(bad), path)
                return path, read_state(path)
            if not path.exists():  # pruned by the run that is writing here, while we were reading
                continue
            bad.append(f"{path} is corrupt and not used: {'; '.join(problems[:5])}.{_keep_aside(path)}")
        if bad:
            raise RunError(
                "\n".join(bad) + f"\nNo checkpoint in {self.folder} is whole. To begin again, use another --run.name."
            )
        return None

    def set_aside_from(self, step: int, besides: Path) -> list[Path]:
        """Rename checkpoints of `step` and later, except `besides`, to step-000100.before-resume-<n>, because the run
        goes on from an earlier one. Returns their new paths."""
        moved = []
        for path in self.paths():
            if (step_of(path) or 0) >= step and path != besides:
                moved.append(path.rename(free_numbered(path, "before-resume")))
        return moved

    def remove_leftovers(self) -> None:
        """Remove what a killed run left half written or half deleted."""
        for path in self.folder.glob(".replaced-step-*"):
            target = self.folder / path.name.removeprefix(".replaced-")
            if not target.exists():  # killed between two renames: the old one is still the good one
                path.rename(target)
        for pattern in (".tmp-step-*", ".old-step-*", ".replaced-step-*"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _put_in_place(self, temporary: Path, target: Path) -> None:
        replaced = self.folder / f".replaced-{target.name}"
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
        temporary.rename(target)
        fsync_path(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def _prune(self, written: Path) -> None:
        """Delete all but the newest `keep`, never the one just written. Renamed first: a half-deleted folder must not
        look like a checkpoint."""
        others = [path for path in self.paths() if path != written]
        for path in others[: max(0, len(others) - (self.keep - 1))]:
            old = path.with_name(f".old-{path.name}-{os.getpid()}")
            path.rename(old)
            shutil.rmtree(old, ignore_errors=True)

    def _full_message(self, target: Path, temporary: Path, error: BaseException) -> str:
        """What to tell people about a full disk. Called while the temporary folder is still there."""
        written = sum(path.stat().st_size for path in _files_in(temporary))
        whole = [path for path in self.paths() if not verify(path, hashes=False)]
        last = f"The last good checkpoint is {whole[-1]}" if whole else "There is no earlier checkpoint"
        return (
            f"checkpoint {target}: no room to write it ({_one_line(error)}). "
            f"{readable_bytes(written)} ({written} bytes) were written so far and more is needed; "
            f"{readable_bytes(bytes_free(self.folder))} were free at that moment, now that is taken back. {last}. "
            "Make room (also check the quota and `ulimit -f`), or lower loop.keep_checkpoints, "
            "then go on with --resume auto."
        )


def step_of(path: Path) -> int | None:
    """50 for step-000050; None for any other name."""
    match = _STEP.fullmatch(path.name)
    return int(match.group(1)) if match else None


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint that verified."""
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def verify(path: Path, hashes: bool = True) -> list[str]:
    """What is wrong with a checkpoint folder; empty when all files are there with the sizes and (unless `hashes` is
    False) the SHA-256 of its manifest. Files that the manifest does not list do no harm."""
    manifest = Path(path) / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        listed = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"]
    problems = [] if STATE in listed else [f"{MANIFEST} does not list {STATE}"]
    for name, (size, sha256) in listed.items():
        problem = _problem_of(Path(path) / name, size, sha256 if hashes else None)
        problems += [f"{name} {problem}"] if problem else []
    return problems


def _problem_of(path: Path, size: int, sha256: str | None) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"has {found} bytes, the manifest says {size}"
        if sha256 is not None and (digest := sha256_of(path)) != sha256:
            return f"has SHA-256 {digest[:16]}..., the manifest says {sha256[:16]}..."
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error})"
    return None


def _write_manifest(folder: Path) -> None:
    """Hash every file into the manifest and flush files and folders to the disk."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in _files_in(folder)
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    for path in _files_in(folder):
        fsync_path(path)
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            fsync_path(path)


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _keep_aside(path: Path) -> str:
    aside = path.with_name(f"{path.name}.corrupt")
    if aside.exists():
        aside = free_numbered(aside, "corrupt")
    try:
        path.rename(aside)
    except OSError as error:
        return f" It could not be renamed ({error})."
    return f" It is kept as {aside.name}."


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
