"""Drawing tokens so that a sample depends only on its seed, never on what is decoded beside it.

The random number for token t of a sample is a hash of the sample's seed and t; the token is read off the cumulative
distribution. Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlft.models.logprobs import log_softmax


def uniforms(seeds: np.ndarray, start: int, count: int) -> np.ndarray:
    """Random numbers in (0, 1) for tokens start .. start + count of each sample (splitmix64, Steele et al. 2014).

    Args:
        seeds: uint64 [B].

    Returns:
        float64 [B, count].
    """
    at = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = seeds[:, None] + at * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def draw(logits: Tensor, uniform: Tensor, temperature: float, banned: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    Args:
        logits: [B, V].
        uniform: float64 [B].
        temperature: 0 takes the most likely token.
        banned: int64 ids that may not be drawn (the end before min_new_tokens). They keep their share in the log-probs,
            which are the policy's, so that sampler and learner speak of the same distribution.

    Returns:
        tokens int64 [B]; their log-probs under softmax(logits / temperature), f32 [B] (temperature 0: as at 1).
    """
    logprobs = log_softmax(logits, temperature or 1.0)
    allowed = logprobs if banned is None else logprobs.index_fill(-1, banned, float("-inf"))
    if temperature == 0:
        tokens = allowed.argmax(-1)
    else:
        cumulative = allowed.double().exp_().cumsum_(-1)
        threshold = uniform[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)
