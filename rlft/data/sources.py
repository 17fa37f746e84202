"""What a run learns from, as its data section says: one source or a mixture of several, in memory or streamed.

Brings together what the files beside this one do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlft.config.data import DataConfig
from rlft.data.examples import ExampleSet, load_examples, worked_examples
from rlft.data.fitting import fit_examples, num_tokens
from rlft.data.mixture import Item, Mixture, mixed, named
from rlft.data.prompts import PromptSet, load_prompts, make_prompts, with_ground_truth
from rlft.data.reading import Rows
from rlft.data.shapes import DataShape, detect_shape
from rlft.data.streaming import Lazy, RowIndex, first_rows, index_rows
from rlft.errors import UserError
from rlft.samples import Group, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompts = PromptSet | Mixture[Prompt]
Examples = ExampleSet | Mixture[Group]


def all_prompts(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    max_new_tokens: int,
    seed: int,
    rows: Iterable[Any] | None = None,
    path: str | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> Prompts:
    """See load_prompts, which takes the same. `rows` and `path` are one source, in memory."""

    def load(data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PromptSet:
        if data.streaming and rows is None and path is None:
            return _streamed_prompts(data, tokenizer, window, max_new_tokens, seed, tools)
        return load_prompts(
            data, tokenizer, window=window, max_new_tokens=max_new_tokens, seed=seed, rows=rows, path=path, tools=tools
        )

    mixes = data.mixture and rows is None and path is None
    return mixed(data, tokenizer, seed, load) if mixes else load(data, tokenizer, seed)


def all_examples(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    seed: int,
    end: AbstractSet[int] = frozenset(),
    rows: Iterable[Any] | None = None,
    path: str | None = None,
    load: Callable[..., ExampleSet] = load_examples,
) -> Examples:
    """See load_examples, or what else is given as `load` (pairs, labels), which takes the same. `rows` and `path` are
    one source, in memory."""
    alone = rows is not None or path is not None

    def one(data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> ExampleSet:
        if not data.streaming or alone:
            return load(data, tokenizer, window=window, seed=seed, end=end, rows=rows, path=path)
        if load is not load_examples:
            raise UserError(
                "data.streaming: pairs and labelled completions are read as a whole. Leave data.streaming out."
            )
        return _streamed_examples(data, tokenizer, window, seed, end)

    return mixed(data, tokenizer, seed, one) if data.mixture and not alone else one(data, tokenizer, seed)


def with_sources(items: Sequence[Item], column: str | None) -> list[Item]:
    """The prompts or groups, each with what is in that column as the name of its source. Raises UserError where nothing
    is."""
    if column is None:
        return list(items)
    return [named(item, _source_in(item.prompt if isinstance(item, Group) else item, column)) for item in items]


def _source_in(prompt: Prompt, column: str) -> str:
    value = prompt.columns.get(column)
    if not isinstance(value, str) or not value or "/" in value:
        there = ", ".join(prompt.columns)
        raise UserError(
            f"{prompt.id}: evaluation.source_column {column!r} is {value!r}. Expected the name of a source, a text "
            f"without slashes. Columns there: {there}."
        )
    return value


def _streamed_prompts(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, window: int, max_new_tokens: int, seed: int, tools: Any
) -> PromptSet:
    index, first = _open(data)
    shape = detect_shape(first, prompt_column=data.prompt_column, completion_column=None, need_completion=False)
    room, limit = window - max_new_tokens, f"window {window} - max_new_tokens {max_new_tokens}"

    def make(read: Rows) -> Prompt | None:
        (prompt,) = make_prompts(_with_ground_truth(read), shape, data, tokenizer, tools)
        size = len(prompt.token_ids)
        return prompt if size <= room else _left_out(prompt.id, size, room, data, limit)

    return PromptSet(Lazy(index, make), _description(index, shape, data), seed, data.shuffle)


def _streamed_examples(
    data: DataConfig, tokenizer: PreTrainedTokenizerBase, window: int, seed: int, end: AbstractSet[int]
) -> ExampleSet:
    index, first = _open(data)
    shape = detect_shape(
        first,
        prompt_column=data.prompt_column,
        completion_column=data.completion_column,
        document_column=data.document_column,
        need_completion=True,
    )
    if shape.kind == "document":
        raise UserError(
            f"data.streaming: {index.source} holds whole documents (column {shape.prompt_column!r}), and into how many "
            "pieces each is cut is only known once all are read. Leave data.streaming out."
        )

    def make(read: Rows) -> Group | None:
        (example,) = worked_examples(_with_ground_truth(read), shape, data, tokenizer, end)
        size = num_tokens(example)
        if size > window and data.too_long != "truncate":
            return _left_out(example.prompt.id, size, window, data, "the model's window", "drop or truncate")
        return fit_examples([example], tokenizer, window, data.too_long)[0][0]

    return ExampleSet(Lazy(index, make), _description(index, shape, data), seed, data.shuffle)


def _open(data: DataConfig) -> tuple[RowIndex, Rows]:
    if data.path is None:
        raise UserError("data.path is empty. Give a data file, for instance --data.path train.jsonl.")
    index = index_rows(data.path, split=data.split, max_rows=data.max_rows)
    return index, first_rows(index)


def _with_ground_truth(read: Rows) -> Rows:
    return replace(read, rows=[with_ground_truth(row) for row in read.rows])


def _left_out(place: str, size: int, room: int, data: DataConfig, limit: str, ways: str = "drop") -> None:
    """None, for a row to be left out. Raises UserError where it may not be."""
    if data.too_long != "drop":
        raise UserError(
            f"{place} is too long: {size} tokens, and there is room for {max(room, 0)} ({limit}). To mend it: set "
            f"data.too_long to {ways}; or use a model with a larger window (model.tiny.max_length for tiny models)."
        )


def _description(index: RowIndex, shape: DataShape, data: DataConfig) -> str:
    told = replace(shape, num_rows=len(index)).describe()
    skipped = "; what is too long is skipped when it is met" if data.too_long == "drop" else ""
    return f"{index.source}: {told}; streamed{skipped}"
