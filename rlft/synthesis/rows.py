"""The rows that a job starts from, and what becomes of each.

Knows nothing about endpoints. A row is known by its place in the data and by a fingerprint of what is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlft.data.prompts import Conversation, conversation, load_rows
from rlft.data.shapes import detect_shape, prompt_messages, prompt_text
from rlft.errors import UserError
from rlft.synthesis.config import SourceConfig


@dataclass(frozen=True)
class SourceRow:
    """One prompt."""

    id: str  # its place in the data: "questions.jsonl:17"
    fingerprint: str  # of the whole row
    prompt: str | Conversation  # in the form that the data has
    messages: Conversation  # the same for the endpoint, with the system prompt
    columns: Mapping[str, Any]  # all other columns that JSON can hold


@dataclass(frozen=True)
class Outcome:
    """What became of one source row: rows for training, and what was left out, by reason. `failed` is the kind of a
    failure that kept it from being finished; such a row is tried again by the next start."""

    rows: tuple[dict[str, Any], ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    failed: str = ""
    detail: str = ""


class LeftOut(Exception):
    """A row is not made, for this reason; nothing failed."""


@dataclass(frozen=True)
class Source:
    """All rows of a job."""

    rows: list[SourceRow]
    description: str  # one line for people
    dropped_columns: list[str]  # that JSON cannot hold


def load_source(data: SourceConfig) -> Source:
    """Read the prompts. Raises UserError that names file and row."""
    settings = data.as_data()
    read = load_rows(settings, None)
    shape = detect_shape(read, prompt_column=data.prompt_column, completion_column=None, need_completion=False)
    used = {shape.prompt_column, shape.context_column}
    fits = {name: all(_fits_json(row.get(name)) for row in read.rows) for name in read.columns() if name not in used}
    kept = [name for name, ok in fits.items() if ok]
    rows = []
    for row, place in zip(read.rows, read.places, strict=True):
        prompt = prompt_messages(row, place, shape) if shape.kind == "messages" else prompt_text(row, place, shape)
        if not prompt:
            raise UserError(f"{place}: the prompt in column {shape.prompt_column!r} is empty. Mend or delete that row.")
        if not _fits_json(prompt):
            raise UserError(f"{place}: column {shape.prompt_column!r} holds half of a surrogate pair. Mend that row.")
        columns = {name: row[name] for name in kept if name in row}
        rows.append(
            SourceRow(
                place, _fingerprint([prompt, columns]), prompt, conversation(row, place, shape, settings), columns
            )
        )
    return Source(rows, f"{read.source}: {shape.describe()}", [name for name, ok in fits.items() if not ok])


def made_row(row: SourceRow, made: Mapping[str, Any]) -> dict[str, Any]:
    """A row for training: the prompt, what was made, then the columns that came with it. A column with the name of
    something that was made is called source_NAME."""
    new = {"prompt": row.prompt, **made, "id": row.id}
    return new | {f"source_{name}" if name in new else name: value for name, value in row.columns.items()}


def with_answer(row: SourceRow, answer: str) -> dict[str, Any]:
    """`messages`, the conversation with its answer, where the prompt is a conversation; nothing for text."""
    if isinstance(row.prompt, str):
        return {}
    return {"messages": [*row.prompt, {"role": "assistant", "content": answer}]}


def _fits_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _fingerprint(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
