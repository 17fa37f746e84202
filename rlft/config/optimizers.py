"""learner.optimizer, and what each one has and can do.

What an optimizer can do is stated once, in OPTIMIZERS, and held by tests/engines/test_optimizers.py. How one is built
is in rlft.engines.optimizers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from rlft.config.base import Section

OptimizerName = Literal[
    "adamw", "adamw_fused", "cpu_adam", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "lion", "adafactor", "muon",
]  # fmt: skip


class LayerRate(Section):
    """A learning rate for some of the parameters."""

    match: str
    """Name of parameters, or its end, with * for anything: `layers.0.*`, `lm_head.weight`, `*norm*`."""
    lr_ratio: float = Field(gt=0)
    """Their learning rate is so many times learner.lr."""


class OptimizerKind(NamedTuple):
    """What an optimizer has and can do."""

    keys: tuple[str, ...]  # of OWN_KEYS that mean something
    betas: tuple[float, float]  # where none are set
    source: str
    splits: bool = True  # works on a rank's share of all weights in one row, as ZeRO stages 1 to 3 hand it out
    offloads: bool = True  # steps in CPU memory while the model is on a GPU
    paged: bool = False  # moves its state to CPU memory by itself where the GPU's is full
    on_cpu: bool = False  # what it steps must be in CPU memory


OWN_KEYS = ("betas", "eps", "momentum")
_ADAM, _BETAS = ("betas", "eps"), (0.9, 0.999)
OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind(_ADAM, _BETAS, "Loshchilov and Hutter 2017, arXiv:1711.05101; torch"),
    "adamw_fused": OptimizerKind(_ADAM, _BETAS, "the same in one kernel; torch"),
    "cpu_adam": OptimizerKind(_ADAM, _BETAS, "the same, vectorised for CPUs; DeepSpeed", on_cpu=True),
    "adamw_8bit": OptimizerKind(_ADAM, _BETAS, "Dettmers et al. 2021, arXiv:2110.02861; bitsandbytes", offloads=False),
    "paged_adamw": OptimizerKind(_ADAM, _BETAS, "AdamW of bitsandbytes", offloads=False, paged=True),
    "paged_adamw_8bit": OptimizerKind(
        _ADAM, _BETAS, "Dettmers et al. 2023, arXiv:2305.14314; bitsandbytes", offloads=False, paged=True
    ),
    "lion": OptimizerKind(("betas",), (0.9, 0.99), "Chen et al. 2023, arXiv:2302.06675"),
    "adafactor": OptimizerKind((), _BETAS, "Shazeer and Stern 2018, arXiv:1804.04235; torch", splits=False),
    "muon": OptimizerKind(
        (*_ADAM, "momentum"), _BETAS, "Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982; torch", splits=False
    ),
}
