"""Rows to worked examples for supervised fine-tuning: prompt + completion + end, with a mask of what to learn.

Knows nothing about losses. Only the last assistant turn is trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlft.config.data import DataConfig
from rlft.data.order import batch_indices
from rlft.data.prompts import check_fit, conversation, load_rows, render, require_template, tokenize, wants_chat
from rlft.data.reading import Rows
from rlft.data.shapes import DataShape, completion_text, detect_shape, last_assistant_turn, prompt_text
from rlft.errors import UserError
from rlft.samples import Group, Prompt, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ExampleSet:
    """Examples in the order of the file, each a group of one sample, and the order in which to use them."""

    examples: list[Group]
    description: str  # one line for people: which columns, how many rows
    seed: int
    shuffle: bool

    def batch(self, step: int, num_examples: int) -> list[Group]:
        """The examples of one step (from 0): a pure function of seed and step, as in PromptSet.batch."""
        order = batch_indices(len(self.examples), step, num_examples, seed=self.seed, shuffle=self.shuffle)
        return [self.examples[i] for i in order]


def load_examples(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    seed: int,
    rows: Iterable[Any] | None = None,
) -> ExampleSet:
    """Read, render and tokenise the examples of `rows`, else of `data.path`.

    The mask is True exactly on the completion's tokens and the end-of-sequence token. Raises UserError for data that
    cannot be used.
    """
    read = load_rows(data, rows)
    shape = detect_shape(
        read, prompt_column=data.prompt_column, completion_column=data.completion_column, need_completion=True
    )
    chat = wants_chat(data, shape)
    prompts, completions, talks = _chat_texts(read, shape, data, tokenizer) if chat else _plain_texts(read, shape)
    prompt_ids = tokenize(tokenizer, prompts, special=not chat, places=read.places)
    bare_ids = tokenize(tokenizer, completions, special=False, places=read.places)
    completion_ids = [_ended(ids, tokenizer, chat) for ids in bare_ids]
    examples = []
    for i, (row, place) in enumerate(zip(read.rows, read.places, strict=True)):
        if not len(prompt_ids[i]):
            raise UserError(f"{place}: the prompt in column {shape.prompt_column!r} is empty. Mend or delete that row.")
        prompt = Prompt(id=place, token_ids=prompt_ids[i], text=prompts[i], messages=talks[i], columns=row)
        text = tokenizer.decode(completion_ids[i], skip_special_tokens=True) if chat else completions[i]
        examples.append(Group(prompt, (_sample(prompt_ids[i], completion_ids[i], str(text)),)))
    lengths = [len(group.samples[0].token_ids) for group in examples]
    too_long = [(read.places[i], length) for i, length in enumerate(lengths) if length > window]
    note = check_fit(too_long, len(examples), window, drop=data.too_long == "drop", limit="the model's window")
    kept = [group for group, length in zip(examples, lengths, strict=True) if length <= window]
    return ExampleSet(kept, f"{read.source}: {shape.describe()}{note}", seed, data.shuffle)


Texts = tuple[list[str], list[str], Sequence[tuple[Mapping[str, str], ...] | None]]


def _plain_texts(read: Rows, shape: DataShape) -> Texts:
    """Prompts and completions as they are; tokenised apart, so that no token spans the boundary."""
    places = list(zip(read.rows, read.places, strict=True))
    prompts = [prompt_text(row, place, shape) for row, place in places]
    return prompts, [completion_text(row, place, shape) for row, place in places], [None] * len(places)


def _chat_texts(read: Rows, shape: DataShape, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Prompts as the template renders them, and what the template writes behind for the assistant's answer. Tokenised
    apart, so the example begins with exactly the tokens that a generator would be given."""
    require_template(tokenizer)
    prompts, completions, talks = [], [], []
    for row, place in zip(read.rows, read.places, strict=True):
        turns = conversation(row, place, shape, data)
        from_talk = shape.completion_column == shape.prompt_column
        answer = last_assistant_turn(row, place, shape) if from_talk else completion_text(row, place, shape)
        prompt = render(tokenizer, turns, place)
        full = render(tokenizer, [*turns, {"role": "assistant", "content": answer}], place, answer=True)
        if not full.startswith(prompt):
            raise UserError(
                f"{place}: the chat template renders the whole conversation so that it does not begin with the "
                f"rendered prompt: expected {prompt[-60:]!r} before the answer. Training on it would teach "
                "another prompt than the one used later; use another template with model.chat_template."
            )
        prompts.append(prompt)
        completions.append(full[len(prompt) :])
        talks.append(tuple(turns))
    return prompts, completions, talks


def _ended(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, chat: bool) -> np.ndarray:
    """The completion with one end-of-sequence token behind it; what a template writes after its own end (a line break)
    is cut, since no generator would come so far."""
    ends = np.flatnonzero(ids == tokenizer.eos_token_id) if chat else np.zeros(0, dtype=np.int64)
    if len(ends):
        return ids[: ends[-1] + 1]
    return np.append(ids, np.int32(tokenizer.eos_token_id))  # type: ignore[arg-type]


def _sample(prompt_ids: np.ndarray, completion_ids: np.ndarray, text: str) -> Sample:
    token_ids = np.concatenate([prompt_ids, completion_ids]).astype(np.int32)
    return Sample(
        token_ids=token_ids,
        loss_mask=np.arange(len(token_ids)) >= len(prompt_ids),
        logprobs=np.zeros(len(token_ids), dtype=np.float32),
        weight_versions=np.full(len(token_ids), -1, dtype=np.int32),
        finish_reason="stop",
        seed=0,
        text=text,
    )
