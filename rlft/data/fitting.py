"""Worked examples and the model's window: what becomes of those that are longer.

Knows nothing about how examples are made; `window` is just a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rlft.data.prompts import check_fit
from rlft.errors import UserError
from rlft.samples import Group, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fit_examples(
    examples: Sequence[Group], tokenizer: PreTrainedTokenizerBase, window: int, too_long: str
) -> tuple[list[Group], str]:
    """The examples of at most `window` tokens, and what to say of the others in the description.

    `too_long` is data.too_long: with `drop` the others are left out, with `truncate` their completions are cut where
    the window ends. Raises UserError when there are others and neither is allowed, when none would be left, and when
    cutting would leave nothing to learn.
    """
    longer = [(group.prompt.id, num_tokens(group)) for group in examples if num_tokens(group) > window]
    if too_long != "truncate":
        note = check_fit(
            longer, len(examples), window, drop=too_long == "drop", limit="the model's window", examples=True
        )
        return [group for group in examples if num_tokens(group) <= window], note
    cut = [cut_example(group, tokenizer, window) for group in examples]
    return cut, f"; {len(longer)} cut at the window of {window} tokens" if longer else ""


def num_tokens(group: Group) -> int:
    """Tokens of an example, prompt and completion; of several completions, with the longest."""
    return max(len(sample.token_ids) for sample in group.samples)


def cut_example(group: Group, tokenizer: PreTrainedTokenizerBase, window: int) -> Group:
    """The example as it is when it fits; else its first `window` tokens, without an end. Raises UserError when nothing
    that is learned is among those."""
    return group.with_samples([_cut(sample, group, tokenizer, window) for sample in group.samples])


def _cut(sample: Sample, group: Group, tokenizer: PreTrainedTokenizerBase, window: int) -> Sample:
    if len(sample.token_ids) <= window:
        return sample
    ids, mask, size = sample.token_ids[:window], sample.loss_mask[:window], len(group.prompt.token_ids)
    if not mask.any() or size >= window:
        raise UserError(
            f"{group.prompt.id}: the prompt alone has {size} tokens, so nothing of the completion is left in the "
            f"window of {window} tokens. Delete that row, set data.too_long to drop, or use a model with a larger "
            "window (model.tiny.max_length for tiny models)."
        )
    text = str(tokenizer.decode(ids[size:], skip_special_tokens=True))
    return replace(
        sample,
        token_ids=ids,
        loss_mask=mask,
        logprobs=sample.logprobs[:window],
        weight_versions=sample.weight_versions[:window],
        finish_reason="length",
        text=text,
        advantages=None if sample.advantages is None else sample.advantages[:window],
        returns=None if sample.returns is None else sample.returns[:window],
    )
