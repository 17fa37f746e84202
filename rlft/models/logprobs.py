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


def _score(
    head: Head, hidden: Tensor, targets: Tensor, temperature: float, also: Tensor | None, also_temperature: float,
    entropy_gradient: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    logits = head(hidden)
    logprobs = log_softmax(logits, temperature)
    chosen = logprobs.gather(-1, targets[:, None]).squeeze(-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    if also is None:
        return chosen, entropy
    there = logprobs if also_temperature == temperature else log_softmax(logits, also_temperature)
    return chosen, entropy, there.gather(-1, also)


def token_logprobs(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    chunk: int = 2048,
    also: Tensor | None = None,
    entropy_gradient: bool = False,
    also_temperature: float | None = None,
) -> tuple[Tensor, ...]:
    """Log-prob of each target and entropy of its distribution.

    Args:
        head: the model's map from hidden states to logits.
        hidden: [M, hidden], the state that predicts each target.
        targets: int64 [M].
        temperature: the sampling temperature; logits are divided by it.
        chunk: targets per piece.
        also: int64 [M, K], further tokens in each target's place whose log-probs are wanted.
        entropy_gradient: whether the entropy is to be differentiable.
        also_temperature: of the log-probs of `also`; without it `temperature`.

    Returns:
        logprobs f32 [M], differentiable; entropy f32 [M] in nats; with `also` its log-probs f32 [M, K],
        differentiable.
    """
    pieces, there = [], temperature if also_temperature is None else also_temperature
    more = [None] * -(-len(targets) // chunk) if also is None else also.split(chunk)
    for h, t, a in zip(hidden.split(chunk), targets.split(chunk), more or [None], strict=True):
        if torch.is_grad_enabled() and len(targets) > chunk:
            pieces.append(checkpoint(_score, head, h, t, temperature, a, there, entropy_gradient, use_reentrant=False))
        else:
            pieces.append(_score(head, h, t, temperature, a, there, entropy_gradient))
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))
