"""Nothing is ignored in silence: a key that the user changed and that has no effect in this combination is an error.

A key that is set to its default is left alone, so that a complete dump of a configuration loads again.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from rlft.config.algorithm import AlgorithmConfig
from rlft.config.base import Section
from rlft.config.derived import generator_engine
from rlft.config.problems import Problem
from rlft.config.schema import Config
from rlft.config.unused_algorithm import ALGORITHM_RULES, Rule

# The first rule that names a key explains it.
RULES = (
    Rule(
        lambda config: config.algorithm.type == "sft",
        (
            "generator.*",
            "environment.*",
            "rewards.*",
            "scorer.*",
            "evaluation.*",
            "teacher.*",
            "critic.*",
            *(f"algorithm.{name}" for name in AlgorithmConfig.model_fields if name not in ("type", "loss_average")),
            "loop.max_staleness",
            "loop.in_flight",
            "cluster.layout",
            "cluster.weight_transport",
            "loop.probe_*",
            "loop.mismatch_*",
            "tracking.rollouts_every",
        ),
        "algorithm.type is sft, which draws no samples",
    ),
    Rule(
        lambda config: config.algorithm.type != "sft",
        ("data.completion_column", "data.document_column", "data.train_on"),
        "algorithm.type is not sft, so completions are drawn and not read",
    ),
    Rule(
        lambda config: not config.data.mixture,
        ("data.mixture_temperature",),
        "data.mixture is empty, so nothing is mixed",
    ),
    *ALGORITHM_RULES,
    Rule(
        lambda config: config.evaluation.path is None,
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
    Rule(
        lambda config: config.learner.schedule == "constant",
        ("learner.min_lr_ratio",),
        "learner.schedule is constant; it needs linear or cosine",
    ),
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
