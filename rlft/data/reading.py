"""Reads rows, and where each came from, out of files, saved data sets, the Hub or memory.

Knows nothing about prompts, tokenizers or training: a row is a dict. `datasets` is imported only when it is needed,
because that takes seconds.
"""

from __future__ import annotations

import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from rlft.data.procedural import is_procedural, make_rows
from rlft.errors import UserError

JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
JSON = (".json", ".json.gz")
PARQUET = (".parquet", ".pq")
FORMATS = ".jsonl, .json (both also .gz), .parquet, a folder saved by `datasets`, or the name of a data set on the Hub"
HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows and their places. `places[i]` is "<file name>:<line or row, from 1>" of `rows[i]`."""

    rows: list[dict[str, Any]]
    places: list[str]
    source: str  # for messages: the file, folder, Hub name or "dataset"

    def columns(self) -> list[str]:
        """Every column that some row has, in order of first appearance."""
        seen: dict[str, None] = {}
        for row in self.rows:
            seen.update(dict.fromkeys(row))
        return list(seen)


def read_rows(path: str, *, split: str = "train", max_rows: int | None = None) -> Rows:
    """Read a JSONL, JSON or Parquet file, a folder saved by `datasets`, or "owner/name[:config]" from the Hub; or make
    the rows of "reasoning_gym:TASK" (rlft/data/procedural.py).

    Only the first `max_rows` rows are used. Raises UserError for a missing file, an unknown format, a malformed row
    (file and line named) or no rows at all.
    """
    if is_procedural(path):
        made = make_rows(path, max_rows)
        return Rows(made, [f"{path}#{number}" for number in range(1, len(made) + 1)], path)
    file = Path(path).expanduser()
    rows = _read_file(file, max_rows) if file.is_file() else _from_dataset(*open_dataset(path, split), max_rows)
    if not rows.rows:
        raise UserError(f"{path} has no rows. Expected at least one row with a prompt.")
    return rows


def rows_in_memory(data: Iterable[Any], *, max_rows: int | None = None, name: str = "dataset") -> Rows:
    """The rows of a list of dicts, a `datasets.Dataset` or anything else that yields dicts."""
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        hint = " (for a data set with splits, pass one of them: dataset['train'])" if isinstance(data, Mapping) else ""
        raise UserError(f"{name} is a {type(data).__name__}{hint}. Expected a list of dicts or a datasets.Dataset.")
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(islice(data, max_rows), start=1):
        if not isinstance(row, Mapping):
            raise UserError(f"{name}: row {number} is {_kind(row)}. Expected a dict of columns.")
        rows.append(dict(row))
    if not rows:
        raise UserError(f"{name} has no rows. Expected at least one row with a prompt.")
    return Rows(rows, [f"{name}:{i}" for i in range(1, len(rows) + 1)], name)


def near_names(path: str) -> str:
    """For messages: the files of that folder whose names are most like `path`'s, or what is there at all."""
    file = Path(path).expanduser()
    folder = file.parent
    if not folder.is_dir():
        return f"The folder {folder} does not exist either."
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(file.name, names, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(str(folder / name) for name in near) + "?"
    return f"Files in {folder.resolve()}: {', '.join(names[:8]) + (' ...' if len(names) > 8 else '') or 'none'}."


def _read_file(file: Path, max_rows: int | None) -> Rows:
    name = file.name.lower()
    try:
        if name.endswith(JSON_LINES):
            with _open(file) as stream:
                return _json_lines(file, stream, max_rows)
        if name.endswith(JSON):
            with _open(file) as stream:
                return _json(file, stream.read(), max_rows)
        if name.endswith(PARQUET):
            return _parquet(file, max_rows)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file} is not a whole gzip file ({error}). Make or download it again.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}.") from None
    raise UserError(f"{file} has a format that is not known by its name. Expected {FORMATS}.")


def _open(file: Path) -> IO[str]:
    if file.suffix.lower() == ".gz":
        return io.TextIOWrapper(cast("IO[bytes]", gzip.open(file, "rb")), encoding="utf-8-sig", newline="\n")
    return open(file, encoding="utf-8-sig", newline="\n")  # as a lone CR may stand between JSON's tokens


def _json_lines(file: Path, lines: Iterable[str], max_rows: int | None) -> Rows:
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    for number, line in enumerate(lines, start=1):
        if max_rows is not None and len(rows) == max_rows:
            break
        if not line.strip():
            continue
        rows.append(parse_line(file, number, line))
        places.append(f"{file.name}:{number}")
    return Rows(rows, places, str(file))


