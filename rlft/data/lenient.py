"""Reads a data file to its end whatever single lines hold: for looking at data, where reading.py would stop a run.

Knows nothing about prompts or training. What is no file of lines (Parquet, a saved data set, the Hub) is read as ever.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlft.data.reading import JSON, JSON_LINES, Rows, one_object, parse_line, read_rows
from rlft.errors import UserError


class BadLine(NamedTuple):
    """A line, or an item of a JSON list, that is no row."""

    place: str  # "<file name>:<line or row, from 1>"
    text: str  # what is wrong with it and how to mend it


def read_leniently(path: str, *, split: str = "train", max_rows: int | None = None) -> tuple[Rows, list[BadLine]]:
    """The rows of `path`, of which there may be none, and the lines that are none. `max_rows` counts both. Raises
    UserError where no line can be read."""
    file = Path(path).expanduser()
    name = file.name.lower()
    if not file.is_file() or not name.endswith((*JSON_LINES, *JSON)):
        return read_rows(path, split=split, max_rows=max_rows), []
    try:
        data = gzip.decompress(file.read_bytes()) if name.endswith(".gz") else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read: {error}.") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if name.endswith(JSON) and (whole := one_object(data)) is not None:
        return Rows([whole], [f"{file.name}:1"], str(file)), []
    rows, places, bad = list[dict[str, Any]](), list[str](), list[BadLine]()

    def take(number: int, row: Callable[[], dict[str, Any]]) -> None:
        try:
            rows.append(row())
            places.append(f"{file.name}:{number}")
        except UserError as error:
            bad.append(BadLine(f"{file.name}:{number}", str(error).removeprefix(f"{file}, line {number} ")))

    is_list = name.endswith(JSON) and data.lstrip().startswith(b"[")
    items = _items_of_list(file, data) if is_list else data.split(b"\n")
    for number, item in enumerate(items, start=1):
        if max_rows is not None and len(rows) + len(bad) == max_rows:
            break
        if is_list:
            take(number, lambda item=item: _item(file, item))
        elif item.strip():
            take(number, lambda item=item, number=number: _line(file, number, item))
    return Rows(rows, places, str(file)), bad


def _items_of_list(file: Path, data: bytes) -> list[Any]:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{file}{line} is not valid JSON: {error}. Expected a list of objects.") from None


def _item(file: Path, item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        return item
    raise UserError(f"is {str(item)[:60]!r}. Expected a JSON object with named columns.")


def _line(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}, line {number} is not UTF-8 text ({error}). Save it as UTF-8.") from None
    return parse_line(file, number, text)
