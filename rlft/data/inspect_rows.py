"""What one row of a data file comes to, or why a run would refuse it. For inspection (inspect.py).

With a tokenizer it asks the loaders themselves (prompts.py, examples.py, documents.py, steps.py), one row at a
time, so that what is said here is what a run does. Without one it looks at the texts alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from rlft.config.data import DataConfig
from rlft.data.documents import check_settings, document_examples
from rlft.data.examples import ONLY_THE_END, answer_of, is_empty, worked_examples
from rlft.data.inspect_pairs import PairPlan, answered_rows, detect_pairs, pair_plan
from rlft.data.pairs import empty_answers
from rlft.data.prompts import check_text, conversation, make_prompts, require_template, wants_chat
from rlft.data.reading import Rows
from rlft.data.shapes import CONVERSATION_COLUMNS, DataShape, completion_text, detect_shape, prompt_text
from rlft.data.steps import (
    SEPARATOR_INSIDE,
    check_step_columns,
    describe_steps,
    has_separator_inside,
    step_examples,
    steps_of,
)
from rlft.errors import UserError
from rlft.samples import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Purpose = Literal["sft", "prompts", "pairs", "labels", "steps"]
Effect = Literal["refused", "dropped", "cut"]


@dataclass(frozen=True)
class ModelLimits:
    """What a row is held to."""

    tokenizer: PreTrainedTokenizerBase
    window: int  # tokens of prompt and completion together
    max_new_tokens: int = 0  # for prompts
    end: AbstractSet[int] = field(default_factory=frozenset)  # tokens by which the model ends a turn
    tools: list[dict[str, Any]] | None = None  # that an environment shows in prompts


class Problem(NamedTuple):
    """Why a row, or all of them, would not be used as it stands."""

    reason: str  # in two or three words, by which problems are counted
    place: str
    text: str
    effect: Effect = "refused"


class Refused(Exception):
    """Carries a Problem."""

    def __init__(self, reason: str, place: str, text: str, effect: Effect = "refused") -> None:
        super().__init__(text)
        self.problem = Problem(reason, place, text.removeprefix(f"{place}: "), effect)


class Segment(NamedTuple):
    """A run of text that is learned, or not."""

    text: str
    learned: bool
    special: bool = False  # a token that stands for no text


class Part(NamedTuple):
    """One sequence that a row comes to."""

    label: str  # of pairs: "chosen", "rejected", "good", "bad"; else ""
    segments: tuple[Segment, ...]
    lengths: Mapping[str, int]  # "prompt", "completion", ...: tokens, or characters without a tokenizer


class Look(NamedTuple):
    """A row that can be used."""

    prompt: bytes  # a digest: two rows with the same have the same prompt
    parts: tuple[Part, ...]
    cut: Problem | None  # what is done to it so that it fits


class Plan(NamedTuple):
    """How rows are understood."""

    purpose: Purpose
    shape: DataShape  # of pairs and labels: of what they are taken apart into
    described: str  # one line for people
    pairs: PairPlan | None = None


def make_plan(read: Rows, data: DataConfig, purpose: Purpose | None, model: ModelLimits | None) -> Plan:
    """How a run with this purpose (None: the likeliest) understands the rows. Raises UserError where it would refuse
    all of them."""
    purpose = purpose or detect_pairs(read, read.columns(), data) or _likeliest(read, data)
    pairs = pair_plan(read, purpose, data) if purpose in ("pairs", "labels") else None
    if purpose == "steps":
        check_step_columns(read, data)
    shape = _shape(read, data, purpose) if pairs is None else pairs.shape
    if shape.kind != "document" and wants_chat(data, shape) and model is not None:
        require_template(model.tokenizer)
    if shape.kind == "document":
        check_settings(data)
    described = describe_steps(read, data) if purpose == "steps" else shape.describe()
    return Plan(purpose, shape, described if pairs is None else pairs.described, pairs)


def _shape(read: Rows, data: DataConfig, purpose: Purpose) -> DataShape:
    sft = purpose == "sft"
    return detect_shape(
        read,
        prompt_column=data.prompt_column,
        completion_column=data.completion_column if sft else None,
        document_column=data.document_column if sft else None,
        need_completion=sft,
    )


def _likeliest(read: Rows, data: DataConfig) -> Purpose:
    """`sft` where the rows have something to learn, else `prompts`."""
    try:
        shape = _shape(read, data, "sft")
    except UserError:
        return "prompts"
    if shape.completion_column in CONVERSATION_COLUMNS:
        first = next((row for row in read.rows if row.get(shape.prompt_column)), None)
        try:
            answer_of(first or {}, "", shape)
        except UserError:
            return "prompts"
    return "sft"


def look(
    row: dict[str, Any], place: str, plan: Plan, data: DataConfig, model: ModelLimits | None, show: bool = True
) -> Look:
    """What a row comes to; without `show` the segments are left out. Raises Refused."""
    if plan.purpose == "steps":
        _check_steps(row, place, data)
    if plan.pairs is None:
        prompt, part, cut = _part("", row, place, plan.shape, plan.purpose, data, model, show)
        return Look(digest(prompt), (part,), cut)
    try:
        answers = answered_rows(row, place, plan.pairs, data)
    except UserError as error:
        raise Refused("wrong label" if plan.purpose == "labels" else "not a pair", place, str(error)) from None
    _check_not_empty([answer.row for answer in answers], place, plan, data)
    if len(answers) == 2 and answers[0].row == answers[1].row:
        text = "the chosen and the rejected completion are the same, which teaches nothing. Mend or delete that row."
        raise Refused("chosen == rejected", place, text, _of_unusable(data))
    data = data.model_copy(update={"train_on": "last"})  # as the loaders do
    found = [_part(label, part, place, shape, "sft", data, model, show) for label, part, shape in answers]
    return Look(digest(found[0][0]), tuple(part for _, part, _ in found), next((cut for *_, cut in found if cut), None))


def _of_unusable(data: DataConfig) -> Effect:
    return "dropped" if data.unusable == "drop" else "refused"


def _check_not_empty(rows: Sequence[dict[str, Any]], place: str, plan: Plan, data: DataConfig) -> None:
    """Raises Refused for an answer that is empty, in a pair or with a label."""
    of_pairs = plan.purpose == "pairs"
    columns = (data.chosen_column, data.rejected_column) if of_pairs else (str(plan.shape.completion_column),)
    try:
        empty = empty_answers(list(zip(columns, rows, strict=True)), place, plan.shape, data)
    except UserError:
        return  # no text: said in its turn
    if empty:
        text = f"the completion in column {' and '.join(map(repr, empty))} is empty. {ONLY_THE_END}"
        raise Refused("empty completion", place, text, _of_unusable(data))


def _check_steps(row: dict[str, Any], place: str, data: DataConfig) -> None:
    """Raises Refused for what is no list of steps with labels, and for a separator inside of one."""
    try:
        inside = has_separator_inside(row, place, data)
    except UserError as error:
        raise Refused("not steps", place, str(error)) from None
    if inside:
        text = f"{SEPARATOR_INSIDE}, where completions are split in use. Mend it, or set data.step_separator."
        raise Refused("separator inside", place, text, _of_unusable(data))


def digest(text: str) -> bytes:
    """Of a text that need not be kept."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _part(
    label: str, row: dict[str, Any], place: str, shape: DataShape, purpose: Purpose, data: DataConfig,
    model: ModelLimits | None, show: bool,
) -> tuple[str, Part, Problem | None]:  # fmt: skip
    prompt, pieces, num_before = _texts(row, place, shape, purpose, data, model is None)
    names = ("document",) if shape.kind == "document" else ("prompt", label or "completion")
    names = names[:1] if purpose == "prompts" else names
    if model is None:
        sizes = [sum(len(piece.text) for piece in part) for part in (pieces[:num_before], pieces[num_before:])]
        sizes = [sum(sizes)] if shape.kind == "document" else sizes
        return prompt, Part(label, tuple(pieces) if show else (), dict(zip(names, sizes, strict=False))), None
    try:
        sample, num_prompt = _tokens(row, place, shape, purpose, data, model)
    except UserError as error:
        reason = "empty prompt" if not prompt else "not renderable"
        raise Refused(reason, place, str(error)) from None
    total = len(sample.token_ids)
    sizes = (total,) if shape.kind == "document" else (num_prompt, total - num_prompt)
    part = Part(label, _segments(sample, model.tokenizer) if show else (), dict(zip(names, sizes, strict=False)))
    return prompt, part, _fit(total, num_prompt, place, shape, purpose, data, model)


