"""What must hold between the keys of a configuration. One small function per idea, listed in CHECKS.

Keys that have no effect are in unused.py, files and GPUs in places.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from rlft.config.adapters import VLLM_UNSERVED
from rlft.config.checks_adapters import check_adapter, check_quantized
from rlft.config.checks_algorithm import ALGORITHM_CHECKS, FROM_DATA_CHECKS
from rlft.config.checks_mixture import NO_CUTTING, check_mixture
from rlft.config.checks_optimizers import check_optimizers, optimizer_notes
from rlft.config.derived import (
    draws,
    generator_engine,
    learns_from,
    learns_tasks,
    mismatch_stop,
    shares_gpus,
    zero_stage,
)
from rlft.config.places import check_gpus, check_paths
from rlft.config.problems import Problem
from rlft.config.schema import Config
from rlft.config.unused import check_unused

# score: a model alone, on data that are given apart. inspect: data alone
Purpose = Literal["train", "evaluate", "score", "inspect"]


class Given(NamedTuple):
    """What a check may know besides the configuration."""

    purpose: Purpose = "train"
    need_data: bool = False
    has_rewards: bool = False
    has_dataset: bool = False


def check_config(
    config: Config,
    purpose: Purpose = "train",
    need_data: bool = False,
    has_rewards: bool = False,
    has_dataset: bool = False,
) -> list[str]:
    """What is wrong between the keys of `config`, as sentences that begin with a key; empty when it can run."""
    return [str(problem) for problem in find_problems(config, purpose, need_data, has_rewards, has_dataset)]


def find_problems(
    config: Config,
    purpose: Purpose = "train",
    need_data: bool = False,
    has_rewards: bool = False,
    has_dataset: bool = False,
) -> list[Problem]:
    """The same, with the key apart, so that load_config can say where it stands."""
    given = Given(purpose, need_data, has_rewards, has_dataset)
    checks = CHECKS_OF_DATA if purpose == "inspect" else CHECKS
    return [problem for check in checks for problem in check(config, given)]


def notes(config: Config) -> list[str]:
    """What is not wrong but must be known before the run starts."""
    found = list(optimizer_notes(config))
    if config.data.path is None and not config.data.mixture and not learns_tasks(config):
        found.insert(0, "data.path is empty: give it when you start, --data.path FILE (or dataset= from Python)")
    return found


def check_model(config: Config, _: Given) -> Iterator[Problem]:
    """Exactly one of a model's path and a tiny model to make."""
    path, tiny = config.model.path, config.model.tiny
    if path is None and tiny is None:
        yield Problem(
            "model.path",
            "no model: give model.path (a folder or a name on the Hub), or model.tiny ({} takes its defaults) to make "
            "a small one",
        )
    if path is not None and tiny is not None:
        yield Problem("model.tiny", f'model.path is set too ("{path}"); keep one of the two')


