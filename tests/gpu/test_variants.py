"""What a learner may be made of, on a GPU: quantized bases, offloading, sharding, other optimizers. Needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.running import GRPO, SFT, metrics_of, train_here, write_config, write_files

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]

ON_ONE_GPU = {"generator.gpus": 1, "learner.gpus": 1, "cluster.mode": "inline", "generator.engine": "transformers"}
LORA = {"model.adapter": {"rank": 4}}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "dora": {"model.adapter": {"type": "dora", "rank": 4}},
    "nf4": LORA | {"model.quantization": {"type": "nf4"}},
    "int8": LORA | {"model.quantization": {"type": "int8"}},
    "zero 3": {"learner.zero_stage": 3},
    "bfloat16, zero 2": {"model.dtype": "bfloat16", "learner.zero_stage": 2},
    "optimizer in CPU memory": {"learner.zero_stage": 2, "learner.offload": "optimizer"},
    "optimizer and weights in CPU memory": {"learner.zero_stage": 3, "learner.offload": "optimizer_and_weights"},
    "activations in CPU memory": {"learner.offload_activations": True, "learner.gradient_checkpointing": True},
    "adamw_8bit": {"learner.optimizer": "adamw_8bit"},
    "paged_adamw_8bit": {"learner.optimizer": "paged_adamw_8bit"},
    "lion": {"learner.optimizer": "lion", "learner.lr": 1e-3},
    "adafactor": {"learner.optimizer": "adafactor"},
    "muon": {"learner.optimizer": "muon"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_it_learns_and_the_sampler_agrees(tmp_path: Path, name: str) -> None:
    """Four steps: the gradient finite and not 0, what draws has the weights that were learned."""
    write_files(tmp_path)
    changes = ON_ONE_GPU | {"loop.steps": 4, "algorithm.kl_coef": 0.0} | VARIANTS[name]
    result = train_here(tmp_path, write_config(tmp_path, "run", GRPO, changes))
    lines = metrics_of(tmp_path / result.folder)
    assert len(lines) == 4
    limit = 0.5 if changes.get("model.dtype") == "bfloat16" else 2e-3
    assert all(line["sampler/logprob_diff_max"] < limit for line in lines)
    assert all(np.isfinite(line["policy/grad_norm"]) and line["policy/grad_norm"] > 0 for line in lines)


@pytest.mark.parametrize("name", ["full", "lora", "nf4", "bfloat16, zero 2"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, name: str) -> None:
    write_files(tmp_path)
    losses = list[list[float]]()
    for steps in ((4,), (2, 4)):
        result: Any = None
        for count in steps:
            changes = {"learner.gpus": 1, "loop.steps": count, "loop.save_every": 2, "learner.schedule": "constant"}
            changes |= VARIANTS.get(name, {}) | {"run.dir": str(tmp_path / str(len(steps)))}
            result = train_here(tmp_path, write_config(tmp_path, "run", SFT, changes), resume="auto")
        losses.append([line["policy/loss"] for line in metrics_of(tmp_path / result.folder)])
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
