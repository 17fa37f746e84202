"""A row of a task as tokens, the places that its head reads, and what the head should say there.

A head reads a token's state. In a pack the state of a token is asked for by the place behind it (rlft.batch), so every
row gets one more token at its end, which is never fed, and its mask is True one place behind each token that is read.
Knows nothing about losses or models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rlft.config.tasks import TaskConfig
from rlft.errors import UserError
from rlft.samples import Group, Prompt, Sample, TaskLabels

Row = Mapping[str, Any]
WORD = re.compile(r"\w+|[^\w\s]")  # of a text that comes with spans
OUTSIDE = "O"  # the tag of a word in no span


class Read(NamedTuple):
    """A row before it is tokenised."""

    text: str
    words: list[tuple[int, int]]  # characters of the words that are read; of one "word" when the whole text is
    answer: Any  # a label, labels, a number, a tag for each word, or the characters (from, to) of an answer
    answers: tuple[str, ...] = ()


def column_of(task: TaskConfig, name: str) -> str:
    """The column that holds what `columns` calls `name`."""
    return task.columns.get(name, name)


def columns_read(task: TaskConfig, there: Sequence[str]) -> list[str]:
    """The names (as in `columns`) of what is read, when the file has the columns `there`."""
    if task.kind == "sequence_classification":
        return ["text", *(["pair"] if "pair" in task.columns else []), "label"]
    if task.kind == "question_answering":
        return ["context", "question", "answers"]
    named = {"text", "spans"} & {*task.columns}
    tokens = {"tokens", "tags"} & {*task.columns} or column_of(task, "tokens") in there or "spans" not in there
    return ["text", "spans"] if named or not tokens else ["tokens", "tags"]


def read_classified(task: TaskConfig, row: Row, place: str, columns: Sequence[str]) -> Read:
    """A text (and another below it), all of it read at its last token."""
    text = _text(task, row, "text", place)
    if "pair" in columns:
        text = f"{text}\n{_text(task, row, 'pair', place)}"
    column = column_of(task, "label")
    value = row.get(column)
    if task.problem == "number":
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise UserError(f"{place}: column {column!r} is {value!r}. Expected a number, because problem is number.")
        return Read(text, [(0, len(text))], float(value))
    if task.problem == "many_labels":
        if not isinstance(value, list | tuple):
            raise UserError(
                f"{place}: column {column!r} is {value!r}. Expected a list of labels (problem many_labels)."
            )
        return Read(text, [(0, len(text))], [_label(each, place, column) for each in value])
    if isinstance(value, list | tuple):
        raise UserError(f"{place}: column {column!r} is a list. Expected one label, or set problem to many_labels.")
    return Read(text, [(0, len(text))], _label(value, place, column))


def read_tagged(task: TaskConfig, row: Row, place: str, columns: Sequence[str]) -> Read:
    """Words with a tag each: words joined by blanks, or those of a text whose spans are tagged B-, I- and O."""
    if "spans" in columns:
        return _read_spans(task, row, place)
    column, tags_column = column_of(task, "tokens"), column_of(task, "tags")
    words, tags = row.get(column), row.get(tags_column)
    if not isinstance(words, list | tuple) or not words or not all(isinstance(w, str) and w.strip() for w in words):
        raise UserError(f"{place}: column {column!r} is {_short(words)}. Expected a list of words, none of them empty.")
    if not isinstance(tags, list | tuple) or len(tags) != len(words):
        found = f"has {len(tags)} tags" if isinstance(tags, list | tuple) else f"is {_short(tags)}"
        raise UserError(f"{place}: column {tags_column!r} {found}. Expected one for each of {len(words)} words.")
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    places = [(int(start), int(start) + len(word)) for start, word in zip(starts, words)]
    return Read(" ".join(words), places, [_label(tag, place, tags_column) for tag in tags])


def _read_spans(task: TaskConfig, row: Row, place: str) -> Read:
    text, column = _text(task, row, "text", place), column_of(task, "spans")
    spans = row.get(column)
    if not isinstance(spans, list | tuple) or not all(_is_span(span, len(text)) for span in spans):
        raise UserError(
            f"{place}: column {column!r} is {_short(spans)}. Expected a list of [start, end, label] with characters of "
            f"the text ({len(text)} long), the end not included."
        )
    words = [match.span() for match in WORD.finditer(text)]
    tags = [OUTSIDE] * len(words)
    for start, end, label in spans:
        inside = [i for i, (a, b) in enumerate(words) if a < end and start < b]
        if not inside or words[inside[0]][0] < start or words[inside[-1]][1] > end:
            raise UserError(
                f"{place}: the span {[start, end, label]} ({text[start:end]!r}) begins or ends within a word. Expected "
                "whole words; move its ends."
            )
        if any(tags[i] != OUTSIDE for i in inside):
            raise UserError(
                f"{place}: the span {[start, end, label]} overlaps another. Expected a word in one at most."
            )
        for i in inside:
            tags[i] = f"{'B' if i == inside[0] else 'I'}-{_label(label, place, column)}"
    if not words:
        raise UserError(f"{place}: column {column_of(task, 'text')!r} has no word. Mend or delete that row.")
    return Read(text, words, tags)


def _is_span(span: Any, length: int) -> bool:
    if not isinstance(span, list | tuple) or len(span) != 3:
        return False
    start, end, _ = span
    return isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= length


def read_question(task: TaskConfig, row: Row, place: str, columns: Sequence[str]) -> Read:
    """The question and under it the context, so that a decoder reads the context knowing what is asked."""
    context, question = _text(task, row, "context", place), _text(task, row, "question", place)
    column = column_of(task, "answers")
    answers = row.get(column)
    texts = answers.get("text") if isinstance(answers, Mapping) else None
    starts = answers.get("answer_start") if isinstance(answers, Mapping) else None
    if not isinstance(texts, list | tuple) or not isinstance(starts, list | tuple) or len(texts) != len(starts):
        raise UserError(
            f"{place}: column {column!r} is {_short(answers)}. Expected {{text: [...], answer_start: [...]}}, as many "
            "of one as of the other."
        )
    if not texts:
        raise UserError(
            f"{place}: column {column!r} has no answer. Questions without one cannot be learned; delete it."
        )
    for text, start in zip(texts, starts):
        is_place = isinstance(start, int) and start >= 0
        if not isinstance(text, str) or not text or not is_place or context[start:][: len(text)] != text:
            found = context[start:][: len(str(text))] if is_place else ""
            raise UserError(
                f"{place}: the answer {text!r} is not where answer_start {start!r} says: there is {found!r}. Expected "
                "the character of the context at which it begins, from 0."
            )
    behind = len(question) + 1
    first = (behind + starts[0], behind + starts[0] + len(texts[0]))
    return Read(f"{question}\n{context}", [(behind, behind + len(context))], first, tuple(texts))


READERS: dict[str, Callable[[TaskConfig, Row, str, Sequence[str]], Read]] = {
    "sequence_classification": read_classified,
    "token_classification": read_tagged,
    "question_answering": read_question,
}


def found_labels(task: TaskConfig, reads: Sequence[Read]) -> list[str]:
    """All labels of the rows, in order (numbers by size), where the task names none. Tags begin with O."""
    named: set[str] = set()
    for read in reads:
        named.update(read.answer if isinstance(read.answer, list) else [read.answer])
    if all(label.isdigit() for label in named):
        return sorted(named, key=int)
    return sorted(named, key=lambda label: (label != OUTSIDE, label))


def number_of(label: str, labels: Mapping[str, int], place: str, task: TaskConfig) -> int:
    """A label's place among `labels`. Where the task names its labels, a number that is none of them is such a place.
    Raises UserError for others."""
    if label in labels:
        return labels[label]
    if task.labels and label.isdigit() and int(label) < len(labels):
        return int(label)
    where = "the task's labels" if task.labels else "the labels of the rows that are learned from"
    raise UserError(
        f"{place}: label {label!r} is none of {', '.join(labels)} ({where}). Mend the row, or add it to labels."
    )


def make_group(
    task: TaskConfig, read: Read, row: Row, place: str, labels: Mapping[str, int], ids: np.ndarray, offsets: np.ndarray
) -> tuple[Group, int]:
    """The row as a group of one sample, and how many words are left out because their last token ends another word too.
    ids int32 [T], offsets int [T, 2]: the characters that each token is."""
    values: Any
    spans, left_out = None, 0
    if task.kind == "sequence_classification":
        at = np.array([len(ids) - 1])
        values = _sequence_values(task, read, labels, place)
    elif task.kind == "token_classification":
        ends = {_tokens_in(offsets, word, place)[-1]: i for i, word in enumerate(read.words)}
        at, left_out = np.array(sorted(ends)), len(read.words) - len(ends)
        values = np.array([number_of(read.answer[ends[i]], labels, place, task) for i in at], dtype=np.int64)
    else:
        at = _tokens_in(offsets, read.words[0], place)
        answer = _tokens_in(offsets, read.answer, place)
        values = np.searchsorted(at, answer[[0, -1]]).astype(np.int64)
        spans = np.clip(offsets[at], *read.words[0]).astype(np.int32)
    mask = np.zeros(len(ids) + 1, dtype=bool)
    mask[at + 1] = True
    sample = Sample.given(np.append(ids, np.int32(0)), mask, "")
    sample = replace(sample, labels=TaskLabels(task.name, values, spans, read.answers))
    return Group(Prompt(place, ids[:1], read.text, None, row), (sample,)), left_out


def _sequence_values(task: TaskConfig, read: Read, labels: Mapping[str, int], place: str) -> np.ndarray:
    if task.problem == "number":
        return np.array([read.answer], dtype=np.float32)
    if task.problem == "one_label":
        return np.array([number_of(read.answer, labels, place, task)], dtype=np.int64)
    values = np.zeros((1, len(labels)), dtype=np.float32)
    values[0, [number_of(label, labels, place, task) for label in read.answer]] = 1.0
    return values


def _tokens_in(offsets: np.ndarray, characters: tuple[int, int], place: str) -> np.ndarray:
    """int [n], the tokens that have something of these characters."""
    begins, ends = np.maximum(offsets[:, 0], characters[0]), np.minimum(offsets[:, 1], characters[1])
    found = np.flatnonzero(begins < ends)
    if not len(found):
        raise UserError(f"{place}: the tokenizer leaves nothing of characters {characters} of the row's text. Mend it.")
    return found


def _text(task: TaskConfig, row: Row, name: str, place: str) -> str:
    column = column_of(task, name)
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: column {column!r} is {_short(value)}. Expected text. Mend or delete that row.")
    return value


def _label(value: Any, place: str, column: str) -> str:
    """A label as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int) and str(value):
        return str(value)
    raise UserError(f"{place}: column {column!r} has the label {value!r}. Expected text or a whole number.")


def _short(value: Any) -> str:
    if value is None:
        return "missing"
    text = "empty" if value in ("", [], ()) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
