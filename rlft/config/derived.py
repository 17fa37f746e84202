"""Values that follow from the configuration and therefore are no keys of it."""

from __future__ import annotations

from rlft.config.schema import Config


def zero_stage(config: Config) -> int:
    """DeepSpeed's ZeRO stage: as configured, otherwise 0 for one float32 rank (least overhead) and 2 for the rest."""
    if config.learner.zero_stage is not None:
        return config.learner.zero_stage
    return 0 if config.learner.num_ranks == 1 and config.model.dtype == "float32" else 2


def corrects_sampler(config: Config) -> bool:
    """Whether the loss weighs tokens for the gap between the sampler's and the learner's distribution."""
    choice = config.algorithm.off_policy_correction
    if choice != "auto":
        return choice == "token"
    return config.loop.max_staleness > 0 or generator_engine(config) != "transformers"


def generator_engine(config: Config) -> str:
    """The engine that `generator.engine` asks for; `auto` is the one that there is."""
    return "transformers" if config.generator.engine == "auto" else config.generator.engine


def learning_rate(config: Config, step: int) -> float:
    """Learning rate of 0-based `step`: linear warm-up from 0, then constant, linear or cosine down to min_lr_ratio * lr
    at the last step."""
    import math

    learner, steps = config.learner, config.loop.steps
    if step < learner.warmup_steps:
        return learner.lr * (step + 1) / (learner.warmup_steps + 1)
    if learner.schedule == "constant":
        return learner.lr
    done = (step - learner.warmup_steps) / max(1, steps - 1 - learner.warmup_steps)
    falling = 1 - done if learner.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return learner.lr * (learner.min_lr_ratio + (1 - learner.min_lr_ratio) * max(0.0, falling))


def probe_tolerance(config: Config) -> float:
    """Largest difference of a log-prob between generator and learner in the probe."""
    return config.loop.probe_tolerance or (1e-3 if config.model.dtype == "float32" else 0.5)
