"""The micro-batches of one update on one rank, and what the rank says of it. Knows nothing about models or losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlft.algorithms.statistics import Stats, joined
from rlft.batch import Pack, make_pack
from rlft.engines.deepspeed import ZeroEngine
from rlft.engines.scoring import EMPTY
from rlft.samples import Group, Totals


@dataclass(frozen=True)
class RankUpdate:
    """What one rank says of one update."""

    loss: float  # this rank's part of the sum
    stats: Stats  # of this rank's tokens
    grad_norm: float  # global, before clipping; not finite when the update was skipped or refused
    applied: bool
    refused: bool = False  # nothing was applied because sampler and learner are too far apart


def accumulate(
    engine: ZeroEngine,
    micro_batches: Sequence[Sequence[Group]],
    totals: Totals,
    average: str,
    device: torch.device,
    loss_of: Callable[[Pack], tuple[Tensor, Stats]],
    version: int | None = None,
) -> tuple[float, Stats]:
    """Forward and backward of each micro-batch, in training mode: the sum of the losses, and their statistics. A rank
    without work of its own runs EMPTY, whose weights are 0, so that it keeps step with the others."""
    engine.train()
    total, parts = 0.0, list[Stats]()
    for number, groups in enumerate(micro_batches, 1):
        pack = make_pack(groups or [EMPTY], totals if groups else None, average, device, version)
        loss, stats = loss_of(pack)
        total += float(loss.detach())
        engine.accumulate(loss, number == len(micro_batches))
        if groups:
            parts.append(stats)
    return total, joined(parts)
