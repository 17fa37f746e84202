"""What must hold between model.adapter and the other keys, and which of its keys have no effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlft.config.adapters import KINDS, VLLM_RANKS, AdapterConfig
from rlft.config.derived import (
    adapter_budget_end,
    draws,
    generator_engine,
    learns_tasks,
    makes_reward_model,
    reference_in_learner,
    zero_stage,
)
from rlft.config.problems import Problem
from rlft.config.schema import Config
from rlft.config.unused_algorithm import Rule

_SPECIAL = (  # need more in an update than a gradient, or are for a causal language model alone
    "adalora", "lora_plus", "bitfit", "bottleneck", "delta_lora", "lora_drop", "lora_experts",
)  # fmt: skip
_FOR_TASKS = ("lora", "dora")  # of which a model can hold several beside each other


def _unused(name: str) -> Rule:
    kind = KINDS[name]
    known = {"type", *kind.keys, *(["target_modules"] if kind.targeted else [])}
    keys = tuple(f"model.adapter.{key}" for key in AdapterConfig.model_fields if key not in known)
    has = ", ".join(key for key in AdapterConfig.model_fields if key in known and key != "type") or "no keys"
    return Rule(
        lambda config: config.model.adapter is not None and config.model.adapter.type == name,
        keys, f"model.adapter.type is {name}, which has {has}",
    )  # fmt: skip


ADAPTER_RULES = (
    Rule(
        lambda config: config.model.quantization is not None and config.model.quantization.type == "int8",
        ("model.quantization.double",),
        "model.quantization.type is int8, which has one scale for each row",
    ),
    *(_unused(name) for name in KINDS),
    Rule(reference_in_learner, ("scorer.*",), "the reference is the learner's model with its adapter off"),
)


def check_adapter(config: Config, given: Any) -> Iterator[Problem]:
    """What this kind of adapter can do, and what it is asked for."""
    adapter = config.model.adapter
    if adapter is None:
        return
    kind, name = KINDS[adapter.type], adapter.type
    generates = draws(config) or given.purpose != "train"
    if generates and generator_engine(config) == "vllm" and kind.served is None:
        yield Problem("model.adapter.type", f"{name} cannot be served by vLLM; expected generator.engine transformers")
    if generates and generator_engine(config) == "vllm" and kind.served == "adapter" and adapter.rank > VLLM_RANKS[-1]:
        yield Problem("model.adapter.rank", f"{adapter.rank}, but vLLM serves ranks up to {VLLM_RANKS[-1]}")
    if given.purpose != "train":
        return
    if makes_reward_model(config) and (name in _SPECIAL or kind.virtual):
        yield Problem("model.adapter.type", f"{name} is not there for reward models; expected lora, dora or another")
    if learns_tasks(config) and name not in _FOR_TASKS:
        yield Problem("model.adapter.type", f"{name} is not there for tasks; expected {' or '.join(_FOR_TASKS)}")
    stage = zero_stage(config.learner, config.model.dtype)
    if stage > kind.zero and config.learner.zero_stage is None:
        why = "several ranks" if config.model.dtype == "float32" else f"model.dtype {config.model.dtype}"
        yield Problem(
            "model.adapter.type",
            f"{name} works with learner.zero_stage {kind.zero}, but {why} would make it {stage}; set "
            f"learner.zero_stage {kind.zero}{'' if config.model.dtype == 'float32' else ' and model.dtype float32'}",
        )
    elif stage > kind.zero:
        yield Problem("learner.zero_stage", f"{stage}, but model.adapter.type {name} works with {kind.zero} at most")
    if name == "adalora":
        yield from _check_budget(config, adapter)
    if name == "lora_experts":
        yield from _check_experts(config, adapter)
    for key, value, then in (
        ("delta_start", adapter.delta_start, "the base weights would never move; expected less, or adapter type lora"),
        ("sample_steps", adapter.sample_steps, "nothing would be shared; expected less, or adapter type lora"),
    ):
        if key in kind.keys and value >= config.loop.steps:
            yield Problem(f"model.adapter.{key}", f"{value}, but loop.steps is {config.loop.steps}: {then}")


def check_quantized(config: Config, given: Any) -> Iterator[Problem]:
    """A quantized base cannot train itself, and not every adapter goes on it."""
    if config.model.quantization is None or given.purpose != "train":
        return
    adapter, stage = config.model.adapter, zero_stage(config.learner, config.model.dtype)
    if adapter is None:
        yield Problem(
            "model.quantization",
            f"{config.model.quantization.type} weights cannot be trained, and model.adapter is empty; expected "
            "model.adapter ({type: lora} for instance), or no model.quantization for full weights",
        )
    elif not KINDS[adapter.type].quantized:
        can = ", ".join(name for name, kind in KINDS.items() if kind.quantized)
        yield Problem(
            "model.quantization",
            f"{config.model.quantization.type}, but {adapter.type} needs a base that is not quantized; expected "
            f"model.adapter.type {can}",
        )
    elif stage == 3 and adapter.type == "dora":
        yield Problem(
            "learner.zero_stage",
            "3 splits weights over ranks, and peft's dora on a quantized base exchanges them under way; expected 0, 1 "
            "or 2, or model.adapter.type lora",
        )


def _check_budget(config: Config, adapter: AdapterConfig) -> Iterator[Problem]:
    end, steps = adapter_budget_end(config), config.loop.steps
    if adapter.initial_rank is not None and adapter.initial_rank <= adapter.rank:
        yield Problem(
            "model.adapter.initial_rank",
            f"{adapter.initial_rank} is not above model.adapter.rank {adapter.rank}, to which ranks are reduced",
        )
    if not adapter.budget_start < end <= steps:
        yield Problem(
            "model.adapter.budget_end" if adapter.budget_end else "model.adapter.budget_start",
            f"ranks would be taken away from step {adapter.budget_start} to step {end} of loop.steps {steps}; expected "
            "budget_start below budget_end, and that within the run",
        )


def _check_experts(config: Config, adapter: AdapterConfig) -> Iterator[Problem]:
    """A task is a source of data.mixture, and every row that is looked at must have one."""
    sources = [source.label for source in config.data.mixture]
    if not sources:
        yield Problem(
            "model.adapter.type",
            "lora_experts tells tasks apart by the sources of data.mixture, which is empty; fill it, or use lora",
        )
    elif sorted(adapter.tasks) != sorted(sources):
        yield Problem(
            "model.adapter.tasks",
            f"{', '.join(adapter.tasks) or 'empty'}; expected the names of the sources in data.mixture: "
            + ", ".join(sources),
        )
    if adapter.rank % adapter.num_experts:
        yield Problem(
            "model.adapter.num_experts",
            f"{adapter.num_experts} does not divide model.adapter.rank {adapter.rank}, of which each expert has a part",
        )
    if config.evaluation.path is not None and config.evaluation.source_column is None:
        yield Problem(
            "evaluation.source_column",
            "empty, so nobody knows which task of lora_experts a held-out row is of; name the column that holds one of "
            "model.adapter.tasks",
        )
