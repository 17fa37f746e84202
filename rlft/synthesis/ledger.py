"""What has been done so far, on the disk: one line for each finished row, so that a killed job goes on where it was.

    OUT.ledger.jsonl     the settings, then a line per finished row: id, fingerprint, rows made, usage. Only appended to
    OUT                  the rows made, in the order of the source, written whole from the ledger whenever a job ends

Knows nothing about endpoints or what rows mean. Of two lines for one row the last counts: it failed, then it did not.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlft.endpoint.usage import Usage
from rlft.errors import RunError, UserError
from rlft.runs.files import atomic_write, is_out_of_space, whole_lines
from rlft.runs.folder import RunLock
from rlft.synthesis.rows import Outcome, SourceRow

SYNC_EVERY_S = 1.0  # a kill loses nothing that was written; a power cut at most what came since


class _Entry(NamedTuple):
    """A finished row, without what was made of it."""

    place: int  # of its line in the file, in bytes
    num_rows: int
    left_out: Mapping[str, int]
    failed: str
    detail: str


class Counts(NamedTuple):
    """What became of the source rows that are finished."""

    num_done: int  # without those that failed
    num_made: int  # rows for training
    left_out: Counter[str]  # by reason
    failed: Counter[str]  # source rows, by kind


class Ledger:
    """The ledger of one output file, held by this process alone until `close`."""

    def __init__(self, out: Path, settings: Mapping[str, Any], rows: Sequence[SourceRow]) -> None:
        """Begin it, or take it over. `settings`: everything that shapes the rows. Raises UserError when another
        process writes it, when it was begun with other settings or other data, when a line is damaged, or when `out` is
        there and is none of ours. A last line that a kill left half written is cut off; that row is done again."""
        self.out, self._rows = out, rows
        self.path = out.with_name(out.name + ".ledger.jsonl")
        self.usage = Usage()
        self.num_resumed = 0
        self._entries: dict[str, _Entry] = {}
        self._num_made, self._left_out, self._failed = 0, Counter[str](), Counter[str]()
        self._synced = time.monotonic()
        self._lock = _lock(out)
        try:
            self._open(json.loads(json.dumps(settings)))
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Let others write it."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._lock.release()

    def is_done(self, row: SourceRow) -> bool:
        """Whether nothing is left to do for it; a row that failed is to be tried again."""
        entry = self._entries.get(row.id)
        return entry is not None and not entry.failed

    def add(self, row: SourceRow, outcome: Outcome, usage: Usage) -> None:
        """Append a finished row."""
        line = {"id": row.id, "fingerprint": row.fingerprint, "rows": list(outcome.rows)}
        line |= {"left_out": dict(outcome.left_out)} if outcome.left_out else {}
        line |= {"failed": outcome.failed, "detail": outcome.detail} if outcome.failed else {}
        self._append(line | {"usage": usage.as_json()})

    def add_usage(self, usage: Usage) -> None:
        """Append what was spent on rows that were not finished."""
        if usage.requests:
            self._append({"usage": usage.as_json()})

    def counts(self) -> Counts:
        """So far."""
        return Counts(len(self._entries) - self._failed.total(), self._num_made, +self._left_out, +self._failed)

    def example_failure(self) -> str:
        """Which row failed last, and how; empty when none did."""
        failed = [(id_, entry) for id_, entry in self._entries.items() if entry.failed]
        return f"{failed[-1][0]}: {failed[-1][1].failed}: {failed[-1][1].detail}" if failed else ""

    def made(self) -> Iterator[dict[str, Any]]:
        """Every row made so far, in the order of the source."""
        return (row for _, row in self._made())

    def export(self, unique: bool = True) -> tuple[int, int]:
        """Write the output whole; gives (rows written, duplicates dropped). If `unique`, rows of the same content,
        whichever source rows they come from, are written once."""
        counts = [0, 0]

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                for is_new, row in self._made():
                    counts[0 if is_new or not unique else 1] += 1
                    if is_new or not unique:
                        file.write(_line(row))

        atomic_write(self.out, write)
        return counts[0], counts[1]

    def _made(self) -> Iterator[tuple[bool, dict[str, Any]]]:
        """Every row made, in the order of the source, with whether it is the first of its content."""
        seen: set[bytes] = set()
        with self.path.open("rb") as file:
            for source in self._rows:
                entry = self._entries.get(source.id)
                if entry is None or not entry.num_rows:
                    continue
                file.seek(entry.place)
                for row in json.loads(file.readline())["rows"]:
                    same = [row.get(name) for name in ("prompt", "completion", "chosen", "rejected")]
                    digest = hashlib.blake2b(_line(same), digest_size=16).digest()
                    yield digest not in seen, row
                    seen.add(digest)

    def _open(self, settings: dict[str, Any]) -> None:
        is_new = not self.path.exists() or self.path.stat().st_size == 0
        if is_new and self.out.exists():
            raise UserError(
                f"{self.out} is there already and was not made by rlft ({self.path.name} is not beside it). Give "
                "another --out, or move that file away."
            )
        self._file = self.path.open("ab", buffering=0)
        if is_new or not self._take_over(settings):
            self._write({"settings": settings})

    def _take_over(self, settings: dict[str, Any]) -> bool:
        """Read what is there; False when not even the first line is whole."""
        by_id = {row.id: row for row in self._rows}
        number = 0
        for number, line, place in whole_lines(self.path):
            try:
                tree = json.loads(line)
                if number == 1:
                    self._refuse_changed(tree["settings"], settings)
                else:
                    self._note(tree, place)
                    self._refuse_other_data(tree, by_id)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(
                    f"{self.path}, line {number} is damaged: {line[:80]!r}. Delete that line (its row is then done "
                    "again), or give another --out."
                ) from None
        self.num_resumed = sum(not entry.failed for entry in self._entries.values())
        return number > 0

    def _refuse_changed(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        changes = [
            f"{key}: was {json.dumps(old.get(key))}, now {json.dumps(new.get(key))}"
            for key in dict.fromkeys([*old, *new])
            if old.get(key) != new.get(key)
        ]
        if changes:
            raise UserError(
                f"{self.out} was begun with other settings, and rows of both must not be mixed. {'; '.join(changes)}. "
                f"Give another --out, set these keys back, or remove {self.path} and {self.out} to begin again."
            )

    def _refuse_other_data(self, tree: dict[str, Any], by_id: Mapping[str, SourceRow]) -> None:
        if "id" not in tree:
            return
        row = by_id.get(tree["id"])
        if row is not None and row.fingerprint == tree["fingerprint"]:
            return
        what = "is not in the data any more" if row is None else "has changed since"
        raise UserError(
            f"{self.out} was begun with other data: row {tree['id']} {what}. Give another --out, use the same data ("
            f"and data.max_rows at least as high), or remove {self.path} and {self.out} to begin again."
        )

    def _note(self, tree: dict[str, Any], place: int) -> None:
        usage = Usage.from_json(tree["usage"])
        if "id" in tree:
            left_out, failed = Counter(tree.get("left_out", {})), str(tree.get("failed", ""))
            entry = _Entry(place, len(tree["rows"]), left_out, failed, str(tree.get("detail", "")))
            self._count(self._entries.get(tree["id"]), -1)
            self._count(entry, 1)
            self._entries[tree["id"]] = entry
        self.usage.add(usage)

    def _count(self, entry: _Entry | None, sign: int) -> None:
        if entry is None:
            return
        self._num_made += sign * entry.num_rows
        self._left_out.update({reason: sign * count for reason, count in entry.left_out.items()})
        self._failed.update({entry.failed: sign} if entry.failed else {})

    def _append(self, line: dict[str, Any]) -> None:
        self._note(line, self._write(line))

    def _write(self, tree: Mapping[str, Any]) -> int:
        """Append a line; gives its place."""
        place = os.fstat(self._file.fileno()).st_size
        try:
            data = memoryview(_line(tree))
            while data:  # a raw file may take only a part
                data = data[self._file.write(data) :]
            if time.monotonic() - self._synced > SYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            os.ftruncate(self._file.fileno(), place)  # no half line for others to be appended to
            if not is_out_of_space(error):
                raise
            raise RunError(
                f"{self.path}: cannot be written, the disk, quota or file size limit is used up ({error}). Make room; "
                "the same command goes on from here."
            ) from error
        return place


def _line(tree: Any) -> bytes:
    return (json.dumps(tree, ensure_ascii=False) + "\n").encode()


def _lock(out: Path) -> RunLock:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return RunLock(out.with_name(f".{out.name}.lock"))
    except OSError as error:
        raise UserError(f"run.out: {out} cannot be written: {error.strerror}. Give another --out.") from error
    except UserError:
        raise UserError(
            f"{out}: another live process is writing it. Wait for it, stop it, or give another --out."
        ) from None
