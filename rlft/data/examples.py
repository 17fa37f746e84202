"""Rows to worked examples for supervised fine-tuning: pieces of text, some of them learned, as tokens with a mask.

Knows nothing about losses. Pieces are tokenised apart, so that what stands before an answer is, token by token, what a
generator would be given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rlft.config.data import DataConfig
from rlft.data.documents import document_examples
from rlft.data.fitting import fit_examples
from rlft.data.order import row_indices
from rlft.data.prompts import conversation, load_rows, render, require_template, tokenize, wants_chat
from rlft.data.reading import Rows
from rlft.data.shapes import DataShape, completion_text, detect_shape, last_assistant_turn, prompt_text
from rlft.errors import UserError
from rlft.samples import Group, Prompt, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ONLY_THE_END = "Only the end of a turn could be learned there. Mend or delete that row."


@dataclass(frozen=True)
class ExampleSet:
    """Examples in the order of the file, each a group of one sample, and the order in which to use them."""

    examples: Sequence[Group]
    description: str  # one line for people: which columns, how many rows
    seed: int
    shuffle: bool
    documents: bool = False  # whole texts, without prompts

    def batch(self, step: int, num_examples: int) -> list[Group]:
        """The examples of one step (from 0): a pure function of seed and step, as in PromptSet.batch."""
        return self.take(step * num_examples, num_examples)

    def take(self, first: int, count: int) -> list[Group]:
        """`count` examples from place `first` of an endless order, as in PromptSet.take."""
        order = row_indices(len(self.examples), first, count, seed=self.seed, shuffle=self.shuffle)
        return [self.examples[i] for i in order]

    def repeats(self, count: int) -> bool:
        """Whether some of the first `count` examples of that order are there twice."""
        return count > len(self)

    def __len__(self) -> int:
        """Examples of an epoch."""
        return len(self.examples)


class Piece(NamedTuple):
    """A part of an example's text."""

    text: str
    is_answer: bool


class Talk(NamedTuple):
    """An example before it is tokenised: what is asked, then answers and what stands between them."""

    pieces: list[Piece]  # the first is the prompt, the last an answer
    messages: tuple[Mapping[str, str], ...] | None  # the prompt's, where the data is chat


def load_examples(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int,
    seed: int,
    end: AbstractSet[int] = frozenset(),
    rows: Iterable[Any] | None = None,
    path: str | None = None,
) -> ExampleSet:
    """Read, render and tokenise the examples of `rows`, else of `path`, else of `data.path`.

    The mask is True exactly on the answers that `data.train_on` chooses and the token that ends each: the template's
    own where it is the tokenizer's end of a sequence or one of `end` (by which the model ends a turn), else the
    tokenizer's, put behind the last. Raises UserError for data that cannot be used.
    """
    read = load_rows(data, rows, path)
    shape = detect_shape(
        read,
        prompt_column=data.prompt_column,
        completion_column=data.completion_column,
        document_column=data.document_column,
        need_completion=True,
    )
    if shape.kind == "document":
        examples, note = document_examples(read, shape, data, tokenizer, window)
        return ExampleSet(examples, f"{read.source}: {shape.describe()}{note}", seed, data.shuffle, documents=True)
    examples, note = fit_examples(worked_examples(read, shape, data, tokenizer, end), tokenizer, window, data.too_long)
    return ExampleSet(examples, f"{read.source}: {shape.describe()}{note}", seed, data.shuffle)


def worked_examples(
    read: Rows, shape: DataShape, data: DataConfig, tokenizer: PreTrainedTokenizerBase, end: AbstractSet[int],
    refuse_empty: bool = True,
) -> list[Group]:  # fmt: skip
    """One example for each row, however long. See load_examples; for rows that are no documents. A completion that is
    empty teaches nothing and is refused; one that is only judged may be."""
    chat = wants_chat(data, shape)
    if chat:
        require_template(tokenizer)
    located = list(zip(read.rows, read.places, strict=True))
    talks = [
        _chat(row, place, shape, data, tokenizer, refuse_empty) if chat else _plain(row, place, shape, refuse_empty)
        for row, place in located
    ]
    ends = {int(i) for i in [*end, tokenizer.eos_token_id]} if chat else set[int]()  # text may say what it likes
    examples = []
    for (row, place), talk, ids in zip(located, talks, _tokenized(talks, tokenizer, read.places, chat), strict=True):
        if not len(ids[0]):
            raise UserError(f"{place}: the prompt in column {shape.prompt_column!r} is empty. Mend or delete that row.")
        prompt = Prompt(id=place, token_ids=ids[0], text=talk.pieces[0].text, messages=talk.messages, columns=row)
        token_ids, mask = _joined(talk.pieces, ids, ends, int(tokenizer.eos_token_id))  # type: ignore[arg-type]
        if data.train_on == "everything":
            mask = np.arange(len(token_ids)) > 0  # nothing says what the first should be
        text = tokenizer.decode(token_ids[len(ids[0]) :], skip_special_tokens=True) if chat else talk.pieces[1].text
        examples.append(Group(prompt, (Sample.given(token_ids, mask, str(text)),)))
    return examples


