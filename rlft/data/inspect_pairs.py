"""Rows that hold two answers to a prompt (chosen, rejected), or one and whether it is good (label), for inspection.

Knows nothing about tokenizers: it takes such a row apart, as pairs.py does, into a prompt and one completion each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from rlft.config.data import DataConfig
from rlft.data.pairs import PairShape, pair_form, pair_shape, two_rows
from rlft.data.reading import Rows
from rlft.data.shapes import COMPLETION_COLUMNS, DataShape, check_column, check_labels, detect_shape
from rlft.errors import UserError

PairKind = Literal["pairs", "labels"]


class Answered(NamedTuple):
    """A row of a prompt and one completion, and where those are."""

    label: str  # for people: "chosen", "rejected", "good", "bad"
    row: dict[str, Any]
    shape: DataShape


class PairPlan(NamedTuple):
    """How rows of pairs, or of labelled completions, are understood."""

    pair: PairShape | None  # None for labels
    shape: DataShape  # of what they are taken apart into
    described: str


def detect_pairs(read: Rows, columns: Sequence[str], data: DataConfig) -> PairKind | None:
    """`pairs` where there are chosen and rejected, `labels` where a completion has a label of true or false."""
    if data.chosen_column in columns and data.rejected_column in columns:
        return "pairs"
    label = next((row[data.label_column] for row in read.rows if row.get(data.label_column) is not None), None)
    completion = any(name in columns for name in (data.completion_column, *COMPLETION_COLUMNS))
    return "labels" if isinstance(label, bool) and completion else None


def pair_plan(read: Rows, kind: PairKind, data: DataConfig) -> PairPlan:
    """See PairPlan. Raises UserError where a run would refuse all rows."""
    if kind == "labels":
        shape = detect_shape(
            read, prompt_column=data.prompt_column, completion_column=data.completion_column, need_completion=True
        )
        check_column("data.label_column", data.label_column, read.columns(), read.source)
        return PairPlan(None, shape, f"{shape.describe()}; {data.label_column} -> good or bad")
    pair = pair_shape(read, data)
    form = None
    for row, place in zip(read.rows, read.places, strict=True):  # the first that is a pair tells the form of all
        try:
            form = pair_form(pair, two_rows(row, place, pair, data)[0], 2 * len(read.rows))
            break
        except UserError:
            continue
    return PairPlan(pair, form or DataShape("text", "prompt", "completion", None, 0, ()), pair.describe(data, read))


def answered_rows(row: dict[str, Any], place: str, plan: PairPlan, data: DataConfig) -> list[Answered]:
    """What there is to learn of a row, in parts. Raises UserError naming `place`."""
    if plan.pair is None:
        (good,) = check_labels(Rows([row], [place], place), data.label_column)
        return [Answered("good" if good else "bad", row, plan.shape)]
    both = two_rows(row, place, plan.pair, data)
    return [Answered(label, part, plan.shape) for label, part in zip(("chosen", "rejected"), both, strict=True)]
