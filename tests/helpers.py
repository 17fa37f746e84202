"""Makes prompts, samples, groups and configurations for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlft.config import Config
from rlft.config.load import load_config
from rlft.samples import Group, Prompt, Sample


def make_config(model: Path | str, overrides: Mapping[str, Any] | None = None) -> Config:
    """A small configuration around a model folder, checked like a user's."""
    base = {
        "model": {"path": str(model)},
        "rewards": {"functions": [{"function": "exact_match"}]},
        "algorithm": {"group_size": 4},
        "generator": {"max_new_tokens": 8},
        "loop": {"steps": 4, "prompts_per_step": 4},
        "learner": {"lr": 1e-3, "eps": 1e-4},
    }
    return load_config(base, overrides or {})


def make_prompt(ids: Sequence[int], name: str = "p", **columns: Any) -> Prompt:
    return Prompt(name, np.array(ids, dtype=np.int32), " ".join(map(str, ids)), None, columns)


def make_sample(prompt: Prompt, completion: Sequence[int], **values: Any) -> Sample:
    """The completion behind the prompt, all of it trained on, sampled by version 0 with log-prob -1 for each token.

    `advantage=a` puts `a` on every trained token. Everything else is a field of Sample.
    """
    start, length = len(prompt.token_ids), len(prompt.token_ids) + len(completion)
    advantage = values.pop("advantage", None)
    mask = np.arange(length) >= start
    sample = Sample(
        token_ids=np.concatenate([prompt.token_ids, np.array(completion, dtype=np.int32)]),
        loss_mask=mask,
        logprobs=np.where(mask, -1.0, 0.0).astype(np.float32),
        weight_versions=np.where(mask, 0, -1).astype(np.int32),
        finish_reason="stop",
        seed=0,
        text=" ".join(map(str, completion)),
    )
    sample = replace(sample, **values)
    if advantage is not None:
        sample = replace(sample, advantages=np.where(sample.loss_mask, advantage, 0.0).astype(np.float32))
    return sample


def make_group(
    prompt_ids: Sequence[int], completions: Sequence[Sequence[int]], advantages: Sequence[float | None] | None = None
) -> Group:
    """A group with these completions."""
    prompt = make_prompt(prompt_ids)
    given = advantages if advantages is not None else [None] * len(completions)
    return Group(prompt, tuple(make_sample(prompt, c, advantage=a) for c, a in zip(completions, given, strict=True)))


def random_groups(
    rng: np.random.Generator,
    sizes: Sequence[int],
    vocabulary: int = 64,
    max_prompt: int = 9,
    max_completion: int = 7,
    old_and_ref: bool = False,
) -> list[Group]:
    """Groups of these sizes with prompts of 1 to `max_prompt` tokens, completions of 1 to `max_completion`, random
    advantages and sampler log-probs; if asked for, old and reference log-probs too."""
    groups = []
    for size in sizes:
        ids = rng.integers(4, vocabulary, rng.integers(1, max_prompt + 1))
        completions = [rng.integers(4, vocabulary, rng.integers(1, max_completion + 1)) for _ in range(size)]
        group = make_group(ids.tolist(), [c.tolist() for c in completions], rng.normal(size=size).tolist())
        names = ["logprobs", "old_logprobs", "ref_logprobs"] if old_and_ref else ["logprobs"]
        groups.append(group.with_samples([_with_logprobs(s, rng, names) for s in group.samples]))
    return groups


def _with_logprobs(sample: Sample, rng: np.random.Generator, names: Sequence[str]) -> Sample:
    def draw() -> np.ndarray:
        return np.where(sample.loss_mask, rng.normal(-2.0, 0.3, len(sample.loss_mask)), 0.0).astype(np.float32)

    return replace(sample, **{name: draw() for name in names})


def alone(groups: Sequence[Group]) -> list[Group]:
    """The same samples, each in a group of its own, so that nothing is shared."""
    return [group.with_samples([sample]) for group in groups for sample in group.samples]


def plain_logprobs(model: Any, sample: Sample, temperature: float = 1.0) -> torch.Tensor:
    """Log-prob of each trained token by an ordinary forward pass of a transformers or peft model over one sequence."""
    ids = torch.from_numpy(sample.token_ids.astype(np.int64))
    logits = model(input_ids=ids[None]).logits[0, -len(ids) :]  # peft's may have those of virtual tokens before them
    logprobs = torch.log_softmax(logits.float() / temperature, -1)
    at = torch.from_numpy(np.flatnonzero(sample.loss_mask))
    return logprobs[at - 1, ids[at]]


def make_sharp_model(folder: Path, factor: float, **sizes: int) -> Any:
    """Write a model with the `digits` vocabulary whose matrices are `factor` times larger than a fresh model's."""
    from transformers import AutoModelForCausalLM

    from rlft.config.model import TinyModel
    from rlft.models.tiny import make_tiny_model

    make_tiny_model(TinyModel.model_validate({"vocabulary": "digits", **sizes}), folder, seed=0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    model.save_pretrained(folder)
    return model


def make_biased_model(folder: Path, like: Path) -> Path:
    """A Llama of the sizes of the model in `like`, with random biases in all linear layers but the output layer."""
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    given = AutoConfig.from_pretrained(like)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
    sizes = {name: getattr(given, name) for name in names}
    config = LlamaConfig(**sizes, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, dtype="float32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):
                    parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)
