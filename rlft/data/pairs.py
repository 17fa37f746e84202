"""Rows to pairs of a chosen and a rejected completion, and to completions labelled good or bad.

Knows nothing about losses. A pair is a group of two samples, the chosen one first; the advantage of their tokens, 1 and
-1, tells them apart. A labelled completion is a group whose first sample has 1 (good) or -1 (bad).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rlft.config.data import DataConfig
from rlft.data.examples import ExampleSet, answer_of, is_empty, worked_examples
from rlft.data.fitting import fit_examples
from rlft.data.prompts import load_rows, wants_chat
from rlft.data.reading import Rows
from rlft.data.shapes import PROMPT_COLUMNS, DataShape, check_column, check_labels, detect_shape
from rlft.data.unusable import left_out
from rlft.errors import UserError
from rlft.samples import Group, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]
Two = tuple[dict[str, Any], dict[str, Any]]  # a pair as two worked examples
ONE_PROMPT = (
    "all rows have the same prompt. kto measures the distance from the reference on completions of other prompts; "
    "expected at least two prompts, or algorithm.preference_loss apo_zero."
)


class PairShape(NamedTuple):
    """Where prompt and completions of pairs are."""

    prompt_column: str | None  # None: the chosen and the rejected text or conversation begin with it
    conversations: bool  # chosen and rejected hold messages

    def describe(self, data: DataConfig, read: Rows) -> str:
        """One line for people."""
        form = "messages" if self.conversations else "text"
        begin = f"{self.prompt_column} -> prompt" if self.prompt_column else "what both begin with -> prompt"
        used = {self.prompt_column, data.chosen_column, data.rejected_column}
        others = ", ".join(name for name in read.columns() if name not in used) or "none"
        return (
            f"{begin}, {data.chosen_column} over {data.rejected_column} ({form}); {len(read.rows)} pairs; "
            f"other columns: {others}"
        )


def load_pairs(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    seed: int,
    end: AbstractSet[int] = frozenset(),
    rows: Iterable[Any] | None = None,
    path: str | None = None,
) -> ExampleSet:
    """Read, render and tokenise pairs, each completion as load_examples would do it. Both forms of the field are read:
    prompt, chosen and rejected, or chosen and rejected that begin with the prompt.

    Raises UserError for data that cannot be used, among them a pair whose two completions are the same or of which
    one is empty, unless data.unusable is drop.
    """
    read = load_rows(data, rows, path)
    shape = pair_shape(read, data)
    both = [two_rows(row, place, shape, data) for row, place in zip(read.rows, read.places, strict=True)]
    form = pair_form(shape, both[0][0], 2 * len(both))
    read, both, empty = _without_empty_pairs(read, both, form, data)
    twice = Rows([r for two in both for r in two], [p for p in read.places for _ in range(2)], read.source)
    singles = worked_examples(twice, form, _last(data), tokenizer, end)
    pairs = [
        Group(
            replace(chosen.prompt, columns=row),
            (signed_sample(chosen.samples[0], 1.0), signed_sample(rejected.samples[0], -1.0)),
        )
        for row, chosen, rejected in zip(read.rows, singles[::2], singles[1::2], strict=True)
    ]
    fitting, long = fit_examples(pairs, tokenizer, window, data.too_long)  # cut, two may have become the same
    same = [g.prompt.id for g in fitting if np.array_equal(g.samples[0].token_ids, g.samples[1].token_ids)]
    note = left_out(same, len(fitting), data, "whose chosen and rejected completions are the same")
    kept = [g for g in fitting if g.prompt.id not in set(same)]
    return ExampleSet(kept, f"{read.source}: {shape.describe(data, read)}{empty}{long}{note}", seed, data.shuffle)


def load_labels(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    seed: int,
    end: AbstractSet[int] = frozenset(),
    rows: Iterable[Any] | None = None,
    path: str | None = None,
    with_others: bool = True,
) -> ExampleSet:
    """Read, render and tokenise completions with labels. With `with_others` each group has a second sample without an
    advantage: its prompt with the completion of the next row that has another prompt, on which KTO measures how far
    the policy is from the reference.

    Raises UserError for data that cannot be used, among them an empty completion, unless data.unusable is drop.
    """
    read = load_rows(data, rows, path)
    shape = detect_shape(
        read, prompt_column=data.prompt_column, completion_column=data.completion_column, need_completion=True
    )
    check_column("data.label_column", data.label_column, read.columns(), read.source)
    check_labels(read, data.label_column)
    read, empty = _without_empty(read, shape, data)
    labels = check_labels(read, data.label_column)
    examples = worked_examples(read, shape, _last(data), tokenizer, end)
    groups = [
        group.with_samples([signed_sample(group.samples[0], 1.0 if good else -1.0)])
        for group, good in zip(examples, labels, strict=True)
    ]
    kept, long = fit_examples(groups, tokenizer, window, data.too_long)
    note = f", {data.label_column} -> good or bad ({sum(labels)} good, {len(labels) - sum(labels)} bad){empty}{long}"
    if with_others:
        kept = _with_others(kept, window, read.source)
    return ExampleSet(kept, f"{read.source}: {shape.describe()}{note}", seed, data.shuffle)


def empty_answers(parts: Sequence[tuple[str, Row]], place: str, shape: DataShape, data: DataConfig) -> list[str]:
    """Of rows of one prompt and completion each, given with the column that the completion comes from: the columns of
    those that are empty."""
    chat = wants_chat(data, shape)
    return [column for column, row in parts if is_empty(answer_of(row, place, shape), chat)]


def _without_empty_pairs(
    read: Rows, both: Sequence[Two], form: DataShape, data: DataConfig
) -> tuple[Rows, list[Two], str]:
    """The pairs of which both completions say something, and what to add to the description."""
    columns = (data.chosen_column, data.rejected_column)
    found = [
        empty_answers(list(zip(columns, two, strict=True)), place, form, data)
        for two, place in zip(both, read.places, strict=True)
    ]
    return (
        _keep(read, found),
        [two for two, empty in zip(both, found, strict=True) if not empty],
        _empty_note(read, found, data),
    )


def _without_empty(read: Rows, shape: DataShape, data: DataConfig) -> tuple[Rows, str]:
    """The rows whose completion says something, and what to add to the description."""
    column = str(shape.completion_column)
    found = [
        empty_answers([(column, row)], place, shape, data) for row, place in zip(read.rows, read.places, strict=True)
    ]
    return _keep(read, found), _empty_note(read, found, data)


def _keep(read: Rows, empty: Sequence[list[str]]) -> Rows:
    kept = [i for i, columns in enumerate(empty) if not columns]
    return Rows([read.rows[i] for i in kept], [read.places[i] for i in kept], read.source)


def _empty_note(read: Rows, empty: Sequence[list[str]], data: DataConfig) -> str:
    named = [
        f"{place} (column {' and '.join(map(repr, columns))})"
        for place, columns in zip(read.places, empty, strict=True)
        if columns
    ]
    return left_out(named, len(read.rows), data, "with an empty completion")


def _last(data: DataConfig) -> DataConfig:
    """Of a conversation the last answer alone is compared or judged."""
    return data.model_copy(update={"train_on": "last"})


def signed_sample(sample: Sample, sign: float) -> Sample:
    """The sample with this advantage on every token."""
    return replace(sample, advantages=np.full(len(sample.token_ids), sign, dtype=np.float32))


def pair_shape(read: Rows, data: DataConfig) -> PairShape:
    """The shape of `read`. Raises UserError when a column is not there."""
    columns = read.columns()
    for key, name in (("data.chosen_column", data.chosen_column), ("data.rejected_column", data.rejected_column)):
        check_column(key, name, columns, read.source)
    check_column("data.prompt_column", data.prompt_column, columns, read.source)
    first = read.rows[0].get(data.chosen_column)
    conversations = isinstance(first, list | tuple)
    prompt = data.prompt_column or next((name for name in PROMPT_COLUMNS if name in columns), None)
    whole = conversations and len(first) > 1  # type: ignore[arg-type]  # with the question in it, whatever else is there
    if whole and data.prompt_column is not None:
        raise UserError(
            f"data.prompt_column: {read.source} has whole conversations in {data.chosen_column!r}, with the prompt in "
            "them. Leave data.prompt_column empty."
        )
    return PairShape(None if whole else prompt, conversations)


def pair_form(shape: PairShape, first: Row, num_rows: int) -> DataShape:
    """Where prompt and completion are in the rows of `two_rows`, of which `first` is one."""
    column = "messages" if shape.conversations and shape.prompt_column is None else "prompt"
    kind = "messages" if isinstance(first[column], list) else "text"
    return DataShape(kind, column, column if column == "messages" else "completion", None, num_rows, ())


def two_rows(row: Row, place: str, shape: PairShape, data: DataConfig) -> Two:
    """The row as two worked examples."""
    chosen, rejected = row.get(data.chosen_column), row.get(data.rejected_column)
    for column, value in ((data.chosen_column, chosen), (data.rejected_column, rejected)):
        if isinstance(value, list | tuple) != shape.conversations or not isinstance(value, str | list | tuple):
            found = "missing" if column not in row else "empty (null)" if value is None else f"a {type(value).__name__}"
            expected = "a list of messages" if shape.conversations else "text"
            raise UserError(f"{place}: column {column!r} is {found}. Expected {expected}, as in the first row.")
    assert chosen is not None and rejected is not None
    if shape.prompt_column is not None:
        prompt = row.get(shape.prompt_column)
        return {"prompt": prompt, "completion": chosen}, {"prompt": prompt, "completion": rejected}
    if shape.conversations:
        _check_alternatives(chosen, rejected, place, data)
        return {"messages": list(chosen)}, {"messages": list(rejected)}
    shared = _shared_text(chosen, rejected)
    if not shared:
        raise UserError(
            f"{place}: there is no prompt column, and {data.chosen_column!r} and {data.rejected_column!r} do not begin "
            "with the same words. Name the column with data.prompt_column."
        )
    return tuple({"prompt": shared, "completion": text[len(shared) :]} for text in (chosen, rejected))  # type: ignore[return-value]


def _shared_text(chosen: str, rejected: str) -> str:
    """What both begin with, up to the end of a word: where they part within one, all of it is answer."""
    shared = chosen[
        : next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), len(min(chosen, rejected, key=len)))
    ]
    if len(shared) in (len(chosen), len(rejected)):  # one is the beginning of the other
        shared = shared[:-1]
    cut = max(shared.rfind(blank) for blank in (" ", "\n", "\t"))
    return shared[: cut + 1].rstrip(" ")


def _check_alternatives(chosen: Sequence[Any], rejected: Sequence[Any], place: str, data: DataConfig) -> None:
    """Two conversations that differ in the last message alone."""
    if list(chosen[:-1]) == list(rejected[:-1]):
        return
    at = next(i for i, (a, b) in enumerate([*zip(chosen, rejected), (0, 1)]) if a != b)
    raise UserError(
        f"{place}: the conversations in {data.chosen_column!r} ({len(chosen)} messages) and {data.rejected_column!r} "
        f"({len(rejected)}) part at message {at + 1}. Expected the same messages up to the last, which answers them."
    )


def _with_others(groups: Sequence[Group], window: int, source: str) -> list[Group]:
    """Each group with its prompt and the completion of the next that has another prompt, as much as fits."""
    prompts = [group.prompt.token_ids.tobytes() for group in groups]
    following = _next_of_another_prompt(prompts)
    if following is None:
        raise UserError(f"{source}: {ONE_PROMPT}")
    result = []
    for group, other in zip(groups, following, strict=True):
        answer = groups[other].samples[0].token_ids[len(groups[other].prompt.token_ids) :]
        ids = np.concatenate([group.prompt.token_ids, answer])[: max(window, len(group.prompt.token_ids) + 1)]
        mask = np.arange(len(ids)) >= len(group.prompt.token_ids)
        result.append(group.with_samples([*group.samples, signed_sample(Sample.given(ids, mask, ""), 0.0)]))
    return result


def _next_of_another_prompt(prompts: Sequence[bytes]) -> list[int] | None:
    """For each place the next one, around the end, with another value; None when all are the same."""
    count, following = len(prompts), [0] * len(prompts)
    change = next((i for i in range(count) if prompts[i] != prompts[i - 1]), None)
    if change is None:
        return None
    for i in range(change + count - 1, change - 1, -1):  # backwards around, from the end of a run of equals
        here, ahead = i % count, (i + 1) % count
        following[here] = ahead if prompts[ahead] != prompts[here] else following[ahead]
    return following
