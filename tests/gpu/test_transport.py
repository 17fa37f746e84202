"""Weights that a generator maps on the GPU that it shares with the learner. Whole runs: test_vllm.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlft.engines.transport import share_on_gpu
from rlft.models.load import trainable_names
from rlft.samples import SamplingParams
from tests.gpu.test_vllm import PROMPTS, moved
from tests.gpu.test_vllm import folder as folder  # the fixture
from tests.helpers import make_config, plain_logprobs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
pytest.importorskip("vllm", reason="vLLM is not installed (make vllm)")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_maps_the_learners_tensors(folder: Path, dtype: str) -> None:
    """No byte is copied but by vLLM itself, and what it draws is from the weights that it was shown."""
    from rlft.engines.vllm.engine import VllmGenerator

    config = make_config(folder, {
        "generator.engine": "vllm", "model.dtype": dtype, "generator.gpus": 0.4, "learner.gpus": 0.4,
        "cluster.layout": "colocated", "generator.engine_args": {"gpu_memory_utilization": 0.3, "enforce_eager": True},
    })  # fmt: skip
    generator = VllmGenerator(config, "cuda", 1)
    try:
        for version in range(3):
            lm = moved(config, version)
            names = trainable_names(lm)
            generator.load(share_on_gpu(dict(lm.named_parameters()), version, version == 0, names))
            params = SamplingParams(num_samples=2, max_new_tokens=12)
            drawn = generator.generate(PROMPTS, [[1, 2]] * len(PROMPTS), params, version)
            for _, group in drawn:
                for sample in group.samples:
                    with torch.no_grad():
                        expected = plain_logprobs(lm, sample, 1.0).cpu().numpy()
                    gap = abs(sample.logprobs[sample.loss_mask] - expected).max()
                    assert gap < (1e-3 if dtype == "float32" else 0.1)
    finally:
        generator.close()
