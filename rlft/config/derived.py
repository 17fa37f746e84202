"""Values that follow from the configuration and therefore are no keys of it."""

from __future__ import annotations

from importlib.util import find_spec

from rlft.config.algorithm import Correction
from rlft.config.schema import Config


def zero_stage(config: Config) -> int:
    """DeepSpeed's ZeRO stage: as configured, otherwise 0 for one float32 rank (least overhead) and 2 for the rest."""
    if config.learner.zero_stage is not None:
        return config.learner.zero_stage
    return 0 if config.learner.num_ranks == 1 and config.model.dtype == "float32" else 2


def off_policy_correction(config: Config) -> Correction:
    """What the loss does about the gap between the sampler's and the learner's distribution. Stale samples need a bound
    on how far a token may move from what drew it: weights alone do not keep the policy from running away."""
    choice = config.algorithm.off_policy_correction
    if choice != "auto":
        return choice
    if config.loop.max_staleness > 0:
        return "clip"
    return "token" if generator_engine(config) != "transformers" else "none"


def longest_completion(config: Config) -> int:
    """Tokens that the model may write in one sample, over all its turns."""
    turns = 1 if config.environment is None else config.environment.max_turns
    return turns * config.generator.max_new_tokens


def generator_engine(config: Config) -> str:
    """The engine that `generator.engine` asks for; `auto` is vLLM where generators have GPUs and it is installed."""
    if config.generator.engine != "auto":
        return config.generator.engine
    return "vllm" if config.generator.gpus > 0 and find_spec("vllm") is not None else "transformers"


def in_flight(config: Config) -> bool:
    """Whether new weights reach samples that are being drawn, and steps learn from what finishes first."""
    return config.loop.in_flight and config.loop.max_staleness > 0


def shares_gpus(config: Config) -> bool:
    """Whether generators and learner use the same GPUs in turn; in one process they cannot but."""
    return config.cluster.layout == "colocated" or config.cluster.mode == "inline"


def weight_transport(config: Config) -> str:
    """How weights get from the learner to the generators: `memory`, `collective` or `ipc` (rlft.engines.transport)."""
    choice = config.cluster.weight_transport
    if choice != "auto":
        return choice
    on_gpus = config.learner.gpus > 0 and config.generator.gpus > 0
    if config.model.adapter is not None or not on_gpus:
        return "memory"  # an adapter is small, and vLLM takes it from a folder
    if shares_gpus(config):
        return "memory" if zero_stage(config) == 3 else "ipc"  # sharded, there are no whole tensors to map
    return "collective" if config.learner.gpus >= 1 and config.generator.gpus >= 1 else "memory"


def steps_ahead(config: Config) -> int:
    """Steps' worth of rollouts that are under way besides the one that is waited for. In flight half of the staleness
    is left for groups that take long: with all of it used up, every step would have to wait for its slowest."""
    return (config.loop.max_staleness + 1) // 2 if in_flight(config) else config.loop.max_staleness


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


def mismatch_warn(config: Config) -> float:
    """Mean difference of a step's log-probs between generator and learner, same weights, from which a run warns."""
    return config.loop.mismatch_warn or (1e-4 if _computes_exactly(config) else 0.05)


def mismatch_stop(config: Config) -> float:
    """The same, from which a run stops."""
    return config.loop.mismatch_stop or (1e-2 if _computes_exactly(config) else 0.5)


def _computes_exactly(config: Config) -> bool:
    """Whether generator and learner should differ by float32's rounding only. An adapter's dropout is the learner's."""
    dropout = config.model.adapter.dropout if config.model.adapter else 0.0
    return config.model.dtype == "float32" and dropout == 0