def _fit(
    total: int, num_prompt: int, place: str, shape: DataShape, purpose: Purpose, data: DataConfig, model: ModelLimits
) -> Problem | None:
    """None for what fits the window; what will be cut; else raises Refused."""
    if shape.kind == "document":
        if total <= model.window:
            return None
        return Problem("longer than the window", place, f"{total} tokens, cut into pieces of {model.window}", "cut")
    room = model.window - (model.max_new_tokens if purpose == "prompts" else 0)
    if total <= room:
        return None
    limit = f"window {model.window} - max_new_tokens {model.max_new_tokens}" if room < model.window else "the window"
    text = f"{total} tokens, and there is room for {max(room, 0)} ({limit})"
    if data.too_long != "truncate" or purpose == "prompts":
        raise Refused("too long", place, text, "dropped" if data.too_long == "drop" else "refused")
    if num_prompt >= model.window:
        raise Refused("prompt too long", place, f"the prompt alone has {num_prompt} tokens; {text}")
    return Problem("too long", place, text, "cut")


def _texts(
    row: dict[str, Any], place: str, shape: DataShape, purpose: Purpose, data: DataConfig, no_tokenizer: bool
) -> tuple[str, list[Segment], int]:
    """The prompt, the texts of the row as they stand there, and how many of them come before the first answer. Raises
    Refused for a wrong type and for emptiness."""
    everything = data.train_on == "everything"
    try:
        if shape.kind == "document":
            text = prompt_text(row, place, shape)
            _check_text([text], place)
            if not text:
                column = shape.prompt_column
                raise Refused(
                    "empty document", place, f"the text in column {column!r} is empty. Mend or delete that row."
                )
            return text, [Segment(text, True)], 0
        if shape.kind == "text" and not wants_chat(data, shape):
            prompt = prompt_text(row, place, shape)
            pieces = [Segment(prompt, everything and purpose == "sft")]
            answers = [completion_text(row, place, shape)] if purpose == "sft" else []
            pieces, num_before = [*pieces, *(Segment(answer, True) for answer in answers)], 1
        else:
            prompt, pieces, answers, num_before = _talk(row, place, shape, purpose, data)
    except UserError as error:
        missing = [c for c in (shape.prompt_column, shape.completion_column) if c and row.get(c) is None]
        raise Refused("missing value" if missing else "wrong type", place, str(error)) from None
    _check_text([piece.text for piece in pieces], place)
    if not prompt and no_tokenizer:
        column = shape.prompt_column
        raise Refused("empty prompt", place, f"the prompt in column {column!r} is empty. Mend or delete that row.")
    chat = wants_chat(data, shape)
    if any(is_empty(answer, chat) for answer in answers):
        column = shape.completion_column
        raise Refused("empty completion", place, f"the completion in column {column!r} is empty. {ONLY_THE_END}")
    return prompt, [*pieces, *_step_pieces(row, place, data)] if purpose == "steps" else pieces, num_before


