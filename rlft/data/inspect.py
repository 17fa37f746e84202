"""Looks at a data file before a run: what is in it, how a run understands it, and every row that would not be used.

A run stops at the first row that it cannot use; this collects them all. Pure: it returns an Inspection, which
inspect_text.py shows. Knows nothing about the command line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rlft.config.data import DataConfig
from rlft.data.inspect_rows import Look, ModelLimits, Part, Plan, Problem, Purpose, Refused, digest, look, make_plan
from rlft.data.lenient import BadLine
from rlft.data.pairs import ONE_PROMPT
from rlft.data.prompts import with_ground_truth
from rlft.data.reading import Rows
from rlft.data.scores import have_margins, margin_of
from rlft.errors import UserError

NUM_BINS = 8  # of a histogram


class Uses(NamedTuple):
    """What a run does with rows beyond reading them."""

    margins: bool = False  # a reward model learns from pairs, with what is in their column `margin`
    other_prompts: bool = False  # kto: completions of other prompts than a row's own


class Column(NamedTuple):
    """What a column holds."""

    name: str
    types: Mapping[str, int]  # "text": 12; null and missing values are not counted here
    null_share: float  # of all rows, null or missing
    role: str  # how a run understands it


class Lengths(NamedTuple):
    """How long something is over all usable rows."""

    least: int
    median: float
    p95: int  # the smallest length that at least 95 % of the rows do not exceed
    most: int
    bins: tuple[tuple[int, int, int], ...]  # first and last length (both in it), number of rows


class Repeated(NamedTuple):
    """Rows that are like one before."""

    count: int
    first: tuple[tuple[str, str], ...]  # the first few: place, and place of the one before


class Example(NamedTuple):
    """A row as a model is given it."""

    place: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Inspection:
    """What there is to say of a data file."""

    source: str
    num_rows: int
    columns: tuple[Column, ...]
    layout: str  # "prompt and completion", "ShareGPT conversations", ...; "" when it was not understood
    understood: str  # one line: which column is what
    purpose: Purpose | None
    guessed: bool  # nobody said what for
    num_usable: int
    examples: tuple[Example, ...]
    unit: str  # of lengths: "tokens" or "characters"
    lengths: Mapping[str, Lengths]  # "prompt", "completion", "chosen", "rejected", "document"
    same_rows: Repeated
    same_prompts: Repeated
    problems: tuple[Problem, ...]
    missing: tuple[str, ...]  # what could not be looked at

    @property
    def usable(self) -> bool:
        """Whether a run would take the data as they are."""
        return not any(problem.effect == "refused" for problem in self.problems)


def inspect_rows(
    read: Rows,
    bad_lines: Sequence[BadLine] = (),
    data: DataConfig | None = None,
    *,
    purpose: Purpose | None = None,
    model: ModelLimits | None = None,
    num_examples: int = 1,
    check_columns: Callable[[Mapping[str, Any]], None] | None = None,
    uses: Uses = Uses(),  # noqa: B008  # of constants
) -> Inspection:
    """Look at all rows. `purpose` None takes the likeliest; without `model` nothing is tokenised. `check_columns`
    raises UserError when the reward functions need a column that a row has not. Never raises UserError itself: what a
    run would refuse is among the problems."""
    data = data or DataConfig()
    problems = [Problem("not a row", place, text) for place, text in bad_lines]
    plan, looks = None, list[tuple[str, Look]]()
    try:
        if not read.rows:
            raise UserError(f"{read.source} has no rows. Expected at least one row with a prompt.")
        plan = make_plan(read, data, purpose, model)
    except UserError as error:
        problems.append(Problem("not understood", read.source, str(error).removeprefix(f"{read.source}: ")))
    if plan is not None:
        problems += _without_columns(read, check_columns)
        looks, found = _look_at_all(read, plan, data, model, num_examples, uses)
        problems += found
        if not looks and all(problem.effect == "dropped" for problem in problems):
            problems.append(Problem("nothing left", read.source, "all rows would be dropped, so none would be left"))
    whole = (digest(json.dumps(row, sort_keys=True, default=str)) for row in read.rows)
    return Inspection(
        source=read.source,
        num_rows=len(read.rows) + len(bad_lines),
        columns=_columns(read, plan, data),
        layout=layout_of(read, plan) if plan else "",
        understood=plan.described if plan else "",
        purpose=plan.purpose if plan else purpose,
        guessed=purpose is None,
        num_usable=len(looks),
        examples=tuple(Example(place, seen.parts) for place, seen in looks[:num_examples]),
        unit="tokens" if model else "characters",
        lengths=_all_lengths(seen for _, seen in looks),
        same_rows=_repeated(zip(whole, read.places, strict=True)),
        same_prompts=_repeated((seen.prompt, place) for place, seen in looks),
        problems=tuple(problems),
        missing=() if model else ("token lengths, what fits the window, and the chat template: give --model",),
    )


def _look_at_all(
    read: Rows, plan: Plan, data: DataConfig, model: ModelLimits | None, num_examples: int, uses: Uses
) -> tuple[list[tuple[str, Look]], list[Problem]]:
    """The rows that can be used, by place, and what is wrong with the others."""
    looks, problems, rows = list[tuple[str, Look]](), list[Problem](), dict[str, Mapping[str, Any]]()
    for row, place in zip(read.rows, read.places, strict=True):
        try:
            seen = look(row, place, plan, data, model, show=len(looks) < num_examples)
        except Refused as refused:
            problems.append(refused.problem)
            continue
        looks.append((place, seen))
        rows[place] = row
        problems += [seen.cut] if seen.cut else []
    if uses.margins:
        wrong = {problem.place: problem for problem in _wrong_margins(rows)}
        looks, problems = [item for item in looks if item[0] not in wrong], [*problems, *wrong.values()]
    if uses.other_prompts and len({seen.prompt for _, seen in looks}) == 1:
        problems.append(Problem("one prompt", read.source, ONE_PROMPT))
    return looks, problems


def _wrong_margins(rows: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """Of pairs by place, for a reward model."""
    needed, problems = have_margins(list(rows.values())), list[Problem]()
    for place, row in rows.items():
        try:
            margin_of(row, place, needed)
        except UserError as error:
            problems.append(Problem("wrong margin", place, str(error).removeprefix(f"{place}: ")))
    return problems


def _without_columns(read: Rows, check: Callable[[Mapping[str, Any]], None] | None) -> list[Problem]:
    try:
        if check is not None:
            check(with_ground_truth(read.rows[0]))
    except UserError as error:
        return [Problem("reward functions", read.source, str(error))]
    return []


def layout_of(read: Rows, plan: Plan) -> str:
    """What people call this form of data."""
    if plan.purpose == "steps":
        return "completions in steps, each with a label"
    if plan.pairs is not None:
        return {"pairs": "pairs (chosen and rejected)", "labels": "labelled completions (good or bad)"}[plan.purpose]
    if plan.shape.kind == "document":
        return "documents (continued pretraining)"
    if plan.shape.kind == "messages":
        talks = [row.get(plan.shape.prompt_column) for row in read.rows]
        first = next((talk[0] for talk in talks if isinstance(talk, list | tuple) and talk), None)
        sharegpt = isinstance(first, Mapping) and "from" in first
        return "ShareGPT conversations (from, value)" if sharegpt else "messages (role, content)"
    if plan.shape.prompt_column == "instruction":
        return "Alpaca (instruction, input, output)"
    return "prompt and completion" if plan.purpose == "sft" else "prompts"


def _columns(read: Rows, plan: Plan | None, data: DataConfig) -> tuple[Column, ...]:
    columns = []
    for name in read.columns():
        values = [row.get(name) for row in read.rows]
        types = Counter(_type_of(value) for value in values if value is not None)
        nulls = sum(value is None for value in values)
        columns.append(Column(name, dict(types), nulls / len(values), _role(name, plan, data)))
    return tuple(columns)


def _role(name: str, plan: Plan | None, data: DataConfig) -> str:
    if plan is None:
        return ""
    if plan.pairs is not None and plan.pairs.pair is not None:
        used = {data.chosen_column: "learned", data.rejected_column: "learned to avoid"}
        return "prompt" if name == plan.pairs.pair.prompt_column else used.get(name, "not used")
    if plan.pairs is not None and name == data.label_column:
        return "whether the completion is good"
    if plan.purpose == "steps" and name in (data.steps_column, data.step_labels_column):
        return "steps" if name == data.steps_column else "whether each step is good"
    shape = plan.shape
    if name == shape.prompt_column:
        whole = shape.completion_column == name
        return "document" if shape.kind == "document" else "prompt and completion" if whole else "prompt"
    if name == shape.completion_column:
        return "completion"
    if name == shape.context_column:
        return "put under the prompt"
    return "for reward functions" if plan.purpose == "prompts" else "not used"


def _type_of(value: Any) -> str:
    if isinstance(value, list | tuple):
        inside = {_type_of(item) for item in value}
        return f"list of {inside.pop()}" if len(inside) == 1 else "list"
    names = {str: "text", bool: "bool", int: "integer", float: "number"}
    return "mapping" if isinstance(value, Mapping) else names.get(type(value), type(value).__name__)


def _all_lengths(looks: Iterable[Look]) -> dict[str, Lengths]:
    found: dict[str, list[int]] = {}
    for seen in looks:
        sizes: dict[str, int] = {}
        for part in reversed(seen.parts):  # the prompt of a pair counts once
            sizes = dict(part.lengths) | sizes
        for name, size in sizes.items():
            found.setdefault(name, []).append(size)
    return {name: lengths_of(sizes) for name, sizes in found.items()}


def lengths_of(sizes: Sequence[int]) -> Lengths:
    """Of at least one size. The bins are equally wide, but perhaps for the last, and cover all of them."""
    array = np.asarray(sizes)
    least, most = int(array.min()), int(array.max())
    width = -(-(most - least + 1) // NUM_BINS)
    starts = range(least, most + 1, width)
    bins = tuple((a, min(a + width - 1, most), int(((array >= a) & (array < a + width)).sum())) for a in starts)
    p95 = int(np.quantile(array, 0.95, method="inverted_cdf"))
    return Lengths(least, float(np.median(array)), p95, most, bins)


def _repeated(keyed: Iterable[tuple[bytes, str]]) -> Repeated:
    seen: dict[bytes, str] = {}
    count, first = 0, list[tuple[str, str]]()
    for key, place in keyed:
        if key not in seen:
            seen[key] = place
            continue
        count += 1
        if len(first) < 3:
            first.append((place, seen[key]))
    return Repeated(count, tuple(first))
