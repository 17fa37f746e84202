"""Finds out which columns of a data set hold the prompt and the completion, and in which form.

Knows nothing about tokenizers: it looks at rows and tells what it saw in one line for people.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlft.data.reading import Rows
from rlft.errors import UserError

PROMPT_COLUMNS = (
    *("prompt", "messages", "conversations", "conversation", "question", "problem"),
    *("instruction", "query", "input"),
)
COMPLETION_COLUMNS = ("completion", "response", "output", "answer", "solution", "target")
DOCUMENT_COLUMN = "text"
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")  # hold both sides of the talk

SHAREGPT_ROLES = {  # what {from, value} calls the roles
    "human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DataShape:
    """Where prompts (and completions) are. `kind` is the prompt column's form. `completion_column` equal to
    `prompt_column` means the last assistant turn of the conversation; None means that no completion was asked for. Of
    kind "document" the prompt column holds whole texts, all of which is learned."""

    kind: Literal["text", "messages", "document"]
    prompt_column: str
    completion_column: str | None
    context_column: str | None  # text put under the prompt: `input` of rows with `instruction` and `input`
    num_rows: int
    other_columns: tuple[str, ...]

    def describe(self) -> str:
        """One line, like "question -> prompt (text); 300 rows; other columns: answer, source_line"."""
        prompt = f"{self.prompt_column} + {self.context_column}" if self.context_column else self.prompt_column
        line = f"{prompt} -> document" if self.kind == "document" else f"{prompt} -> prompt ({self.kind})"
        if self.completion_column == self.prompt_column:
            line += f", last assistant turn of {self.prompt_column} -> completion"
        elif self.completion_column:
            line += f", {self.completion_column} -> completion"
        return f"{line}; {self.num_rows} rows; other columns: {', '.join(self.other_columns) or 'none'}"


def detect_shape(
    data: Rows,
    *,
    prompt_column: str | None,
    completion_column: str | None,
    need_completion: bool,
    document_column: str | None = None,
) -> DataShape:
    """The shape of `data`. Configured columns are used as they are; otherwise the usual names are tried in order. Where
    completions are needed and nothing is a prompt, a column `text` holds documents.

    Raises UserError when a configured column does not exist or none of the usual names does.
    """
    columns = data.columns()
    check_column("data.prompt_column", prompt_column, columns, data.source)
    check_column("data.document_column", document_column, columns, data.source)
    prompt = prompt_column or next((name for name in PROMPT_COLUMNS if name in columns), None)
    nothing_else = need_completion and prompt is None and completion_column is None
    document = document_column or (DOCUMENT_COLUMN if nothing_else and DOCUMENT_COLUMN in columns else None)
    if document is not None:
        others = tuple(name for name in columns if name != document)
        return DataShape("document", document, None, None, len(data.rows), others)
    if prompt is None:
        raise UserError(
            f"{data.source}: no column looks like a prompt. Columns there: {', '.join(columns) or 'none'}; tried "
            f"{', '.join(PROMPT_COLUMNS)}. Name the right one with data.prompt_column.{_nested(data)}"
        )
    first = next((row[prompt] for row in data.rows if row.get(prompt) is not None), None)
    kind: Literal["text", "messages"] = "messages" if isinstance(first, list | tuple) else "text"
    completion = None
    if need_completion:
        check_column("data.completion_column", completion_column, columns, data.source)
        completion = completion_column or _find_completion(data, columns, prompt, kind)
    both = prompt == "instruction" and prompt_column is None and "input" in columns and completion != "input"
    context = "input" if both else None
    used = {prompt, completion, context}
    others = tuple(name for name in columns if name not in used)
    return DataShape(kind, prompt, completion, context, len(data.rows), others)


def _nested(data: Rows) -> str:
    """A hint, where the only row of a file holds what look like rows."""
    row = data.rows[0] if len(data.rows) == 1 else {}
    lists = [name for name, value in row.items() if isinstance(value, list) and value and isinstance(value[0], Mapping)]
    if not lists:
        return ""
    return f" The one row there has a list of objects in {lists[0]!r}: if those are the rows, save that list alone."


def prompt_text(row: Mapping[str, Any], place: str, shape: DataShape) -> str:
    """The prompt of a row of kind "text". Raises UserError naming `place` when it is not text."""
    text = _text(row, shape.prompt_column, place)
    context = row.get(shape.context_column) if shape.context_column else None
    return f"{text}\n\n{context}" if context else text


def completion_text(row: Mapping[str, Any], place: str, shape: DataShape) -> str:
    """The completion of a row whose prompt is text. A list with one assistant message counts as its content."""
    assert shape.completion_column is not None
    value = row.get(shape.completion_column)
    if isinstance(value, list | tuple):
        turns = _messages(value, shape.completion_column, place)
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise UserError(
                f"{place}: column {shape.completion_column!r} holds {len(turns)} messages. "
                "Expected text or one assistant message."
            )
        return turns[0]["content"]
    return _text(row, shape.completion_column, place)


def prompt_messages(row: Mapping[str, Any], place: str, shape: DataShape) -> list[dict[str, str]]:
    """The conversation before the answer, of a row of kind "messages": a last assistant turn is left out."""
    turns = _messages(row.get(shape.prompt_column), shape.prompt_column, place)
    if turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if not turns:
        raise UserError(f"{place}: column {shape.prompt_column!r} has only an assistant turn, so there is no prompt.")
    return turns


def last_assistant_turn(row: Mapping[str, Any], place: str, shape: DataShape) -> str:
    """The content of the assistant turn that ends the conversation."""
    turns = _messages(row.get(shape.prompt_column), shape.prompt_column, place)
    if turns[-1]["role"] != "assistant":
        raise UserError(
            f"{place}: the conversation in {shape.prompt_column!r} ends with a turn of {turns[-1]['role']!r}. Expected "
            "an assistant turn to learn from, or name the column that has it with data.completion_column."
        )
    return turns[-1]["content"]


def _find_completion(data: Rows, columns: Sequence[str], prompt: str, kind: str) -> str:
    names = (*COMPLETION_COLUMNS, prompt) if kind == "messages" else COMPLETION_COLUMNS
    if kind == "messages" and prompt in CONVERSATION_COLUMNS:
        names = (prompt,)
    found = next((name for name in names if name in columns and (name != prompt or kind == "messages")), None)
    if found is None:
        raise UserError(
            f"{data.source}: no column looks like a completion to learn from. Columns there: {', '.join(columns)}; "
            f"tried {', '.join(COMPLETION_COLUMNS)}. Name the right one with data.completion_column."
        )
    return found


def check_labels(data: Rows, column: str) -> list[bool]:
    """Whether each row is labelled good. Raises UserError for what is neither true nor false (1 nor 0)."""
    labels = []
    for row, place in zip(data.rows, data.places, strict=True):
        value = row.get(column)
        if not isinstance(value, bool) and value not in (0, 1):
            raise UserError(f"{place}: column {column!r} is {value!r}. Expected true or false (or 1 or 0).")
        labels.append(bool(value))
    return labels


def check_column(key: str, name: str | None, columns: Sequence[str], source: str) -> None:
    """Raise UserError when a configured column does not exist."""
    if name is None or name in columns:
        return
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{key}: {source} has no column {name!r}.{hint} Columns there: {', '.join(columns) or 'none'}.")


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    if isinstance(value, str):
        return value
    found = "missing" if column not in row else "empty (null)" if value is None else f"a {type(value).__name__}"
    raise UserError(f"{place}: column {column!r} is {found}. Expected text, as in the other rows.")


def _messages(value: Any, column: str, place: str) -> list[dict[str, str]]:
    if not isinstance(value, list | tuple) or not value:
        found = (
            "an empty list" if value in ([], ()) else f"a {type(value).__name__}" if value is not None else "missing"
        )
        raise UserError(f"{place}: column {column!r} is {found}. Expected a list of {{role, content}} messages.")
    return [_message(turn, column, place, number) for number, turn in enumerate(value, start=1)]


def _message(turn: Any, column: str, place: str, number: int) -> dict[str, str]:
    """One message as {role, content}; the {from, value} form of ShareGPT is understood."""
    if isinstance(turn, Mapping):
        role, content = turn.get("role"), turn.get("content")
        where = f"{place}: message {number} of column {column!r}"
        if "role" not in turn and "from" in turn:
            role, content = SHAREGPT_ROLES.get(str(turn["from"])), turn.get("value")
            if role is None:
                known = ", ".join(SHAREGPT_ROLES)
                raise UserError(f"{where} is from {turn['from']!r}. Known are {known}; mend or delete that row.")
        if turn.get("tool_calls"):
            raise UserError(
                f"{where} has tool_calls, which are not rendered. Expected what the model should write as text in "
                "content; mend or delete that row."
            )
        if isinstance(role, str) and isinstance(content, list | tuple):
            raise UserError(
                f"{where} has a list as content (parts, as of data with images). Expected one text; join the texts of "
                "the parts, or delete that row."
            )
        if isinstance(role, str) and isinstance(content, str):
            return {"role": role, "content": content}
    keys = f"keys {', '.join(map(str, turn))}" if isinstance(turn, Mapping) else f"a {type(turn).__name__}"
    raise UserError(
        f"{place}: message {number} of column {column!r} has {keys}. Expected texts under role and content."
    )
