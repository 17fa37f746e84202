"""How likely a model finds texts that it did not write: mean log-likelihood, perplexity and bits per byte.

Knows the model only as a Scorer (rlft.roles), and nothing about where the texts come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from rlft.errors import RunError
from rlft.roles import Metrics, Scorer
from rlft.samples import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def perplexity(scorer: Scorer, groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase) -> Metrics:
    """Over the tokens whose loss_mask is True, with L the sum of their log-probs (natural logarithm, temperature 1):

    eval/tokens: their number N. eval/nll: -L / N. eval/perplexity: exp(-L / N). eval/bits_per_byte: -L / ln 2 / bytes
    of the text that they spell, left out where they spell none; unlike the others it can be compared between
    tokenizers. eval/log_likelihood: the mean over examples (pieces of a long document count as one) of an example's
    sum. Raises RunError when the model gives something that is no log-prob.
    """
    sums = [float(array.astype(np.float64).sum()) for (array,) in scorer.logprobs(groups)]
    broken = [group.prompt.id for group, one in zip(groups, sums, strict=True) if not math.isfinite(one)]
    if broken:
        raise RunError(
            f"the log-probs of {len(broken)} of {len(groups)} examples are not finite, first of {broken[0]}: the "
            "model's weights are damaged, or too large for model.dtype"
        )
    num_tokens = sum(group.samples[0].num_trained for group in groups)
    texts = [list(pieces) for _, pieces in groupby(groups, key=lambda group: id(group.prompt.columns))]
    num_bytes = sum(count_bytes(pieces, tokenizer) for pieces in texts)
    total, nll = sum(sums), -sum(sums) / num_tokens
    metrics: Metrics = {
        "eval/examples": len(texts),
        "eval/tokens": num_tokens,
        "eval/nll": nll,
        "eval/perplexity": math.exp(nll) if nll < 700 else math.inf,
        "eval/log_likelihood": total / len(texts),
    }
    if num_bytes:
        metrics["eval/bits_per_byte"] = -total / math.log(2) / num_bytes
    return metrics


def count_bytes(pieces: Sequence[Group], tokenizer: PreTrainedTokenizerBase) -> int:
    """Bytes of UTF-8 that the trained tokens of one text spell, special tokens left out. `pieces`: the text's examples,
    each of which begins with the last token of the one before. Tokens that follow each other are decoded together, for
    a character may be several of them; one whose first token is not trained leaves a U+FFFD for each byte of its rest.
    """
    first, *later = [group.samples[0] for group in pieces]
    ids = np.concatenate([first.token_ids, *(sample.token_ids[1:] for sample in later)])
    mask = np.concatenate([first.loss_mask, *(sample.loss_mask[1:] for sample in later)])
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))  # where runs of True begin and end
    num_bytes = 0
    for begin, end in edges.reshape(-1, 2):
        text = str(tokenizer.decode(ids[begin:end], skip_special_tokens=True))
        num_bytes += len(text.encode()) - 2 * text.count("\ufffd")
    return num_bytes