def _step_pieces(row: dict[str, Any], place: str, data: DataConfig) -> list[Segment]:
    pieces = [
        Segment(text, learned)
        for step in steps_of(row, place, data)
        for text, learned in ((data.step_separator, False), (step, True))
    ][1:]
    _check_text([piece.text for piece in pieces], place)
    return pieces


def _check_text(texts: Sequence[str], place: str) -> None:
    """Raises Refused for half a surrogate pair, as `tokenize` does."""
    try:
        check_text("".join(texts), place)
    except UserError as error:
        raise Refused("not text", place, str(error)) from None


def _talk(
    row: dict[str, Any], place: str, shape: DataShape, purpose: Purpose, data: DataConfig
) -> tuple[str, list[Segment], list[str], int]:
    """Of a conversation: the prompt, what is said, the answers that are learned, and where the first stands."""
    turns = conversation(row, place, shape, data)
    prompt = json.dumps(turns, ensure_ascii=False)
    if purpose == "sft":
        turns = [*turns, {"role": "assistant", "content": answer_of(row, place, shape)}]
    spoken = [i for i, turn in enumerate(turns) if i and turn["role"] == "assistant"] if purpose == "sft" else []
    learned = spoken[-1:] if data.train_on == "last" else spoken
    pieces = list[Segment]()
    for i, turn in enumerate(turns):
        pieces.append(Segment(f"{turn['role']}: ", False))
        pieces.append(Segment(turn["content"], i in learned or (bool(spoken) and data.train_on == "everything")))
        pieces.append(Segment("\n", False))
    num_before = 3 * learned[0] + 1 if learned else len(pieces)
    return prompt, pieces[:-1], [turns[i]["content"] for i in learned], num_before


def _tokens(
    row: dict[str, Any], place: str, shape: DataShape, purpose: Purpose, data: DataConfig, model: ModelLimits
) -> tuple[Sample, int]:
    """The whole sequence as a run has it, and how much of it is the prompt."""
    read = Rows([row], [place], place)
    if purpose == "prompts":
        ids = make_prompts(read, shape, data, model.tokenizer, model.tools)[0].token_ids
        return Sample.given(ids, np.zeros(len(ids), dtype=bool), ""), len(ids)
    if purpose == "steps":
        group = step_examples(read, data, model.tokenizer)[0]
    elif shape.kind == "document":
        group = document_examples(read, shape, data, model.tokenizer, window=1 << 40)[0][0]
    else:
        group = worked_examples(read, shape, data, model.tokenizer, model.end)[0]
    return group.samples[0], len(group.prompt.token_ids)


def _segments(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> tuple[Segment, ...]:
    """The sequence in runs of tokens that are learned or not, special tokens apart."""
    special = set(tokenizer.all_special_ids)
    tokens = zip(sample.token_ids.tolist(), sample.loss_mask.tolist(), strict=True)
    runs = groupby(tokens, key=lambda token: (token[1], token[0] in special))
    return tuple(
        Segment(str(tokenizer.decode([i for i, _ in run], skip_special_tokens=False)), learned, is_special)
        for (learned, is_special), run in runs
    )
