"""Arrays of rows that are asked for again in every epoch, in files of the run folder: one file for each step that was
first to ask.

Knows nothing about what the arrays are. A file is written aside and renamed, so a killed run leaves whole ones; a
resumed run, which asks in the same order, finds what the run before it found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from rlft.runs.files import atomic_write

_SEPARATOR = "."


class RowStore:
    """Arrays by key and name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("step-*.safetensors")):
            self._note(path)

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def get(self, key: str) -> dict[str, np.ndarray]:
        """The arrays that were put under `key`."""
        with safe_open(self._files[key], framework="numpy") as file:
            names = [name for name in file.keys() if name.startswith(key + _SEPARATOR)]  # noqa: SIM118
            return {name.removeprefix(key + _SEPARATOR): file.get_tensor(name) for name in names}

    def put(self, step: int, rows: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Keep the arrays of several keys, those that `step` was first to ask for."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{step:06d}.safetensors"
        tensors = {
            f"{key}{_SEPARATOR}{name}": np.ascontiguousarray(array)
            for key, arrays in rows.items()
            for name, array in arrays.items()
        }
        atomic_write(path, lambda temporary: save_file(tensors, temporary))
        self._note(path)

    def _note(self, path: Path) -> None:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  # no iterator of its own
                self._files[name.partition(_SEPARATOR)[0]] = path
