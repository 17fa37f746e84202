"""Rows to prompts: finds the column, renders conversations, tokenises, and checks that each prompt fits.

Knows nothing about models or engines; `window` is just a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rlft.config.data import DataConfig
from rlft.data.order import row_indices
from rlft.data.reading import Rows, read_rows, rows_in_memory
from rlft.data.shapes import DataShape, detect_shape, prompt_messages, prompt_text
from rlft.errors import UserError
from rlft.samples import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order of the file, and the order in which to use them."""

    prompts: Sequence[Prompt]
    description: str  # one line for people: which column, how many rows
    seed: int
    shuffle: bool

    def take(self, first: int, count: int) -> list[Prompt]:
        """`count` prompts from place `first` of an endless order, a pure function of the seed, that runs on across the
        ends of epochs."""
        order = row_indices(len(self.prompts), first, count, seed=self.seed, shuffle=self.shuffle)
        return [self.prompts[i] for i in order]

    def __len__(self) -> int:
        """Prompts of an epoch."""
        return len(self.prompts)

    @property
    def firsts(self) -> list[Prompt]:
        """The first prompt of each source: here of the only one."""
        return [self.prompts[0]]


def load_prompts(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    max_new_tokens: int,
    seed: int,
    rows: Iterable[Any] | Rows | None = None,
    path: str | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> PromptSet:
    """Read, render and tokenise the prompts of `rows`, else of `path`, else of `data.path`.

    `window` is the model's, in tokens, prompt and completion together. `tools`: JSON schemas that the chat template
    shows to the model. Raises UserError for data that cannot be used;
    the message names file, row and the way out.
    """
    read = load_rows(data, rows, path)
    shape = detect_shape(read, prompt_column=data.prompt_column, completion_column=None, need_completion=False)
    prompts = make_prompts(read, shape, data, tokenizer, tools)
    room = window - max_new_tokens
    too_long = [(prompt.id, len(prompt.token_ids)) for prompt in prompts if len(prompt.token_ids) > room]
    note = check_fit(
        too_long,
        len(prompts),
        room,
        drop=data.too_long == "drop",
        limit=f"window {window} - max_new_tokens {max_new_tokens}",
    )
    kept = [prompt for prompt in prompts if len(prompt.token_ids) <= room]
    return PromptSet(kept, f"{read.source}: {shape.describe()}{note}", seed, data.shuffle)


def make_prompts(
    read: Rows,
    shape: DataShape,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    tools: list[dict[str, Any]] | None = None,
) -> list[Prompt]:
    """One prompt for each row, however long. See load_prompts."""
    if wants_chat(data, shape):
        require_template(tokenizer)
        talks = [conversation(row, place, shape, data) for row, place in zip(read.rows, read.places, strict=True)]
        texts = [render(tokenizer, talk, place, tools=tools) for talk, place in zip(talks, read.places, strict=True)]
        token_ids = tokenize(tokenizer, texts, special=False, places=read.places)
        messages = [tuple(talk) for talk in talks]
    else:
        texts = [prompt_text(row, place, shape) for row, place in zip(read.rows, read.places, strict=True)]
        token_ids = tokenize(tokenizer, texts, special=True, places=read.places)
        messages = [None] * len(texts)
    prompts = [
        Prompt(id=place, token_ids=ids, text=text, messages=talk, columns=row)
        for row, place, ids, text, talk in zip(read.rows, read.places, token_ids, texts, messages, strict=True)
    ]
    for prompt in prompts:
        if not len(prompt.token_ids):
            raise UserError(
                f"{prompt.id}: the prompt in column {shape.prompt_column!r} is empty. Mend or delete that row."
            )
    return prompts


def load_rows(data: DataConfig, rows: Iterable[Any] | Rows | None, path: str | None = None) -> Rows:
    """`rows` if given (with places of their own if they are Rows), else the rows of `path`, else of `data.path`."""
    path = path or data.path
    if isinstance(rows, Rows):
        read = rows
    elif rows is not None:
        read = rows_in_memory(rows, max_rows=data.max_rows)
    elif path is not None:
        read = read_rows(path, split=data.split, max_rows=data.max_rows)
    else:
        raise UserError("data.path is empty. Give a data file, for instance --data.path train.jsonl, or pass dataset=.")
    return replace(read, rows=[with_ground_truth(row) for row in read.rows])


def with_ground_truth(row: dict[str, Any]) -> dict[str, Any]:
    """verl's rows keep the right answer inside the column reward_model; reward functions look for it in a column."""
    inside = row.get("reward_model")
    if "ground_truth" in row or not isinstance(inside, Mapping) or "ground_truth" not in inside:
        return row
    return {**row, "ground_truth": inside["ground_truth"]}


def wants_chat(data: DataConfig, shape: DataShape) -> bool:
    """Whether prompts go through the chat template: messages do, plain text only if asked for."""
    if data.apply_chat_template is False:
        if shape.kind == "messages":
            raise UserError(
                f"data.apply_chat_template is false, but column {shape.prompt_column!r} holds messages, which only "
                "a chat template can turn into text. Leave apply_chat_template empty, or name a text column."
            )
        if data.system_prompt is not None:
            raise UserError("data.system_prompt needs the chat template: leave data.apply_chat_template empty.")
        return False
    return shape.kind == "messages" or data.system_prompt is not None or data.apply_chat_template is True


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError when the tokenizer cannot render conversations."""
    if not tokenizer.chat_template:
        raise UserError(
            "The prompts are conversations, but the tokenizer has no chat template. Give one as a Jinja file with "
            "model.chat_template, or use text prompts without data.system_prompt and data.apply_chat_template."
        )


def conversation(row: Mapping[str, Any], place: str, shape: DataShape, data: DataConfig) -> Conversation:
    """The messages before the answer, with the configured system prompt in front."""
    if shape.kind == "messages":
        turns = prompt_messages(row, place, shape)
    else:
        turns = [{"role": "user", "content": prompt_text(row, place, shape)}]
    if data.system_prompt is None:
        return turns
    if turns[0]["role"] == "system":
        raise UserError(
            f"{place}: the conversation already begins with a system message. Leave data.system_prompt empty, or take "
            "the system messages out of the data."
        )
    return [{"role": "system", "content": data.system_prompt}, *turns]


def render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Mapping[str, Any]],
    place: str,
    *,
    answer: bool = False,
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """The conversation as text, up to where the assistant begins to speak; with `answer`, as it is. `tools`: JSON
    schemas for the template to show."""
    try:
        text = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            tools=tools,  # pyright: ignore[reportArgumentType]  # a list of schemas is what it takes
            tokenize=False,
            add_generation_prompt=not answer,
        )
    except Exception as error:  # jinja2's errors, and the template's own raise_exception
        raise UserError(f"{place}: the chat template refuses this conversation: {error}") from None
    return cast(str, text)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool, places: Sequence[str]
) -> list[np.ndarray]:
    """int32 [P] per text; `places` name their rows. With `special`, what the tokenizer adds by itself in front (BOS) is
    there; an end-of-sequence token that it would add behind is not, since a prompt goes on."""
    for text, place in zip(texts, places, strict=True):
        check_text(text, place)
    ids: list[np.ndarray] = []
    for begin in range(0, len(texts), 1000):  # in slices, so that the encodings do not fill the memory
        part = list(texts[begin : begin + 1000])
        encoded = tokenizer(part, add_special_tokens=special, return_attention_mask=False, verbose=False)
        ids.extend(np.asarray(row, dtype=np.int32) for row in cast("list[list[int]]", encoded["input_ids"]))
    if special and tokenizer.eos_token:
        for i, text in enumerate(texts):
            if len(ids[i]) and ids[i][-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
                ids[i] = ids[i][:-1]
    return ids


def check_text(text: str, place: str) -> None:
    """Raises UserError when it is not text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: {error.object[error.start : error.end]!a} at character {error.start} of its text is half of "
            "a surrogate pair, which no text can hold. Mend or delete that row."
        ) from None


