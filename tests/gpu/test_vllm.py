"""vLLM on a GPU: what it draws and takes over, sleep mode, and how much of its speed is left inside a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlft.engines.weights import pack_weights
from rlft.models.load import load_model, trainable_names
from rlft.samples import SamplingParams
from tests.helpers import make_config, make_prompt, make_sharp_model, plain_logprobs
from tests.running import GRPO, ROOT, metrics_of, train_here, write_config, write_files

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
pytest.importorskip("vllm", reason="vLLM is not installed (make vllm)")

SIZES = {"hidden_size": 128, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 256}
PROMPTS = [make_prompt(ids, f"p{i}") for i, ids in enumerate([[5, 6, 7], [30], [8, 9, 10, 11, 12, 13, 14], [6, 6]])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads of 64."""
    made = tmp_path_factory.mktemp("model") / "m"
    make_sharp_model(made, 4, **SIZES, max_length=512)
    return made


def moved(config: Any, seed: int) -> Any:
    """The model of a configuration on the GPU, what trains drawn from `seed`."""
    lm = load_model(config.model, "cuda")
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.add_(0.5 * parameter.std().nan_to_num(0.1) * torch.randn_like(parameter))
    return lm.eval()


def update_of(lm: Any, version: int, complete: bool) -> Any:
    names = trainable_names(lm)
    return pack_weights([(n, p) for n, p in lm.named_parameters() if complete or n in names], version, complete, names)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", [None, {"rank": 8, "alpha": 16.0}])
def test_new_weights_are_those_that_draw(folder: Path, dtype: str, adapter: Any) -> None:
    """Full weights and adapters, asleep in between: the log-probs are those of the weights that were sent last."""
    from rlft.engines.vllm.engine import VllmGenerator

    changes = {"generator.engine": "vllm", "generator.gpus": 1, "model.dtype": dtype, "cluster.mode": "inline"}
    changes |= {"learner.gpus": 1} | ({"model.adapter": adapter} if adapter else {})
    if adapter or dtype == "float32":  # compiled and with graphs, as by default, once: that takes long to start
        changes["generator.engine_args"] = {"enforce_eager": True}
    config = make_config(folder, changes)
    generator = VllmGenerator(config, "cuda", 1)
    try:
        for version in range(3):
            lm = moved(config, version)
            assert generator.load(update_of(lm, version, version == 0)), "every tensor can be read back"
            params = SamplingParams(2, 24, 1.0, ignore_eos=True)
            drawn = generator.generate(PROMPTS, [[2 * i, 2 * i + 1] for i in range(4)], params, version)
            for sample in (s for _, group in drawn for s in group.samples):
                with torch.no_grad():
                    expected = plain_logprobs(lm.cpu().float(), sample).numpy()
                gap = np.abs(sample.logprobs[sample.loss_mask] - expected)
                assert gap.mean() < (1e-4 if dtype == "float32" else 0.05)
            generator.sleep()
            free, total = torch.cuda.mem_get_info()
            assert free > 0.9 * total, "asleep it gives its memory back"
    finally:
        generator.close()


@pytest.mark.parametrize("layout", ["colocated", "separate"])
def test_a_run_with_vllm(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Through Ray: on one GPU in turn, where weights are mapped, or on two, where NCCL broadcasts them."""
    if layout == "separate" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    write_files(tmp_path)
    changes = {f"model.tiny.{name}": size for name, size in SIZES.items()} | {
        "generator.engine": "vllm", "generator.gpus": 1, "learner.gpus": 1, "cluster.mode": "local",
        "cluster.layout": layout, "loop.steps": 4, "algorithm.kl_coef": 0.0,
    }  # fmt: skip
    run = train_here(tmp_path, write_config(tmp_path, layout, GRPO, changes)).folder
    for line in metrics_of(run):
        assert line["sampler/fresh"] == 1 and line["sampler/logprob_diff_mean"] < 1e-3
    assert {"colocated": "without being moved", "separate": "by broadcast"}[layout] in capsys.readouterr().err


def test_rollouts_inside_a_run_are_as_fast_as_vllm_alone(folder: Path, tmp_path: Path) -> None:
    """At least nine tenths of the tokens a second."""
    write_files(tmp_path)
    words = ["--model", str(folder), "--data", str(tmp_path / "train.jsonl"), "--device", "cuda"]
    words += ["--prompts", "64", "--tokens", "256"]
    command = [sys.executable, "-m", "tests.bench.rollout", *words]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=800)
    assert json.loads(done.stdout.splitlines()[-1])["ratio"] >= 0.9
