"""A real vLLM generator for tests, the weights it is given and what it draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlft.engines.vllm import settings
from rlft.engines.weights import WeightUpdate, pack_weights
from rlft.models.load import load_model, trainable_names
from rlft.samples import Group, Sample, SamplingParams
from tests.helpers import make_config, make_prompt, make_sharp_model, plain_logprobs

TEMPERATURE = 0.7
PROMPTS = [make_prompt(ids, f"p{i}") for i, ids in enumerate([[5, 6, 7], [30], [8, 9, 10, 11, 12, 13, 14], [6, 6]])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose o_proj is square, and which keeps a sample going for 400 tokens."""
    made = tmp_path_factory.mktemp("model") / "m"
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 96}
    make_sharp_model(made, 8, **sizes, max_length=1024)
    return made


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """A vLLM generator with workers that can be made faulty."""
    from rlft.engines.vllm.engine import VllmGenerator

    monkeypatch.setattr(settings, "WORKER", "tests.engines.faulty_worker.FaultyReceiver")
    changes = {"generator.engine": "vllm", "generator.temperature": TEMPERATURE} | changes
    return VllmGenerator(make_config(folder, changes), name="generator-7")


def model_of(generator: Any, seed: int) -> Any:
    """The model of a generator as transformers has it, what trains drawn from `seed`."""
    lm = load_model(generator._config.model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter))
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    return lm.eval()


def update_of(lm: Any, version: int, complete: bool = True) -> WeightUpdate:
    names = trainable_names(lm)
    tensors = [(n, p.detach()) for n, p in lm.named_parameters() if complete or n in names]
    return pack_weights(tensors, version, complete, names)


def draw(generator: Any, prompts: Any = PROMPTS, version: int = 0, **params: Any) -> list[Group]:
    return [group for _, group in sorted(begin(generator, prompts, version, **params), key=lambda item: item[0])]


def begin(generator: Any, prompts: Any, version: int, first_seed: int = 0, **params: Any) -> Any:
    wanted = SamplingParams(**{"num_samples": 3, "max_new_tokens": 12, "temperature": TEMPERATURE, **params})
    names = [prompt.id for prompt in PROMPTS]
    seeds = [[first_seed + 10 * names.index(p.id) + j for j in range(wanted.num_samples)] for p in prompts]
    return generator.generate(prompts, seeds, wanted, version)


def samples_of(groups: list[Group]) -> list[Sample]:
    return [sample for group in groups for sample in group.samples]


def completion(sample: Sample) -> list[int]:
    return sample.token_ids[sample.loss_mask].tolist()


def gap(lm: Any, sample: Sample, version: int, temperature: float = TEMPERATURE) -> float:
    """Largest difference of log-probs between vLLM and a plain forward pass, on tokens of this version."""
    with torch.no_grad():
        expected = plain_logprobs(lm, sample, temperature).numpy()
    mine = sample.weight_versions[sample.loss_mask] == version
    return float(np.abs(sample.logprobs[sample.loss_mask] - expected)[mine].max())
