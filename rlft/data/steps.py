"""Rows to completions of which every step has a label, and from a completion back to its steps.

The shape of the field ("stepwise supervision"): `prompt` (text or messages), `completions` (a list of texts), `labels`
(a list as long: true, false, or a number from 0 to 1). Knows nothing about losses. Prompt, steps and separators are
tokenised apart, so that a step ends where its text does, whatever stands behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rlft.config.data import DataConfig
from rlft.data.examples import ExampleSet
from rlft.data.fitting import fit_examples
from rlft.data.prompts import load_prompts, load_rows, tokenize
from rlft.data.reading import Rows
from rlft.data.shapes import check_column, detect_shape
from rlft.data.unusable import left_out
from rlft.errors import UserError
from rlft.samples import Group, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR_INSIDE, SPLIT_IN_USE = "with the separator inside of a step", "are split there in use"
_ANY_LENGTH = 1 << 40  # of a prompt alone; whether a row fits is seen with its steps behind it


def load_steps(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    seed: int,
    end: AbstractSet[int] = frozenset(),
    rows: Iterable[Any] | None = None,
    path: str | None = None,
) -> ExampleSet:
    """Read, render and tokenise completions in steps: see step_examples. `end` has no part in it, because nothing
    stands behind the last step.

    Raises UserError for data that cannot be used, among them a step with the separator inside, unless data.unusable is
    drop.
    """
    read = load_rows(data, rows, path)
    check_step_columns(read, data)
    several = [
        i
        for i, (row, place) in enumerate(zip(read.rows, read.places, strict=True))
        if has_separator_inside(row, place, data)
    ]
    note = left_out([read.places[i] for i in several], len(read.rows), data, SEPARATOR_INSIDE, SPLIT_IN_USE)
    kept = [i for i in range(len(read.rows)) if i not in set(several)]
    read = Rows([read.rows[i] for i in kept], [read.places[i] for i in kept], read.source)
    fitting, long = fit_examples(step_examples(read, data, tokenizer), tokenizer, window, data.too_long)
    good = [label > 0.5 for row in read.rows for label in row[data.step_labels_column]]
    counts = f"; {sum(good)} good steps, {len(good) - sum(good)} bad"
    return ExampleSet(fitting, f"{read.source}: {describe_steps(read, data)}{counts}{note}{long}", seed, data.shuffle)


def check_step_columns(read: Rows, data: DataConfig) -> None:
    """Raises UserError when there are no steps or labels."""
    for key, name in (("data.steps_column", data.steps_column), ("data.step_labels_column", data.step_labels_column)):
        check_column(key, name, read.columns(), read.source)


def has_separator_inside(row: Mapping[str, Any], place: str, data: DataConfig) -> bool:
    """Whether what is one step in the row is several where a completion is split. Raises UserError for a row that holds
    no steps with labels."""
    steps = steps_of(row, place, data)
    labels_of(row, place, data)
    return any(data.step_separator in step for step in steps)


def step_examples(read: Rows, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> list[Group]:
    """Each row's prompt with its steps, data.step_separator between them, in the order of the rows. The mask is True on
    the last token of each step that data.label_of chooses, and `returns` has its label there, f32 from 0 to 1."""
    steps = [steps_of(row, place, data) for row, place in zip(read.rows, read.places, strict=True)]
    labels = [labels_of(row, place, data) for row, place in zip(read.rows, read.places, strict=True)]
    prompts = load_prompts(data, tokenizer, window=_ANY_LENGTH, max_new_tokens=0, seed=0, rows=read).prompts
    whose = [place for place, row in zip(read.places, steps, strict=True) for _ in row]
    ids = iter(tokenize(tokenizer, [step for row in steps for step in row], special=False, places=whose))
    (between,) = tokenize(tokenizer, [data.step_separator], special=False, places=["data.step_separator"])
    examples = []
    for prompt, row, values in zip(prompts, steps, labels, strict=True):
        pieces, ends, length = [prompt.token_ids], list[int](), len(prompt.token_ids)
        for number, tokens in enumerate(next(ids) for _ in row):
            if not len(tokens):
                raise UserError(f"{prompt.id}: step {number + 1} is no token in this tokenizer. Mend or delete it.")
            pieces += [between, tokens] if number else [tokens]
            length += len(tokens) + (len(between) if number else 0)
            ends.append(length - 1)
        learned = slice(-1, None) if data.label_of == "last" else slice(None)
        sample = Sample.given(np.concatenate(pieces), np.isin(np.arange(length), ends[learned]), _joined(row, data))
        examples.append(Group(prompt, (_labelled(sample, values[learned]),)))
    return examples


def split_steps(text: str, separator: str) -> list[str]:
    """The steps of a completion: what stands between separators, what is blank left out."""
    return [step for step in text.split(separator) if step.strip()]


def steps_of(row: Mapping[str, Any], place: str, data: DataConfig) -> list[str]:
    """The texts of the steps, without separators at their ends. Raises UserError for what is no list of steps."""
    column = data.steps_column
    value = row.get(column)
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{place}: column {column!r} is {_found(value)}. Expected a list of steps, each a text.")
    steps = list[str]()
    for number, step in enumerate(value, start=1):
        if not isinstance(step, str):
            raise UserError(f"{place}: step {number} of column {column!r} is {_found(step)}. Expected a text.")
        if not step.strip():
            raise UserError(f"{place}: step {number} of column {column!r} is empty. Mend or delete it and its label.")
        steps.append(_without_ends(step, data.step_separator))
    return steps


def labels_of(row: Mapping[str, Any], place: str, data: DataConfig) -> list[float]:
    """The labels of the steps. Raises UserError unless there is one for each, true, false or a number from 0 to 1."""
    column, num_steps = data.step_labels_column, len(row[data.steps_column])
    value = row.get(column)
    if not isinstance(value, list | tuple):
        raise UserError(f"{place}: column {column!r} is {_found(value)}. Expected a list with a label for each step.")
    if len(value) != num_steps:
        raise UserError(
            f"{place}: column {column!r} has {len(value)} labels, and column {data.steps_column!r} has {num_steps} "
            "steps. Expected one label for each step."
        )
    for number, label in enumerate(value, start=1):
        if not isinstance(label, bool | int | float) or not 0 <= label <= 1:
            raise UserError(
                f"{place}: label {number} of column {column!r} is {label!r}. Expected true, false or a number from 0 "
                "to 1."
            )
    return [float(label) for label in value]


def _found(value: Any) -> str:
    return "missing" if value is None else "an empty list" if value in ([], ()) else f"a {type(value).__name__}"


def _without_ends(step: str, separator: str) -> str:
    """The step without separators at its ends: between two steps stands one."""
    while step.startswith(separator):
        step = step.removeprefix(separator)
    while step.endswith(separator):
        step = step.removesuffix(separator)
    return step


def _joined(steps: Sequence[str], data: DataConfig) -> str:
    return data.step_separator.join(steps)


def _labelled(sample: Sample, labels: Sequence[float]) -> Sample:
    returns = np.zeros(len(sample.token_ids), dtype=np.float32)
    returns[sample.loss_mask] = labels
    return replace(sample, returns=returns)


def describe_steps(read: Rows, data: DataConfig) -> str:
    """One line for people."""
    shape = detect_shape(read, prompt_column=data.prompt_column, completion_column=None, need_completion=False)
    used = (data.steps_column, data.step_labels_column)
    others = ", ".join(name for name in shape.other_columns if name not in used) or "none"
    return (
        f"{shape.prompt_column} -> prompt ({shape.kind}), {data.steps_column} -> steps, {data.step_labels_column} -> "
        f"labels; {len(read.rows)} rows; other columns: {others}"
    )
