"""The one place that turns hidden states into log-probabilities.

Knows nothing about losses or engines. Logits are made for a chunk of tokens at a time and made again in the backward
pass, so that memory never holds tokens x vocabulary for a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]  # hidden [M, hidden] -> logits [M, V]


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of the distribution that is sampled at this temperature, [..., V]; in float32, or in float64
    where the logits are."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, -1)


def _score(head: Head, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs = log_softmax(head(hidden), temperature)
    chosen = logprobs.gather(-1, targets[:, None]).squeeze(-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return chosen, entropy


def token_logprobs(
    head: Head, hidden: Tensor, targets: Tensor, temperature: float = 1.0, chunk: int = 2048
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of its distribution.

    Args:
        head: the model's map from hidden states to logits.
        hidden: [M, hidden], the state that predicts each target.
        targets: int64 [M].
        temperature: the sampling temperature; logits are divided by it.
        chunk: targets per piece.

    Returns:
        logprobs f32 [M], differentiable; entropy f32 [M] in nats, not differentiable.
    """
    pieces = []
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled() and len(targets) > chunk:
            pieces.append(checkpoint(_score, head, h, t, temperature, use_reentrant=False))
        else:
            pieces.append(_score(head, h, t, temperature))
    logprobs, entropy = zip(*pieces, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)
