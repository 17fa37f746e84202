"""The rows of several tasks as one: each task's own, and the order in which they come.

Which rows a step has is a pure function of seed and step, so that a resumed run takes the same. Knows nothing about
losses or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlft.config import Config
from rlft.config.data import DataConfig
from rlft.config.tasks import TaskConfig
from rlft.data.order import Interleaving, row_indices, source_seed, whole_shares
from rlft.data.prompts import check_fit
from rlft.data.reading import Rows, read_rows
from rlft.data.shapes import check_column
from rlft.data.task_rows import READERS, Read, column_of, columns_read, found_labels, make_group
from rlft.errors import UserError
from rlft.samples import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TaskRows:
    """A task's rows, each a group of one sample, in the order of the file."""

    task: TaskConfig  # with all its labels
    groups: list[Group]
    description: str  # one line for people


class TaskMixture:
    """Rows of all tasks, each step's in fixed proportions (rlft.data.order.Interleaving)."""

    def __init__(self, rows: Sequence[TaskRows], temperature: float | None, seed: int, shuffle: bool) -> None:
        self.rows, self._seed, self._shuffle = tuple(rows), seed, shuffle
        shares = shares_of([r.task for r in rows], [len(r.groups) for r in rows], temperature)
        self._order = Interleaving(shares)
        told = [
            f"{r.task.name} ({r.task.kind}), {share / sum(shares):.4g} of each step: {r.description}"
            for r, share in zip(rows, shares, strict=True)
        ]
        self.description = f"{len(told)} tasks\n  " + "\n  ".join(told)  # for people

    def take(self, first: int, count: int) -> list[Group]:
        """`count` rows from place `first` of an endless order."""
        places, parts = self._order.stretch(first, count)
        taken = {i: iter(self._part(self.rows[i], *part)) for i, part in parts.items()}
        return [next(taken[i]) for i in places]

    def _part(self, rows: TaskRows, first: int, count: int) -> list[Group]:
        seed = source_seed(self._seed, rows.task.name)
        order = row_indices(len(rows.groups), first, count, seed=seed, shuffle=self._shuffle)
        return [rows.groups[i] for i in order]

    def batch(self, step: int, num_examples: int) -> list[Group]:
        """The rows of one step (from 0)."""
        return self.take(step * num_examples, num_examples)

    @property
    def examples(self) -> list[Group]:
        """Every row once."""
        return [group for rows in self.rows for group in rows.groups]


def shares_of(tasks: Sequence[TaskConfig], sizes: Sequence[int], temperature: float | None) -> list[int]:
    """Whole numbers in whose proportions the tasks' rows come: by share, or by size n as n ** (1 / temperature)."""
    if temperature is None:
        return whole_shares([task.share for task in tasks])
    if temperature == 1:
        return whole_shares(sizes)
    return whole_shares([max(1e-9, (size / max(sizes)) ** (1 / temperature)) for size in sizes])


def load_tasks(config: Config, tokenizer: PreTrainedTokenizerBase, window: int) -> tuple[TaskMixture, list[TaskRows]]:
    """What the run learns from, and the held-out rows of those tasks that have some. Raises UserError for data that
    cannot be used, with the task's name in front."""
    if not tokenizer.is_fast:
        raise UserError(
            f"model.path: {type(tokenizer).__name__} does not say which characters a token is, which tasks need. "
            "Expected a model with a fast tokenizer (tokenizer.json)."
        )
    learned, held_out = list[TaskRows](), list[TaskRows]()
    for task in config.tasks:
        try:
            rows = _load(task, config.data, tokenizer, window, task.path, task.split, config.data.max_rows, None)
            learned.append(rows)
            if task.held_out is not None:
                split, limit = task.held_out_split or task.split, config.evaluation.max_rows
                held_out.append(
                    _load(task, config.data, tokenizer, window, task.held_out, split, limit, rows.task.labels)
                )
        except UserError as error:
            raise UserError(f"task {task.name}: {error}") from None
    temperature = config.algorithm.task_temperature
    return TaskMixture(learned, temperature, config.run.seed, config.data.shuffle), held_out


def _load(
    task: TaskConfig, data: DataConfig, tokenizer: Any, window: int, path: str, split: str, max_rows: int | None,
    labels: list[str] | None,
) -> TaskRows:  # fmt: skip
    """`labels`: those of the rows that are learned from, where these are others."""
    rows = read_rows(path, split=split, max_rows=max_rows)
    columns = columns_read(task, rows.columns())
    for name in columns:
        check_column(f"columns.{name}", column_of(task, name), rows.columns(), rows.source)
    reads = [READERS[task.kind](task, row, place, columns) for row, place in zip(rows.rows, rows.places, strict=True)]
    known = labels or task.labels or _found(task, reads, rows.source)
    groups, note = _groups(task, rows, reads, known, tokenizer, window, data.too_long == "drop")
    told = f"{', '.join(column_of(task, name) for name in columns)}; {len(groups)} rows"
    if known:
        told += f"; labels: {', '.join(known[:12])}{' ...' if len(known) > 12 else ''}"
    return TaskRows(task.model_copy(update={"labels": known}), groups, f"{rows.source}: {told}{note}")


def _found(task: TaskConfig, reads: Sequence[Read], source: str) -> list[str]:
    """The labels that the rows have; [] for a task without."""
    if task.kind == "question_answering" or task.problem == "number":
        return []
    found = found_labels(task, reads)
    if len(found) < (1 if task.problem == "many_labels" else 2):
        only = f"only the label {found[0]!r}" if found else "no label at all"
        raise UserError(f"{source} has {only}, so there is nothing to learn. Expected more, or name all with labels.")
    return found


def _groups(
    task: TaskConfig, rows: Rows, reads: Sequence[Read], labels: Sequence[str], tokenizer: Any, window: int, drop: bool
) -> tuple[list[Group], str]:
    """A group for each row that fits the model's window, and what to add to the description."""
    numbers, groups, too_long, shared = {label: i for i, label in enumerate(labels)}, list[Group](), [], 0
    for begin in range(0, len(reads), 1000):  # in slices, so that the encodings do not fill the memory
        part = slice(begin, begin + 1000)
        texts = [read.text for read in reads[part]]
        encoded = tokenizer(texts, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
        for read, row, place, ids, offsets in zip(
            reads[part], rows.rows[part], rows.places[part], encoded["input_ids"], encoded["offset_mapping"]
        ):
            if len(ids) > window:
                too_long.append((place, len(ids)))
                continue
            group, left_out = make_group(
                task, read, row, place, numbers, np.array(ids, dtype=np.int32), np.array(offsets)
            )
            groups.append(group)
            shared += left_out
    note = check_fit(too_long, len(reads), window, drop=drop, limit="the model's window")
    if shared:
        note += f"; {shared} words end in another word's token and are left out"
    return groups, note
