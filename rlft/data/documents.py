"""Whole texts to worked examples, for continued pretraining: everything is learned.

Knows nothing about losses or about how examples are packed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlft.config.data import DataConfig
from rlft.data.prompts import tokenize
from rlft.data.reading import Rows
from rlft.data.shapes import DataShape, prompt_text
from rlft.errors import UserError
from rlft.samples import Group, Prompt, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def document_examples(
    read: Rows, shape: DataShape, data: DataConfig, tokenizer: PreTrainedTokenizerBase, window: int
) -> tuple[list[Group], str]:
    """Examples of at most `window` tokens, and what to add to the description when texts were cut for that.

    A text gets what the tokenizer puts in front (BOS) and the end of a sequence behind. Its pieces overlap by one
    token, which the later one only sees: so every token but a text's first is learned once. Raises UserError for rows
    without text and for settings that mean nothing here.
    """
    check_settings(data)
    texts = [prompt_text(row, place, shape) for row, place in zip(read.rows, read.places, strict=True)]
    end = np.array([tokenizer.eos_token_id], dtype=np.int32)
    examples, num_cut = list[Group](), 0
    for row, place, text, ids in zip(
        read.rows, read.places, texts, tokenize(tokenizer, texts, special=True, places=read.places), strict=True
    ):
        if not text:
            raise UserError(f"{place}: the text in column {shape.prompt_column!r} is empty. Mend or delete that row.")
        pieces = _cut(np.concatenate([ids, end]), window)
        num_cut += len(pieces) > 1
        for number, piece in enumerate(pieces):
            name = place if len(pieces) == 1 else f"{place}#{number + 1}"
            prompt = Prompt(id=name, token_ids=piece[:1], text="", messages=None, columns=row)
            mask = np.arange(len(piece)) > 0
            sample = Sample.given(piece, mask, str(tokenizer.decode(piece, skip_special_tokens=True)))
            examples.append(Group(prompt, (sample,)))
    note = f"; {num_cut} longer than the window, {len(examples)} pieces of at most {window} tokens" if num_cut else ""
    return examples, note


def _cut(ids: np.ndarray, window: int) -> list[np.ndarray]:
    """Pieces of at most `window` tokens, each of which begins with the last token of the one before."""
    if window < 2:
        raise UserError(
            f"The model's window of {window} tokens has no room to learn from: a token needs one before it."
        )
    return [ids[at : at + window] for at in range(0, max(1, len(ids) - 1), window - 1)]


def check_settings(data: DataConfig) -> None:
    """Raises UserError for settings that mean nothing for documents."""
    reasons = {
        "prompt_column": "which have no prompt", "completion_column": "which have no completion",
        "system_prompt": "which no chat template renders", "apply_chat_template": "which no chat template renders",
        "too_long": "which are cut where they are too long", "train_on": "of which everything is learned",
    }  # fmt: skip
    for key, reason in reasons.items():
        if getattr(data, key) != DataConfig.model_fields[key].default:
            raise UserError(f"data.{key} has no effect: the data are whole documents, {reason}. Take it out.")
