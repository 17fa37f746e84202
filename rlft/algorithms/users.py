"""Policy losses from a user's file: `algorithm.type: my_file.py:my_loss`.

    def my_loss(logprobs, old_logprobs, advantages):
        return -torch.exp(logprobs - old_logprobs) * advantages

A function names what it wants: any of logprobs, old_logprobs, advantages, sample_of, sampler_logprobs, ref_logprobs
(None without a reference), entropy; tensors [M], one entry per trained token. It returns the loss of each token, [M].
"""

from __future__ import annotations

import inspect
import traceback
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


def asks_for_entropy(name: str) -> bool:
    """Whether the function wants the entropy, which then has a gradient."""
    return "entropy" in _wanted(find(name, str(Path.cwd()), _KIND))


def _wanted(function: Any) -> list[str]:
    """Of what is offered, what a function takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return list(OFFERED)
    return [p.name for p in parameters if p.name in OFFERED]


def load_loss(name: str, folder: str | None = None) -> Callable[[Any, Any, Any, bool], TokenLoss]:
    """The function that `name` means, as the table calls losses: with tokens, scores, pack, and whether there is a
    reference. Raises UserError when it is not there, asks for what there is not, or does not return what it should."""
    function = find(name, str(Path.cwd()) if folder is None else folder, _KIND)
    if not callable(function):
        raise UserError(f"algorithm: {name} is a {type(function).__name__}, not a function.")
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters):
        raise UserError(f"algorithm: {name} has positional-only parameters. A policy loss is called with keywords.")
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in named if p.name not in OFFERED and p.default is p.empty]
    if missing:
        raise UserError(
            f"algorithm: {name} asks for {', '.join(missing)}. A policy loss is offered {', '.join(OFFERED)}."
        )
    wanted = _wanted(function)

    def loss(tokens: Any, scores: Any, pack: Any, has_reference: bool) -> TokenLoss:
        reference = pack.ref_logprobs
        if reference is None and has_reference:  # a rank without work of its own
            reference = tokens.logprobs.detach()
        offered = {
            **tokens._asdict(), "sampler_logprobs": pack.sampler_logprobs, "ref_logprobs": reference,
            "entropy": scores.entropy,
        }  # fmt: skip
        try:
            given = function(**{key: offered[key] for key in wanted})
        except Exception as error:  # the user's code
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"algorithm: {name} raised {type(error).__name__}: {error}, at {frame.filename}:{frame.lineno}"
            ) from error
        return _checked(name, given, tokens.logprobs)

    return loss


def _checked(name: str, given: Any, logprobs: Tensor) -> TokenLoss:
    """What a user's function returned, if it is what it should be."""
    per_token = given.per_token if isinstance(given, TokenLoss) else given
    if not isinstance(per_token, Tensor) or per_token.shape != logprobs.shape:
        found = tuple(per_token.shape) if isinstance(per_token, Tensor) else f"a {type(per_token).__name__}"
        raise UserError(
            f"algorithm: {name} returned {found}. Expected a tensor {tuple(logprobs.shape)}: the loss of each token, "
            "not their sum or mean."
        )
    if not per_token.is_floating_point() or (logprobs.requires_grad and not per_token.requires_grad):
        raise UserError(
            f"algorithm: {name} returned a {per_token.dtype} tensor that does not depend on the policy, so nothing can "
            "be learned from it. Compute it from logprobs (or entropy), without detach() or item() around them."
        )
    clipped = given.clipped if isinstance(given, TokenLoss) else torch.zeros_like(per_token, dtype=torch.bool)
    return TokenLoss(per_token, clipped)
