"""Rows that hold two answers to a prompt (chosen, rejected), or one and whether it is good (label), for inspection.

Knows nothing about tokenizers: it takes such a row apart into rows of a prompt and one completion each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rlft.data.reading import Rows
from rlft.data.shapes import COMPLETION_COLUMNS, PROMPT_COLUMNS, DataShape, last_assistant_turn, prompt_messages
from rlft.errors import UserError

PairKind = Literal["pairs", "labels"]
TURN = "\n\nAssistant:"  # before the answer in texts that hold a whole talk, as Anthropic's HH data does


class Answered(NamedTuple):
    """A row of a prompt and one completion, and where those are."""

    label: str  # for people: "chosen", "rejected", "good", "bad"
    row: dict[str, Any]
    shape: DataShape


def detect_pairs(read: Rows, columns: Sequence[str]) -> PairKind | None:
    """`pairs` where there are chosen and rejected, `labels` where a completion has a label of true or false."""
    if "chosen" in columns and "rejected" in columns:
        return "pairs"
    label = next((row["label"] for row in read.rows if row.get("label") is not None), None)
    completion = any(name in columns for name in COMPLETION_COLUMNS)
    return "labels" if isinstance(label, bool) and completion else None


def answered_rows(row: Mapping[str, Any], place: str, kind: PairKind, columns: Sequence[str]) -> list[Answered]:
    """What there is to learn of a row, in parts. Raises UserError naming `place`."""
    prompt_column = next((name for name in PROMPT_COLUMNS if name in columns), None)
    if kind == "labels":
        completion = next(name for name in COMPLETION_COLUMNS if name in columns)
        label = row.get("label")
        if not isinstance(label, bool):
            raise UserError(f"{place}: column 'label' is {label!r}. Expected true (a good completion) or false.")
        if prompt_column is None:
            raise UserError(f"{place}: there is no prompt. Expected one of {', '.join(PROMPT_COLUMNS)}.")
        return [_answered("good" if label else "bad", row.get(prompt_column), completion, row.get(completion))]
    prompts, answers = zip(*(_split(row, place, name, prompt_column) for name in ("chosen", "rejected")), strict=True)
    if prompts[0] != prompts[1]:
        raise UserError(
            f"{place}: 'chosen' and 'rejected' answer different prompts. Expected the same talk but for the answer."
        )
    if answers[0] == answers[1]:
        raise UserError(f"{place}: 'chosen' and 'rejected' are the same, so nothing tells them apart. Delete that row.")
    names = ("chosen", "rejected")
    return [_answered(name, prompts[0], name, answer) for name, answer in zip(names, answers, strict=True)]


def _answered(label: str, prompt: Any, column: str, answer: Any) -> Answered:
    kind: Literal["text", "messages"] = "messages" if isinstance(prompt, list | tuple) else "text"
    return Answered(label, {"prompt": prompt, column: answer}, DataShape(kind, "prompt", column, None, 1, ()))


def _split(row: Mapping[str, Any], place: str, column: str, prompt_column: str | None) -> tuple[Any, Any]:
    """Prompt and answer. A list of several messages holds its own prompt; a text without a prompt beside it too."""
    value = row.get(column)
    given = None if prompt_column is None else row.get(prompt_column)
    if isinstance(value, list | tuple):
        talk = DataShape("messages", column, column, None, 1, ())
        answer = last_assistant_turn(row, place, talk)
        if len(value) > 1:
            return prompt_messages(row, place, talk), answer
        return _required(given, place, column), answer
    if not isinstance(value, str):
        found = "missing" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{place}: column {column!r} is {found}. Expected text or messages.")
    if given is not None:
        return given, value
    before, mark, answer = value.rpartition(TURN)
    return (before + mark, answer) if mark else (_required(None, place, column), value)


def _required(prompt: Any, place: str, column: str) -> Any:
    if prompt is None:
        raise UserError(
            f"{place}: there is no prompt: expected a column prompt, or the whole talk in {column!r} (as messages, "
            "or as text with Human: and Assistant:)."
        )
    return prompt