def check_fit(
    too_long: Sequence[tuple[str, int]], num_rows: int, room: int, *, drop: bool, limit: str, examples: bool = False
) -> str:
    """What to add to the description about rows with more than `room` tokens, given as (place, tokens). Raises
    UserError when there are any and they may not be dropped, or when nothing would be left. `examples`: they have their
    completions in them, which may be cut."""
    if not too_long:
        return ""
    first = ", ".join(f"{place} ({length} tokens)" for place, length in too_long[:3])
    longest = max(length for _, length in too_long)
    if drop and len(too_long) < num_rows:
        return f"; {len(too_long)} dropped as too long (more than {room} tokens)"
    what = "All rows are" if len(too_long) == num_rows else f"{len(too_long)} of {num_rows} rows are"
    can_drop, can_cut = not drop and len(too_long) < num_rows, examples and not drop
    settings = [way for way, helps in (("drop", can_drop), ("truncate", can_cut)) if helps]
    ways = [f"set data.too_long to {' or '.join(settings)}"] if settings else []
    ways += ["use a model with a larger window (model.tiny.max_length for tiny models)"]
    ways += [] if examples else ["ask for fewer new tokens"]
    raise UserError(
        f"{what} too long: {first}{' ...' if len(too_long) > 3 else ''}; the longest has {longest} tokens, and there "
        f"is room for {max(room, 0)} ({limit}). To mend it: {'; or '.join(ways)}."
    )
