"""Log-probs of given tokens: what scorers do all the time and learners now and then.

Knows nothing about DeepSpeed or Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlft.batch import Pack, make_pack, plan_micro_batches, unpack
from rlft.config.model import ModelConfig
from rlft.engines.weights import WeightUpdate, load_weights, unpacked
from rlft.models.adapters.lora_experts import NO_WORK
from rlft.models.load import load_model
from rlft.models.policy import Policy
from rlft.samples import Group, Prompt, Sample, TopTokens

_REFERENCE = "reference.safetensors"  # in a checkpoint, where the reference does not stay what it was
EMPTY = Group(  # what a rank without work of its own runs, so that it keeps step with the others
    Prompt("empty", np.zeros(1, dtype=np.int32), "", None, {}, source=NO_WORK),
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
    forward: Callable[[Pack], torch.Tensor], micro_batches: Sequence[Sequence[Group]], device: torch.device
) -> list[list[list[np.ndarray]]]:
    """What `forward` gives for each target of a pack, [M, ...], by sample: [micro-batch][group][sample] -> f32
    [T, ...], 0 where nothing is trained."""
    result = []
    for groups in micro_batches:
        scores = forward(make_pack(groups or [EMPTY], device=device))
        result.append(unpack(groups, scores.cpu().numpy()))
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


class FrozenScorer:
    """A model that does not train: the policy that training started from, or a teacher. See rlft.roles.Teacher."""

    def __init__(
        self,
        model: ModelConfig | nn.Module,
        temperature: float,
        max_tokens: int,
        chunk: int,
        device: str = "cpu",
        width: int = 1 << 30,
    ) -> None:
        """`model`: what to load, without its adapter, or a model that is on `device` already. `max_tokens`: token
        budget of a forward pass; `chunk`: tokens whose logits are made at a time; `width`: tokens that the student has
        logits for."""
        self._width = width
        if isinstance(model, ModelConfig):
            model = load_model(model.model_copy(update={"adapter": None}), device)
        self._policy = Policy(model, chunk).eval()
        self._temperature, self._max_tokens = temperature, max_tokens
        self._device = torch.device(device)

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        """See rlft.roles.Scorer."""
        return self._scored(groups, lambda pack: self._policy(pack, self._temperature).logprobs)

    def top_tokens(self, groups: Sequence[Group], count: int) -> list[list[TopTokens]]:
        """See rlft.roles.Teacher."""

        def both(pack: Pack) -> torch.Tensor:  # ids are exact in float64, and travel as such for a moment
            ids, logprobs = self._policy.top_tokens(pack, self._temperature, count, self._width)
            return torch.stack([ids.double(), logprobs.double()], -1)

        return [
            [TopTokens(x[..., 0].astype(np.int32), x[..., 1].astype(np.float32), self._temperature) for x in row]
            for row in self._scored(groups, both)
        ]

    def _scored(self, groups: Sequence[Group], forward: Callable[[Pack], torch.Tensor]) -> list[list[np.ndarray]]:
        with torch.inference_mode():
            plan = plan_micro_batches(groups, 1, self._max_tokens)
            scores = score_micro_batches(forward, plan[0], self._device)
        return in_order(groups, plan, [scores])

    def load(self, update: WeightUpdate) -> None:
        """See rlft.roles.Scorer."""
        parameters = dict(self._policy.model.named_parameters())
        load_weights(update, unpacked(update), parameters, list(parameters), "reference")

    def save(self, folder: Path) -> None:
        """See rlft.roles.Scorer."""
        tensors = {name: p.detach().cpu().contiguous() for name, p in self._policy.model.named_parameters()}
        save_file(tensors, folder / _REFERENCE)

    def restore(self, folder: Path) -> None:
        """See rlft.roles.Scorer."""
        saved = load_file(folder / _REFERENCE)
        with torch.no_grad():
            for name, parameter in self._policy.model.named_parameters():
                parameter.copy_(saved[name])