def parse_line(file: Path, number: int, line: str) -> dict[str, Any]:
    """The row in one line of JSON. Raises UserError that names the line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        lone = " It has carriage returns (CR) inside: lines end with LF, or CR and LF." if "\r" in line.strip() else ""
        raise UserError(
            f"{file}, line {number} is not valid JSON: {what}. Found: {_excerpt(line)}. "
            f"Expected one JSON object per line; mend or delete that line.{lone}"
        ) from None
    if not isinstance(row, dict):
        raise UserError(
            f"{file}, line {number} is {_kind(row)}: {_excerpt(line)}. "
            'Expected a JSON object with named columns, like {"prompt": "..."}.'
        )
    return row


def _json(file: Path, text: str, max_rows: int | None) -> Rows:
    if (row := one_object(text)) is not None:
        return Rows([row], [f"{file.name}:1"], str(file))
    if not text.lstrip().startswith("["):  # many .json files hold one object per line
        return _json_lines(file, io.StringIO(text), max_rows)  # splitlines would cut at U+2028 inside of texts
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{file}{line} is not valid JSON: {what}. Expected a list of objects.") from None
    rows = items[:max_rows]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{file}, row {number} is {_kind(row)}. Expected a JSON object with named columns.")
    return Rows(rows, [f"{file.name}:{i}" for i in range(1, len(rows) + 1)], str(file))


def one_object(text: str | bytes) -> dict[str, Any] | None:
    """The object that is all of a .json file, however many lines it has; None where it is none."""
    try:
        found = json.loads(text) if text.lstrip()[:1] in ("{", b"{") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _parquet(file: Path, max_rows: int | None) -> Rows:
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = []
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches():
                rows.extend(batch.to_pylist())
                if max_rows is not None and len(rows) >= max_rows:
                    break
    except pyarrow.ArrowException as error:
        raise UserError(f"{file} is not a readable Parquet file: {error}. Make or download it again.") from None
    rows = rows[:max_rows]
    return Rows(rows, [f"{file.name}:{i}" for i in range(1, len(rows) + 1)], str(file))


def open_dataset(path: str, split: str) -> tuple[Any, str, str]:
    """A folder saved by `datasets`, or a data set from the Hub: its rows by number, its source and its name in places.
    Raises UserError when it is neither."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _open_folder(folder, split), str(folder), folder.resolve().name
    return _load_hub(path, split), path, path


def _open_folder(folder: Path, split: str) -> Any:
    if not any((folder / name).exists() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
        known = (*JSON_LINES, *JSON, *PARQUET)
        files = sorted(entry.name for entry in folder.iterdir() if entry.name.lower().endswith(known))
        found = f"Give one of its files: {', '.join(files[:8])}." if files else "It holds no data file either."
        raise UserError(f"{folder} is a folder that was not saved by `datasets` (save_to_disk). {found}")
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever `datasets` says of a damaged folder
        raise UserError(f"{folder} cannot be loaded by `datasets`: {error}. Save it again.") from None
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UserError(
                f"{folder} has no split {split!r}. Splits there: {', '.join(map(str, data))}. Set data.split."
            )
        data = data[split]
    return data


def _load_hub(path: str, split: str) -> Any:
    match = HUB_NAME.fullmatch(path)
    looks_like_file = path.lower().endswith((*JSON_LINES, *JSON, *PARQUET, ".csv", ".txt", ".gz"))
    if not match or looks_like_file or path.startswith("."):
        raise UserError(f"{path} does not exist. {near_names(path)}")
    import datasets

    try:
        return datasets.load_dataset(match["name"], match["config"], split=split)
    except Exception as error:  # network, names, splits, formats: many types, all of them for the user to mend
        what = f"{type(error).__name__}: {str(error).strip()[:500]}"
        raise UserError(
            f"{path} is neither a file or folder here nor a data set that could be loaded from the Hub (split "
            f"{split!r}). {near_names(path)} The Hub's answer: {what} "
            "(a configuration is named after a colon, like openai/gsm8k:main)."
        ) from None


def _from_dataset(data: Any, source: str, name: str, max_rows: int | None) -> Rows:
    num_rows = len(data) if max_rows is None else min(max_rows, len(data))
    rows = list(_dataset_rows(data, num_rows))
    return Rows(rows, [f"{name}:{i}" for i in range(1, num_rows + 1)], source)


def _dataset_rows(data: Any, num_rows: int) -> Iterator[dict[str, Any]]:
    for begin in range(0, num_rows, 1000):  # by columns and in slices: reading row by row is many times slower
        columns: Mapping[str, Sequence[Any]] = data[begin : min(begin + 1000, num_rows)]
        names = list(columns)
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _excerpt(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 80 else line[:77] + "..."
