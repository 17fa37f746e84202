"""Log-probs of given tokens: what scorers do all the time and learners now and then.

Knows nothing about DeepSpeed or Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from rlft.batch import make_pack, plan_micro_batches, unpack
from rlft.config.model import ModelConfig
from rlft.models.load import load_model
from rlft.models.policy import Policy, TokenScores
from rlft.samples import Group, Prompt, Sample

EMPTY = Group(  # what a rank without work of its own runs, so that it keeps step with the others
    Prompt("empty", np.zeros(1, dtype=np.int32), "", None, {}),
    (
        Sample(
            token_ids=np.zeros(2, dtype=np.int32),
            loss_mask=np.array([False, True]),
            logprobs=np.zeros(2, dtype=np.float32),
            weight_versions=np.full(2, -1, dtype=np.int32),
            finish_reason="stop",
            seed=0,
            text="",
        ),
    ),
)


def score_micro_batches(
    forward: Callable[..., TokenScores],
    micro_batches: Sequence[Sequence[Group]],
    temperature: float,
    device: torch.device,
) -> list[list[list[np.ndarray]]]:
    """Log-probs of trained tokens, [micro-batch][group][sample] -> f32 [T], 0 elsewhere."""
    result = []
    for groups in micro_batches:
        scores = forward(make_pack(groups or [EMPTY], device=device), temperature)
        result.append(unpack(groups, scores.logprobs.float().cpu().numpy()))
    return result


def in_order(
    groups: Sequence[Group], plan: Sequence[Sequence[Sequence[Group]]], scores: Sequence[list[list[list[np.ndarray]]]]
) -> list[list[np.ndarray]]:
    """Bring scores that came back by rank and micro-batch into the order of `groups`."""
    by_sample = {
        id(sample): array
        for rank_plan, rank_scores in zip(plan, scores, strict=True)
        for pieces, arrays in zip(rank_plan, rank_scores, strict=True)
        for piece, piece_arrays in zip(pieces, arrays, strict=True)
        for sample, array in zip(piece.samples, piece_arrays, strict=True)
    }
    return [[by_sample[id(sample)] for sample in group.samples] for group in groups]


class ReferenceScorer:
    """The frozen model that training started from. See rlft.roles.Scorer."""

    def __init__(
        self, model: ModelConfig, temperature: float, max_tokens: int, chunk: int, device: str = "cpu"
    ) -> None:
        """`max_tokens`: token budget of a forward pass; `chunk`: tokens whose logits are made at a time."""
        base = model.model_copy(update={"adapter": None})
        self._policy = Policy(load_model(base, device), chunk).eval()
        self._temperature, self._max_tokens = temperature, max_tokens
        self._device = torch.device(device)

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """See rlft.roles.Scorer."""
        with torch.inference_mode():
            plan = plan_micro_batches(groups, 1, self._max_tokens)
            scores = score_micro_batches(self._policy, plan[0], self._temperature, self._device)
        return in_order(groups, plan, [scores])
