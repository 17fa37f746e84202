"""Which base an adapter was trained on: a few numbers of each of its weights, in a file beside the adapter.

A folder's name says little: another model may lie there by now. Training moves every number of a weight, so a few tell
two models apart, and cost nothing to read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from rlft.errors import UserError
from rlft.models.quantization import quantized_layers

FILE = "base_values.json"
_NUMBERS = 4  # of each weight, in places that are equally far apart
_ROUNDING = 1e-2  # of the largest of them; more than bfloat16's, for a base that is loaded in another type

Values = Mapping[str, list[float]]


@torch.no_grad()
def base_values(lm: nn.Module) -> Values:
    """Numbers of every weight of a model without adapter that is not quantized, by its name."""
    packed = {f"{name}.weight" for name in quantized_layers(lm)}
    found = {}
    for name, weight in lm.named_parameters():
        if name not in packed and weight.is_floating_point() and weight.numel():
            last, spaces = weight.numel() - 1, _NUMBERS - 1  # whole numbers: float32 has no places beyond 2**24
            places = torch.tensor([i * last // spaces for i in range(_NUMBERS)], device=weight.device)
            found[name] = weight.reshape(-1)[places].float().tolist()
    return found


def write_base(values: Values, path: str, folder: Path) -> None:
    """Write `values` of the model at `path` into the adapter's folder."""
    (folder / FILE).write_text(json.dumps({"path": path, "values": values}) + "\n", encoding="utf-8")


def check_base(values: Values, path: str, folder: Path) -> None:
    """Raise UserError when the adapter in `folder` was trained on another model than that at `path`, whose values these
    are. A folder without the file, of an earlier version, is believed."""
    if not (folder / FILE).is_file():
        return
    written = json.loads((folder / FILE).read_text(encoding="utf-8"))
    for name in sorted({*values, *written["values"]}):
        found, expected = values.get(name), written["values"].get(name)
        if found is None or expected is None:
            where = "there" if expected is None else "where it was trained"
            difference = f"{name} is {where} alone"
        elif any(abs(a - b) > _ROUNDING * max(map(abs, expected)) for a, b in zip(found, expected, strict=True)):
            difference = f"{name}: {_short(found)}, expected {_short(expected)}"
        else:
            continue
        raise UserError(
            f"{folder}: its adapter was trained on the model that was at {written['path']}, and the one at {path} is "
            f"another ({difference}). Give that model's folder with --model.path, or put it back."
        )


def _short(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
