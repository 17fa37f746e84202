"""Rows that stay in their file until they are needed: for data larger than the memory.

In memory are the place of each row (8 bytes) and the last few thousand rows that were used. Knows nothing about what a
row comes to: a function makes that of it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np

from rlft.data.procedural import is_procedural
from rlft.data.reading import JSON_LINES, PARQUET, Rows, parse_line
from rlft.errors import UserError

CACHED_ITEMS = 4096  # of some thousand tokens each: tens of megabytes
CACHED_GROUPS = 4  # row groups of a Parquet file, usually of tens of megabytes each
MAX_SKIPPED = 1000  # rows in a row that may be too long: more is a window that is too small
FIRST_ROWS = 1000  # by which the shape of the data is told

Item = TypeVar("Item")


class RowIndex(Protocol):
    """The rows of a file, by number."""

    source: str

    def __len__(self) -> int: ...
    def row(self, i: int) -> tuple[dict[str, Any], str]:
        """The row and its place, as in Rows."""
        ...


class JsonLines:
    """The rows of a JSONL file. Reads it once from end to end, to find where each line begins."""

    def __init__(self, file: Path, max_rows: int | None = None) -> None:
        self.source, self._file = str(file), file
        offsets, numbers, at = array("q"), array("q"), 0
        self._stream = file.open("rb")
        for number, line in enumerate(self._stream, start=1):
            if max_rows is not None and len(offsets) == max_rows:
                break
            if line.strip():
                offsets.append(at)
                numbers.append(number)
            at += len(line)
        self._offsets, self._numbers = np.array(offsets, np.int64), np.array(numbers, np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, i: int) -> tuple[dict[str, Any], str]:
        """See RowIndex. Raises UserError when the line is no row."""
        number = int(self._numbers[i])
        self._stream.seek(int(self._offsets[i]))
        try:
            text = self._stream.readline().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.source}, line {number} is not UTF-8 text ({error}). Save the file as UTF-8."
            ) from None
        return parse_line(self._file, number, text), f"{self._file.name}:{number}"


class ParquetRows:
    """The rows of a Parquet file. A whole row group is read for a row of it, and the last few groups are kept: quick in
    the order of the file, slow in a shuffled one unless the groups are small."""

    def __init__(self, file: Path, max_rows: int | None = None) -> None:
        import pyarrow
        from pyarrow import parquet

        self.source, self._name = str(file), file.name
        try:
            self._file = parquet.ParquetFile(file)
        except pyarrow.ArrowException as error:
            raise UserError(f"{file} is not a readable Parquet file: {error}. Make or download it again.") from None
        meta = self._file.metadata
        self._starts = [0, *np.cumsum([meta.row_group(g).num_rows for g in range(meta.num_row_groups)]).tolist()]
        self._num_rows = min(meta.num_rows, max_rows or meta.num_rows)
        self._groups: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return self._num_rows

    def row(self, i: int) -> tuple[dict[str, Any], str]:
        """See RowIndex."""
        group = bisect_right(self._starts, i) - 1
        if group not in self._groups:
            self._groups[group] = self._file.read_row_group(group)
            if len(self._groups) > CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        (row,) = self._groups[group].slice(i - self._starts[group], 1).to_pylist()
        return row, f"{self._name}:{i + 1}"


class SavedRows:
    """The rows of a folder saved by `datasets`, which maps them into memory itself."""

    def __init__(self, data: Any, source: str, name: str, max_rows: int | None = None) -> None:
        self.source, self._data, self._name = source, data, name
        self._num_rows = min(len(data), max_rows or len(data))

    def __len__(self) -> int:
        return self._num_rows

    def row(self, i: int) -> tuple[dict[str, Any], str]:
        """See RowIndex."""
        return dict(self._data[i]), f"{self._name}:{i + 1}"


def index_rows(path: str, *, split: str, max_rows: int | None) -> RowIndex:
    """The rows of a JSONL or Parquet file, or of a folder or Hub data set of `datasets`. Raises UserError for other
    files and where there are no rows."""
    from rlft.data.reading import open_dataset

    if is_procedural(path):
        raise UserError(f"data.streaming: the rows of {path} are made in memory. Leave data.streaming out.")
    file = Path(path).expanduser()
    name = file.name.lower()
    kinds = {".gz": None} | dict.fromkeys(JSON_LINES, JsonLines) | dict.fromkeys(PARQUET, ParquetRows)
    kind = next((kind for ending, kind in kinds.items() if name.endswith(ending)), None)
    if file.is_file() and kind is not None:
        try:
            index: RowIndex = kind(file, max_rows)
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error}.") from None
    elif file.is_file():
        raise UserError(
            f"data.streaming: single rows of {file} cannot be read. Expected .jsonl or .parquet, not packed with gzip; "
            "convert the file, or leave data.streaming out."
        )
    else:
        index = SavedRows(*open_dataset(path, split), max_rows)
    if not len(index):
        raise UserError(f"{path} has no rows. Expected at least one row with a prompt.")
    return index


def first_rows(index: RowIndex) -> Rows:
    """By which the shape is told."""
    rows, places = zip(*(index.row(i) for i in range(min(FIRST_ROWS, len(index)))), strict=True)
    return Rows(list(rows), list(places), index.source)


class Lazy(Sequence[Item], Generic[Item]):
    """What `make` makes of each row, made when it is asked for. Where that is None (a row to be left out) the next row
    of the file that is something stands in for it, from the first again after the last: a function of the row's number,
    so that a resumed run has the same. Keeps the last CACHED_ITEMS."""

    def __init__(self, index: RowIndex, make: Callable[[Rows], Item | None]) -> None:
        self._index, self._make = index, make
        self._made: OrderedDict[int, Item] = OrderedDict()

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, i: int) -> Item: ...
    @overload
    def __getitem__(self, i: slice) -> list[Item]: ...
    def __getitem__(self, i: int | slice) -> Item | list[Item]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        if i not in self._made:
            self._made[i] = self._first_from(i)
            if len(self._made) > CACHED_ITEMS:
                self._made.popitem(last=False)
        self._made.move_to_end(i)
        return self._made[i]

    def _first_from(self, i: int) -> Item:
        for ahead in range(min(MAX_SKIPPED, len(self))):
            row, place = self._index.row((i + ahead) % len(self))
            made = self._make(Rows([row], [place], self._index.source))
            if made is not None:
                return made
        raise UserError(
            f"{self._index.source}: row {i + 1} and the {min(MAX_SKIPPED, len(self)) - 1} behind it are too long. "
            "Use a model with a larger window (model.tiny.max_length for tiny models), or other data."
        )
