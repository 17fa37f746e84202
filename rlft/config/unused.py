"""Nothing is ignored in silence: a key that the user changed and that has no effect in this combination is an error.

A key that is set to its default is left alone, so that a complete dump of a configuration loads again.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from rlft.config.algorithm import FROM_DATA, AlgorithmConfig, FromData
from rlft.config.base import Section
from rlft.config.checks_adapters import ADAPTER_RULES
from rlft.config.checks_optimizers import OPTIMIZER_RULES
from rlft.config.data import KEYS_OF_ROWS
from rlft.config.derived import draws, generator_engine, learns_tasks, uses_reference
from rlft.config.problems import Problem
from rlft.config.schema import Config
from rlft.config.unused_algorithm import ALGORITHM_RULES, Rule
from rlft.config.unused_tasks import TASK_RULES

_DRAWING = (  # what only drawn samples need
    "generator.*", "environment.*", "rewards.*", "critic.*", "loop.max_staleness", "loop.in_flight",
    "loop.probe_*", "loop.mismatch_*", "cluster.layout", "cluster.weight_transport", "tracking.rollouts_every",
    "tracking.drift_window", "evaluation.samples_per_prompt", "evaluation.temperature", "evaluation.pass_threshold",
    "evaluation.metrics", "evaluation.reference_column",
)  # fmt: skip
_ROWS = {kind: tuple(f"data.{key}" for key in keys) for kind, keys in KEYS_OF_ROWS.items()}


def _from_data(name: str, learning: FromData) -> Iterator[Rule]:
    """What has no effect where no samples are drawn."""
    others = {key for keys in _ROWS.values() for key in keys}.difference(_ROWS[learning.rows])
    keys = [f"algorithm.{key}" for key in AlgorithmConfig.model_fields if key not in ("type", *learning.keys)]
    yield Rule(
        lambda config: config.algorithm.type == name,
        (*keys, *_DRAWING),
        f"algorithm.type is {name}, which draws no samples"
        if learning.rows == "examples"
        else f"algorithm.type is {name}, which learns from {learning.rows} of the data",
    )
    yield Rule(
        lambda config: config.algorithm.type == name, tuple(others), f"algorithm.type {name} reads {learning.rows}"
    )


# The first rule that names a key explains it.
RULES = (
    *TASK_RULES,
    *(rule for name, learning in FROM_DATA.items() for rule in _from_data(name, learning)),
    Rule(
        lambda config: draws(config),
        tuple(key for keys in _ROWS.values() for key in keys),
        "algorithm.type draws completions and does not read them (sft, dpo, kto and others do)",
    ),
    Rule(
        lambda config: not draws(config) and not uses_reference(config),
        ("scorer.*",),
        "nothing is compared with a reference",
    ),
    Rule(
        lambda config: not config.data.mixture,
        ("data.mixture_temperature",),
        "data.mixture is empty, so nothing is mixed",
    ),
    *ADAPTER_RULES,
    *ALGORITHM_RULES,
    Rule(
        lambda config: config.evaluation.path is None and not learns_tasks(config),
        ("evaluation.*",),
        "evaluation.path is empty, so nothing is evaluated",
    ),
    Rule(
        lambda config: config.loop.max_staleness == 0,
        ("loop.in_flight",),
        "loop.max_staleness is 0, so nothing is drawn while weights change",
    ),
    Rule(
        lambda config: generator_engine(config) != "vllm",
        ("generator.engine_args",),
        "the generator's engine is not vllm",
    ),
    *OPTIMIZER_RULES,
    Rule(
        lambda config: config.cluster.mode != "ray",
        ("cluster.address",),
        "only cluster.mode ray joins an existing cluster",
    ),
)


def check_unused(config: Config) -> Iterator[Problem]:
    """A problem for each changed key that has no effect."""
    rules = [rule for rule in RULES if rule.applies(config)]
    for key in changed_keys(config):
        for rule in rules:
            if any(fnmatch(key, pattern) for pattern in rule.keys):
                yield Problem(key, f"has no effect, because {rule.because}; take it out")
                break


def changed_keys(section: Section, prefix: str = "") -> list[str]:
    """The keys that were set and differ from their default, dotted."""
    changed: list[str] = []
    for name, field in type(section).model_fields.items():
        if name not in section.model_fields_set:
            continue
        value: Any = getattr(section, name)
        if isinstance(value, Section):
            changed += changed_keys(value, f"{prefix}{name}.")
        elif field.is_required() or value != section.default_of(name, field):
            changed.append(prefix + name)
    return changed
