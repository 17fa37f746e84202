"""What must hold on GPUs: the CPU's numbers, DeepSpeed over NCCL, and the same run. Needs a GPU: `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rlft.batch import make_pack, unpack
from rlft.engines.weights import fingerprint
from rlft.loops.rollouts import sampling_params
from rlft.models.attention import fused
from tests.helpers import make_config, make_prompt
from tests.running import GRPO, metrics_of, train_here, write_config, write_files

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A folder with data and rewards."""
    write_files(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fingerprint_is_the_same_on_both_devices(dtype: torch.dtype) -> None:
    tensor = torch.randn(513, 65).to(dtype)
    assert fingerprint(tensor) == fingerprint(tensor.cuda())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_matrix_of_scores_stays(dtype: torch.dtype) -> None:
    """Heads that share keys, with a mask: torch alone would fall back to the plain formula in float32."""
    length, made = 2048, torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, length, 64, generator=made) for heads in (8, 2, 2))
    mask = torch.full((length, length), float("-inf")).triu(1)
    inputs = [x.to(dtype).cuda().requires_grad_() for x in (query, key, value)]
    before = torch.cuda.memory_allocated()
    out = fused(*inputs, attn_mask=mask.to(dtype).cuda(), enable_gqa=True)
    assert torch.cuda.memory_allocated() - before < 0.5 * 2 * 8 * length**2 * dtype.itemsize
    right = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    limit = 1e-5 if dtype == torch.float32 else 0.02
    assert (out.float().cpu() - right).abs().max() < limit
    out.sum().backward()
    assert all(x.grad is not None and bool(x.grad.isfinite().all()) and bool(x.grad.any()) for x in inputs[::2])


def test_generator_on_the_gpu_scores_like_the_cpu(tiny_folder: Path, tokenizer: Any) -> None:
    from rlft.engines.transformers import TransformersGenerator
    from rlft.engines.weights import pack_weights
    from rlft.models.load import load_model, trainable_names

    config = make_config(tiny_folder)
    model = load_model(config.model)
    update = pack_weights(model.named_parameters(), 0, True, trainable_names(model))
    prompts = [make_prompt([4, 5, 6, 7]), make_prompt([8, 9])]
    groups, generators = {}, {}
    for device in ("cpu", "cuda"):
        generator = TransformersGenerator(config.model, tokenizer, 64, device)
        generator.load(update)
        seeds = [[1, 2, 3, 4], [5, 6, 7, 8]]
        groups[device] = dict(generator.generate(prompts, seeds, sampling_params(config), 0))
        generators[device] = generator
    for place, group in groups["cuda"].items():
        with torch.inference_mode():
            scores = generators["cpu"].policy(make_pack([group]), 1.0).logprobs.numpy()
        for sample, logprobs in zip(group.samples, unpack([group], scores)[0], strict=True):
            np.testing.assert_allclose(sample.logprobs, logprobs, atol=1e-3)
        assert {s.seed for s in group.samples} == {s.seed for s in groups["cpu"][place].samples}


@pytest.mark.parametrize("mode", ["inline", "local"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_one_gpu(task: Path, mode: str, dtype: str) -> None:
    share = 0.3 if mode == "local" else 1
    gpus = {f"{role}.gpus": share for role in ("generator", "scorer", "learner")}
    name = f"{mode}-{dtype}"
    changes = {**gpus, "cluster.mode": mode, "model.dtype": dtype, "loop.steps": 4, "generator.engine": "transformers"}
    result = train_here(task, write_config(task, name, GRPO, changes))
    metrics = metrics_of(task / result.folder)
    assert len(metrics) == 4
    limit = 1e-3 if dtype == "float32" else 0.5
    assert all(line["sampler/logprob_diff_max"] < limit for line in metrics)
    assert all(np.isfinite(line["policy/grad_norm"]) and line["policy/grad_norm"] > 0 for line in metrics)


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_over_nccl_are_one(task: Path, stage: int) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("NCCL between ranks needs two GPUs")
    losses = []
    for ranks in (1, 2):
        changes = {
            "cluster.mode": "local", "learner.num_ranks": ranks, "learner.gpus": 1, "learner.zero_stage": stage,
            "loop.steps": 3, "generator.engine": "transformers",
        }  # fmt: skip
        result = train_here(task, write_config(task, f"ranks-{ranks}-{stage}", GRPO, changes))
        losses.append([line["policy/loss"] for line in metrics_of(task / result.folder)])
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-3)
