"""Policy losses from a user's file: `algorithm.type: my_file.py:my_loss`.

    def my_loss(logprobs, old_logprobs, advantages):
        return -torch.exp(logprobs - old_logprobs) * advantages

A function names what it wants: any of logprobs, old_logprobs, advantages, sample_of, sampler_logprobs, ref_logprobs
(None without a reference), entropy; tensors [M], one entry per trained token. It returns the loss of each token, [M].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlft.algorithms.policy import TokenLoss
from rlft.errors import UserError
from rlft.lookup import Kind, find

OFFERED = ("logprobs", "old_logprobs", "advantages", "sample_of", "sampler_logprobs", "ref_logprobs", "entropy")
_KIND = Kind("algorithm", "policy loss", "function", {})


def load_loss(name: str, folder: str | None = None) -> Callable[[Any, Any, Any], TokenLoss]:
    """The function that `name` means, as the table calls losses. Raises UserError when it is not there or asks for what
    there is not."""
    function = find(name, str(Path.cwd()) if folder is None else folder, _KIND)
    if not callable(function):
        raise UserError(f"algorithm: {name} is a {type(function).__name__}, not a function.")
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    wanted = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in parameters if p.name in wanted and p.name not in OFFERED and p.default is p.empty]
    if missing:
        raise UserError(
            f"algorithm: {name} asks for {', '.join(missing)}. A policy loss is offered {', '.join(OFFERED)}."
        )

    def loss(tokens: Any, scores: Any, pack: Any) -> TokenLoss:
        offered = {
            **tokens._asdict(), "sampler_logprobs": pack.sampler_logprobs, "ref_logprobs": pack.ref_logprobs,
            "entropy": scores.entropy,
        }  # fmt: skip
        given = function(**(offered if takes_all else {key: offered[key] for key in wanted if key in offered}))
        if isinstance(given, TokenLoss):
            return given
        if not isinstance(given, Tensor) or given.shape != tokens.logprobs.shape:
            found = tuple(given.shape) if isinstance(given, Tensor) else f"a {type(given).__name__}"
            raise UserError(
                f"algorithm: {name} returned {found}. Expected a tensor {tuple(tokens.logprobs.shape)}: the loss of "
                "each token, not their sum or mean."
            )
        return TokenLoss(given, torch.zeros_like(given, dtype=torch.bool))

    return loss
