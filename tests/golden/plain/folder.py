"""Collects goldens and writes them as a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Folder:
    """Collects inputs, cases and parameters, and writes them as a folder of goldens."""

    def __init__(self) -> None:
        self.arrays: dict[str, dict[str, np.ndarray]] = {}
        self.index: dict[str, dict[str, Any]] = {}

    def file(self, name: str, inputs: dict[str, Any], **values: Any) -> None:
        self.arrays[name] = {key: np.asarray(value) for key, value in inputs.items()}
        self.index[name] = values

    def case(self, file: str, name: str, parameters: dict[str, Any] | None, **arrays: Any) -> None:
        self.arrays[file] |= {f"{name}/{key}": np.asarray(torch.as_tensor(v).detach()) for key, v in arrays.items()}
        if parameters is not None:
            self.index[file].setdefault("cases", {})[name] = parameters

    def write(self, folder: Path) -> Path:
        for name, arrays in self.arrays.items():
            np.savez(folder / name, **arrays)
        (folder / "index.json").write_text(json.dumps({"files": self.index}))
        return folder


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    x = at.clone().requires_grad_()
    value = function(x)
    return value, torch.autograd.grad(value, x)[0]