def answer_of(row: Mapping[str, Any], place: str, shape: DataShape) -> str:
    """The completion, or the answer that ends the conversation."""
    from_talk = shape.completion_column == shape.prompt_column
    return last_assistant_turn(row, place, shape) if from_talk else completion_text(row, place, shape)


def is_empty(answer: str, chat: bool) -> bool:
    """Whether there is nothing to learn of it but its end. Templates take blanks away."""
    return not (answer.strip() if chat else answer)


def _plain(row: Mapping[str, Any], place: str, shape: DataShape, refuse_empty: bool) -> Talk:
    """Prompt and completion as they are."""
    prompt, answer = prompt_text(row, place, shape), completion_text(row, place, shape)
    if refuse_empty and is_empty(answer, chat=False):
        raise UserError(f"{place}: the completion in column {shape.completion_column!r} is empty. {ONLY_THE_END}")
    return Talk([Piece(prompt, False), Piece(answer, True)], None)


def _chat(
    row: Mapping[str, Any], place: str, shape: DataShape, data: DataConfig, tokenizer: PreTrainedTokenizerBase,
    refuse_empty: bool,
) -> Talk:  # fmt: skip
    """The conversation as the template renders it, cut where the assistant begins and ends to speak. A turn of the
    assistant that opens it answers nothing and is never learned as an answer."""
    turns = [*conversation(row, place, shape, data), {"role": "assistant", "content": answer_of(row, place, shape)}]
    numbers = [i for i, turn in enumerate(turns) if i and turn["role"] == "assistant"]
    if data.train_on == "last":
        numbers = numbers[-1:]
    empty = next((i for i in numbers if is_empty(turns[i]["content"], chat=True)), None)
    if refuse_empty and empty is not None:
        which = "completion" if empty == len(turns) - 1 else f"answer in message {empty + 1}"
        raise UserError(f"{place}: the {which} in column {shape.completion_column!r} is empty. {ONLY_THE_END}")
    whole = render(tokenizer, turns, place, answer=True)
    pieces, at = list[Piece](), 0
    for i in numbers:
        before, behind = render(tokenizer, turns[:i], place), render(tokenizer, turns[: i + 1], place, answer=True)
        _check_begins(whole, before, i, turns, place)
        _check_begins(whole, behind, i, turns, place)
        pieces += [Piece(whole[at : len(before)], False), Piece(whole[len(before) : len(behind)], True)]
        at = len(behind)
    return Talk(pieces, tuple(turns[: numbers[0]]))


def _check_begins(whole: str, part: str, number: int, turns: Sequence[Any], place: str) -> None:
    if whole.startswith(part):
        return
    more = " Some templates take the reasoning out of earlier answers: set data.train_on to last."
    raise UserError(
        f"{place}: the chat template renders the whole conversation so that it does not begin with what it renders up "
        f"to message {number + 1}: expected {part[-60:]!r} there. Training on it would teach another prompt than the "
        f"one used later.{more if number < len(turns) - 1 else ''} Or use another template with model.chat_template."
    )


def _tokenized(
    talks: Sequence[Talk], tokenizer: PreTrainedTokenizerBase, places: Sequence[str], chat: bool
) -> list[list[np.ndarray]]:
    """int32 token ids of each piece of each example."""
    firsts = tokenize(tokenizer, [talk.pieces[0].text for talk in talks], special=not chat, places=places)
    later = [(piece.text, place) for talk, place in zip(talks, places, strict=True) for piece in talk.pieces[1:]]
    texts, whose = [text for text, _ in later], [place for _, place in later]
    rest = iter(tokenize(tokenizer, texts, special=False, places=whose))
    return [[first, *(next(rest) for _ in talk.pieces[1:])] for first, talk in zip(firsts, talks, strict=True)]


def _joined(
    pieces: Sequence[Piece], ids: Sequence[np.ndarray], ends: AbstractSet[int], eos: int
) -> tuple[np.ndarray, np.ndarray]:
    """int32 [T] token ids and bool [T] mask: answers up to the token that ends them. What a template writes behind it
    (a line break) is context for the next turn; behind the last, where no generator would come, it is cut."""
    tokens, masks = list[np.ndarray](), list[np.ndarray]()
    for number, (piece, part) in enumerate(zip(pieces, ids, strict=True)):
        is_last = number == len(pieces) - 1
        found = np.flatnonzero(np.isin(part, list(ends)))
        stop = found[-1] + 1 if len(found) else len(part)
        if piece.is_answer and is_last:
            part = part[:stop] if len(found) else np.append(part, np.int32(eos))
            stop = len(part)
        tokens.append(part)
        masks.append((np.arange(len(part)) < stop) & piece.is_answer)
    return np.concatenate(tokens).astype(np.int32), np.concatenate(masks)
