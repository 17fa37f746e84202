"""Bytes that training needs besides a pass: weights, master weights, gradients, AdamW's moments, and what an update
makes for a moment. Formulas of DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) and of torch's AdamW.

Letters: n ranks, T elements that train, W bytes of a weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

WEIGHTS, MASTER, OPTIMIZER, GRADIENTS, BUFFERS = "weights", "master weights", "optimizer", "gradients", "buffers"
ADAPTER = "adapter's schedule"
GIB = 1 << 30
_BUCKET = 500_000_000  # elements that DeepSpeed reduces at once, and keeps gathered with ZeRO-3, by default

_STATE = {  # bytes that the optimizer keeps of an element; adafactor's rows and columns are too few to count
    "adamw": 8, "adamw_fused": 8, "cpu_adam": 8, "adamw_8bit": 2, "paged_adamw": 8, "paged_adamw_8bit": 2, "lion": 4,
    "adafactor": 0, "muon": 4,
}  # fmt: skip
_BESIDE = {  # by kind of adapter, in copies of what trains: what it keeps, and what it makes for a step
    "adalora": (3, 1),  # peft's allocator: importance, its mean and its spread; and the gradients
    "delta_lora": (0, 1),  # itself as it was
}
_IN_PLACE = ("adamw_fused", "cpu_adam", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")


class Training(NamedTuple):
    """What trains, and how it is split."""

    groups: tuple[tuple[int, ...], ...]  # elements of each trained parameter, by the optimizer's groups
    frozen: int  # bytes of what does not train
    width: int  # W
    stage: int
    ranks: int
    foreach: bool  # the optimizer takes all parameters at once: on GPUs
    optimizer: str = "adamw"
    offload: str = "none"  # to CPU memory, as learner.offload
    adapter: str = ""  # its kind

    @property
    def trained(self) -> int:
        """T"""
        return sum(map(sum, self.groups))

    @property
    def share(self) -> int:
        """Ranks over which optimizer state is split."""
        return self.ranks if self.stage else 1


def resting(training: Training) -> Counter[str]:
    """What is always there once the first update is made."""
    t, n = training.trained, training.share
    whole = t * training.width + training.frozen
    weights = whole // training.ranks if training.stage == 3 else whole
    if training.offload != "none":
        return Counter({WEIGHTS: 0 if training.offload == "optimizer_and_weights" else weights})
    return Counter({
        WEIGHTS: weights,
        MASTER: 4 * t // n if training.stage or training.width < 4 else 0,
        OPTIMIZER: _STATE[training.optimizer] * t // n,
        ADAPTER: _beside(training)[0],
    })  # fmt: skip


def _beside(training: Training) -> tuple[int, int]:
    """Bytes that the adapter keeps, and makes for a step."""
    kept, made = _BESIDE.get(training.adapter, (0, 0))
    return kept * training.trained * training.width, made * training.trained * training.width


def gathered(training: Training) -> int:
    """Bytes of weights that ZeRO-3 has collected from other ranks during a pass."""
    whole = training.trained * training.width + training.frozen
    return min(whole, 2 * _BUCKET * training.width) if training.stage == 3 and training.ranks > 1 else 0


def moments(training: Training) -> dict[str, Counter[str]]:
    """Beside `resting`, once the passes' activations are gone: when gradients are reduced over ranks, and in the
    optimizer's step."""
    t, w, n = training.trained, training.width, training.share
    # A flat copy of a bucket travels, also where there is but one rank.
    reduced = Counter({GRADIENTS: t * w, BUFFERS: min(t, _BUCKET) * w})
    if training.offload != "none":  # the step is made in CPU memory
        return {"reduce": reduced}
    if training.stage == 0:
        step = _temporary([size for group in training.groups for size in group], training)
        return {"reduce": reduced, "step": Counter({GRADIENTS: t * w, BUFFERS: step + _beside(training)[1]})}
    left = t if training.stage == 1 else t // n  # elements of gradients that stay
    steps = list[Counter[str]]()
    for group in training.groups:  # one at a time; the gradients of those that follow are still there
        flat = 4 * sum(group) // n
        steps.append(Counter({GRADIENTS: left * w, BUFFERS: flat}))
        left -= sum(group) if training.stage == 1 else sum(group) // n
        used = flat + _temporary([sum(group) // n], training)
        steps.append(Counter({GRADIENTS: max(0, left) * w, BUFFERS: used}))
    return {"reduce": reduced, "step": max(steps, key=Counter.total)}


def _temporary(sizes: Sequence[int], training: Training) -> int:
    """What the optimizer makes for a moment. AdamW's denominator: the root and its quotient by the bias correction, of
    one tensor after the other, or (in place) of all of them. In one kernel: nothing."""
    if training.optimizer in _IN_PLACE:
        return 0
    return 4 * sum(sizes) if training.foreach else 8 * max(sizes, default=0)
