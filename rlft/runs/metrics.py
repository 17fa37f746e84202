"""metrics.jsonl: one JSON object a line and a line a step; it survives kills and resumes.

Knows nothing about what the numbers mean. Numbers that JSON cannot hold are written as null and named beside it:
{"step": 3, "policy/loss": null, "nonfinite": {"policy/loss": "nan"}}. `read_metrics` gives them back as floats.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlft.errors import UserError
from rlft.runs.files import atomic_write_text, free_numbered, full_disk_named

NONFINITE = "nonfinite"


class MetricsWriter:
    """Appends to one file, for instance metrics.jsonl or eval.jsonl. Each line is flushed when `log` returns."""

    def __init__(self, path: Path, from_step: int | None = None) -> None:
        """`from_step`: the first step that will be logged (again) after a resume. Lines of that step and later move to
        metrics.before-resume-<n>.jsonl, and so does a last line that a kill left half written."""
        self.path = Path(path)
        self.set_aside = _set_aside(self.path, from_step)  # the file that took the lines; None when there were none
        self._file = self.path.open("ab", buffering=0)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line, "step" first. Values: numbers (numpy's too), None, or strings."""
        line: dict[str, Any] = {"step": int(step)}
        nonfinite: dict[str, str] = {}
        for key, value in metrics.items():
            if key == "step":
                continue
            line[key] = _plain(value)
            if isinstance(line[key], float) and not math.isfinite(line[key]):
                nonfinite[key] = str(line[key])
                line[key] = None
        if nonfinite:
            line[NONFINITE] = nonfinite
        text = json.dumps(line, allow_nan=False) + "\n"
        with full_disk_named(self.path):
            data = memoryview(text.encode())
            while data:  # a raw file may take only a part, for instance up to the last free byte
                data = data[self._file.write(data) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines, in order. A last line that is half written is left out; any other line that is not a JSON object with
    a step is a UserError that names the file and the line."""
    try:
        text = Path(path).read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give the metrics.jsonl of a run folder.") from None
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is half a line, or nothing
        row = _parse(line)
        if row is None:
            raise UserError(
                f"{path}, line {number}: expected a JSON object with a step, found {line[:80]!r}. Remove that line."
            )
        for key, value in (row.pop(NONFINITE, None) or {}).items():
            row[key] = float(value)
        found.append(row)
    return found


def _set_aside(path: Path, from_step: int | None) -> Path | None:
    if not path.exists():
        return None
    *lines, rest = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    keep, aside = [], []
    for line in lines:
        row = _parse(line)
        gone = row is None or (from_step is not None and row["step"] >= from_step)
        (aside if gone else keep).append(line)
    aside += [rest] if rest else []
    if not aside:
        return None
    target = free_numbered(path, "before-resume")
    atomic_write_text(target, "".join(line + "\n" for line in aside))
    atomic_write_text(path, "".join(line + "\n" for line in keep))
    return target


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)