def check_tiny(config: Config, _: Given) -> Iterator[Problem]:
    """A tiny model's sizes fit each other and leave room for a prompt."""
    tiny = config.model.tiny
    if tiny is None:
        return
    if tiny.hidden_size % tiny.num_heads:
        yield Problem("model.tiny.hidden_size", f"{tiny.hidden_size} is not divisible by num_heads {tiny.num_heads}")
    elif (size := tiny.hidden_size // tiny.num_heads) % 2:
        yield Problem(
            "model.tiny.hidden_size",
            f"{tiny.hidden_size} over num_heads {tiny.num_heads} makes heads of size {size}; rotary positions need an "
            "even size",
        )
    if tiny.num_heads % tiny.num_kv_heads:
        yield Problem("model.tiny.num_kv_heads", f"{tiny.num_kv_heads} does not divide num_heads {tiny.num_heads}")
    if draws(config) and config.generator.max_new_tokens >= tiny.max_length:
        yield Problem(
            "generator.max_new_tokens",
            f"{config.generator.max_new_tokens} leaves no room for a prompt in model.tiny.max_length {tiny.max_length}",
        )


def check_algorithm(config: Config, given: Given) -> Iterator[Problem]:
    """What is optimised, when it is to learn."""
    if given.purpose == "train":
        for check in ALGORITHM_CHECKS if draws(config) else FROM_DATA_CHECKS:
            yield from check(config)


def check_rewards(config: Config, given: Given) -> Iterator[Problem]:
    """At least one reward function where samples are scored; what is only evaluated may be compared with text."""
    learns = draws(config) and config.algorithm.advantage != "none" and given.purpose == "train"
    evaluates = draws(config) and (given.purpose == "evaluate" or config.evaluation.path is not None)
    needed = learns or (evaluates and not config.evaluation.metrics and given.purpose != "score")
    needed = needed and not learns_tasks(config)
    if needed and not config.rewards.functions and not given.has_rewards and config.environment is None:
        yield Problem(
            "rewards.functions",
            "no reward function: name one (`functions: [{function: math}]`; file.py:function or package.module:function"
            " for your own), or pass rewards= from Python",
        )


def check_minibatches(config: Config, _: Given) -> Iterator[Problem]:
    """Minibatches divide the prompts of a step."""
    num, prompts = config.algorithm.num_minibatches, config.loop.prompts_per_step
    if draws(config) and prompts % num:
        divisors = [str(n) for n in range(1, prompts + 1) if prompts % n == 0]
        yield Problem(
            "algorithm.num_minibatches",
            f"{num} does not divide loop.prompts_per_step {prompts}; expected one of {', '.join(divisors)}",
        )


def check_sampling(config: Config, _: Given) -> Iterator[Problem]:
    """Limits and stop conditions that do not contradict each other."""
    generator = config.generator
    if generator.min_new_tokens > generator.max_new_tokens:
        yield Problem(
            "generator.min_new_tokens",
            f"{generator.min_new_tokens} is more than generator.max_new_tokens {generator.max_new_tokens}",
        )
    if generator.min_new_tokens and generator.temperature != 1 and generator_engine(config) == "vllm":
        yield Problem(
            "generator.min_new_tokens",
            f"with engine vllm it needs generator.temperature 1, found {generator.temperature:g}: at others vLLM "
            "reports log-probs of a distribution without the end token, which the learner cannot reproduce",
        )
    if generator.stop and generator.min_new_tokens:
        yield Problem(
            "generator.min_new_tokens",
            "with generator.stop it means another thing in each engine (vLLM looks for stop strings behind it only); "
            "keep one of the two",
        )
    unserved = VLLM_UNSERVED.intersection(getattr(config.model.adapter, "target_modules", ()) or ())
    if generator_engine(config) == "vllm" and unserved and draws(config):
        yield Problem(
            "model.adapter.target_modules",
            f"vLLM serves no adapter on {', '.join(sorted(unserved))}; take it out, or use engine transformers",
        )
    if generator.ignore_eos and generator.stop:
        yield Problem(
            "generator.ignore_eos", "draws exactly max_new_tokens tokens, but generator.stop is set; keep one"
        )
    if generator.ignore_eos and generator.min_new_tokens:
        yield Problem(
            "generator.ignore_eos", "draws exactly max_new_tokens tokens, so generator.min_new_tokens means nothing"
        )
    if generator.ignore_eos and generator.stop_token_ids:
        yield Problem(
            "generator.ignore_eos", "draws exactly max_new_tokens tokens, but generator.stop_token_ids is set; keep one"
        )
    for index, text in enumerate(generator.stop):
        if not text:
            yield Problem(f"generator.stop.{index}", "is empty, so every completion would end at once")


def check_evaluation(config: Config, given: Given) -> Iterator[Problem]:
    """Something to evaluate on, and samples that can differ."""
    evaluation = config.evaluation
    if given.purpose != "train" and learns_tasks(config):
        yield Problem(
            "algorithm.type",
            "tasks: heads write no text, which is what rlft eval measures. Held-out rows are measured in training "
            "(tasks.N.held_out), and a checkpoint has a model of each task for transformers (tasks/<name>)",
        )
        return
    if given.purpose == "evaluate" and evaluation.path is None:
        yield Problem("evaluation.path", "nothing to evaluate on: give --data FILE")
    if evaluation.samples_per_prompt > 1 and evaluation.temperature == 0:
        yield Problem(
            "evaluation.samples_per_prompt",
            f"{evaluation.samples_per_prompt} samples at evaluation.temperature 0 are all the same; set a temperature "
            "above 0",
        )
    yield from _check_metrics(config)


def _check_metrics(config: Config) -> Iterator[Problem]:
    """Metrics of text and what they compare with, both or neither."""
    metrics, column = config.evaluation.metrics, config.evaluation.reference_column
    if metrics and column is None:
        yield Problem(
            "evaluation.reference_column",
            f"is empty, but evaluation.metrics ({', '.join(metrics)}) compare with it; name the right texts' column",
        )
    if column is not None and not metrics:
        yield Problem(
            "evaluation.reference_column",
            "has no effect, because evaluation.metrics is empty; name some, for instance [exact_match, f1]",
        )
    for name in sorted({name for name in metrics if metrics.count(name) > 1}):
        yield Problem("evaluation.metrics", f"{name} is there twice; keep one")


def check_mismatch(config: Config, _: Given) -> Iterator[Problem]:
    """A warning that comes before the stop."""
    warn, stop = config.loop.mismatch_warn, mismatch_stop(config)
    if warn is not None and warn >= stop:
        yield Problem(
            "loop.mismatch_warn",
            f"{warn:g} is never reached, because the run stops at {stop:g} (loop.mismatch_stop); expected less",
        )


def check_inline(config: Config, _: Given) -> Iterator[Problem]:
    """One of each role in one process."""
    if config.cluster.mode != "inline":
        return
    counts = {
        "generator.num_actors": config.generator.num_actors,
        "rewards.num_actors": config.rewards.num_actors,
        "scorer.num_actors": config.scorer.num_actors,
        "teacher.num_actors": config.teacher.num_actors,
        "learner.num_ranks": config.learner.num_ranks,
        "critic.num_ranks": config.critic.num_ranks,
    }
    for key, count in counts.items():
        if count > 1:
            yield Problem(key, f"{count}, but cluster.mode inline is one process; expected 1, or cluster.mode local")


def check_environment(config: Config, given: Given) -> Iterator[Problem]:
    """Actors only where there are some. `rlft eval` is one process whatever the run was."""
    environment = config.environment
    if environment is None or given.purpose != "train":
        return
    if config.cluster.mode == "inline" and environment.num_actors > 1:
        yield Problem(
            "environment.num_actors",
            f"{environment.num_actors}, but cluster.mode inline is one process; expected 1, or cluster.mode local",
        )


def check_colocated(config: Config, _: Given) -> Iterator[Problem]:
    """Generators and learner ranks in pairs, one of each on a GPU, that take turns."""
    if config.cluster.layout != "colocated" or not draws(config):
        return
    generator, learner = config.generator, config.learner
    if config.loop.max_staleness:
        yield Problem(
            "cluster.layout",
            f"colocated takes turns, but loop.max_staleness {config.loop.max_staleness} draws while the learner works; "
            "expected 0, or layout separate",
        )
    if generator.num_actors != learner.num_ranks:
        yield Problem(
            "generator.num_actors",
            f"{generator.num_actors}, but with cluster.layout colocated each learner rank shares its place with one "
            f"generator; expected learner.num_ranks, {learner.num_ranks}",
        )
    if generator.gpus != learner.gpus or generator.gpus > 1:
        yield Problem(
            "generator.gpus",
            f"{generator.gpus:g} beside learner.gpus {learner.gpus:g}; with cluster.layout colocated both are 1 (or 0)",
        )


def check_transport(config: Config, given: Given) -> Iterator[Problem]:
    """A way for weights that there can be between these two."""
    choice = config.cluster.weight_transport
    if choice in ("auto", "memory") or not draws(config) or given.purpose != "train":
        return
    ipc, gpus = choice == "ipc", {config.learner.gpus > 0, config.generator.gpus > 0}
    shared, stage = shares_gpus(config) and gpus == {True}, zero_stage(config.learner, config.model.dtype)
    reasons = (
        (config.model.adapter is not None, "brings whole weights, but model.adapter is set"),
        (
            ipc and not shared,
            "needs learner and generators on the same GPUs (cluster.layout colocated, gpus 1 for both)",
        ),
        (ipc and stage == 3, "maps whole tensors, of which there are none with learner.zero_stage 3"),
        (not ipc and config.cluster.mode == "inline", "is between processes, and cluster.mode inline is one"),
        (not ipc and len(gpus) == 2, "is between GPUs or between CPUs; only one of learner and generator has GPUs"),
        (not ipc and shared, "uses NCCL, which refuses two processes on one GPU (cluster.layout colocated)"),
    )
    for holds, why in reasons:
        if holds:
            yield Problem("cluster.weight_transport", f"{choice} {why}; expected auto or memory")
            return


def check_run(config: Config, _: Given) -> Iterator[Problem]:
    """A name that can be a folder's."""
    name = config.run.name
    if not name or name in (".", "..") or any(letter in name for letter in "/\\\0"):
        yield Problem("run.name", f'"{name}" cannot name a folder; expected a name without slashes')


def check_data(config: Config, given: Given) -> Iterator[Problem]:
    """Rows to train on, from one place only."""
    if learns_tasks(config):  # which have paths of their own
        if given.has_dataset:
            yield Problem("tasks", "read their own paths, so the dataset= that was passed would be ignored; keep one")
        return
    yield from check_mixture(config, given.has_dataset)
    if given.need_data and config.data.path is None and not config.data.mixture and not given.has_dataset:
        yield Problem("data.path", "nothing to train on: give --data.path FILE (or dataset= from Python)")
    if given.has_dataset and config.data.path is not None:
        yield Problem("data.path", f'"{config.data.path}" would be ignored, because dataset= was passed; keep one')
    if given.has_dataset and config.data.streaming:
        yield Problem("data.streaming", "has no effect, because dataset= was passed and is in memory; take it out")
    if config.data.too_long == "truncate" and learns_from(config.algorithm) != "examples":
        yield Problem("data.too_long", f"truncate {NO_CUTTING}")


def check_places(config: Config, _: Given) -> Iterator[Problem]:
    """Files and GPUs that are there."""
    yield from check_paths(config)
    yield from check_gpus(config)


def check_no_effect(config: Config, given: Given) -> Iterator[Problem]:
    """In training, no key that does nothing in this combination."""
    if given.purpose == "train":
        yield from check_unused(config)


CHECKS: tuple[Callable[[Config, Given], Iterator[Problem]], ...] = (
    check_run,
    check_model,
    check_tiny,
    check_data,
    check_algorithm,
    check_rewards,
    check_minibatches,
    check_sampling,
    check_evaluation,
    check_optimizers,
    check_adapter,
    check_quantized,
    check_mismatch,
    check_inline,
    check_environment,
    check_colocated,
    check_transport,
    check_places,
    check_no_effect,
)
CHECKS_OF_DATA = (check_data, lambda config, _: check_paths(config))
