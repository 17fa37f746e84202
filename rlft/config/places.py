"""Whether the files and GPUs that a configuration asks for are there."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from rlft.config.derived import draws, starts_scorer, uses_critic, uses_teacher
from rlft.config.problems import Problem, near_files
from rlft.config.schema import Config

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".pq", ".gz")


def check_paths(config: Config) -> Iterator[Problem]:
    """Files and folders that do not exist. A name on the Hub is left to whoever loads it."""
    models = {"model": config.model.path, "teacher": config.teacher.path, "critic": config.critic.path}
    for role, model in models.items():
        if model and _is_local_model(model) and not Path(model).expanduser().exists():
            yield Problem(f"{role}.path", f'"{model}" does not exist{near_files(Path(model).expanduser())}')
    sources = [(f"data.mixture.{i}", source) for i, source in enumerate(config.data.mixture)]
    data = [("data.path", config.data.path), ("evaluation.path", config.evaluation.path)]
    for i, task in enumerate(config.tasks):
        data += [(f"tasks.{i}.path", task.path), (f"tasks.{i}.held_out", task.held_out)]
    for key, path in data + [(f"{place}.path", source.path) for place, source in sources]:
        if path and (_is_local(path) or path.endswith(DATA_SUFFIXES)) and not Path(path).expanduser().exists():
            yield Problem(key, f'"{path}" does not exist{near_files(Path(path).expanduser(), DATA_SUFFIXES)}')
    templates = [("model", config.model.chat_template)] + [(place, source.chat_template) for place, source in sources]
    for place, template in templates:
        if template and not Path(template).expanduser().is_file():
            near = near_files(Path(template).expanduser())
            yield Problem(f"{place}.chat_template", f'"{template}" is no file{near}')
    named = {f"rewards.functions.{i}.function": reward.function for i, reward in enumerate(config.rewards.functions)}
    if config.environment is not None:
        named["environment.function"] = config.environment.function
    if ":" in config.algorithm.type:
        named["algorithm.type"] = config.algorithm.type
    for key, function in named.items():
        file, colon, _ = function.rpartition(":")
        if colon and file.endswith(".py") and not Path(file).expanduser().is_file():
            near = near_files(Path(file).expanduser(), (".py",))
            yield Problem(key, f'the file "{file}" does not exist{near}')


def _is_local(path: str) -> bool:
    return path.startswith((".", "/", "~"))


def _is_local_model(path: str) -> bool:
    first = path.split("/", 1)[0]
    return _is_local(path) or path.endswith(("/", os.sep)) or ("/" in path and Path(first).exists())


def check_gpus(config: Config) -> Iterator[Problem]:
    """More GPUs than this machine has. In mode ray the cluster decides; inline all roles share one GPU."""
    mode = config.cluster.mode
    wanted = {key: count for key, count in _gpus_by_role(config).items() if count > 0}
    if mode == "ray" or not wanted:
        return
    there, total = count_gpus(), sum(wanted.values())
    if (total if mode == "local" else 1) <= there:
        return
    roles = ", ".join(f"{key.partition('.')[0]} {count:g}" for key, count in wanted.items())
    asked = f"the roles ask for {total:g} ({roles})" if mode == "local" else f"asked for by {', '.join(wanted)}"
    yield Problem(
        next(iter(wanted)),
        f"this machine has {there} GPU{'' if there == 1 else 's'}, {asked}; lower gpus, or use cluster.mode ray with a "
        "cluster that has them",
    )


def _gpus_by_role(config: Config) -> dict[str, float]:
    """GPUs of the roles that will be started, by key."""
    learner, generator, rewards, scorer = config.learner, config.generator, config.rewards, config.scorer
    wanted = {"learner.gpus": learner.num_ranks * learner.gpus}
    if starts_scorer(config):
        wanted["scorer.gpus"] = scorer.num_actors * scorer.gpus
    if uses_teacher(config):
        wanted["teacher.gpus"] = config.teacher.num_actors * config.teacher.gpus
    if draws(config):
        if config.cluster.layout != "colocated":  # then they are the learner's
            wanted["generator.gpus"] = generator.num_actors * generator.gpus
        wanted["rewards.gpus"] = rewards.num_actors * rewards.gpus
        if config.environment is not None:
            wanted["environment.gpus"] = config.environment.num_actors * config.environment.gpus
        if uses_critic(config):
            wanted["critic.gpus"] = config.critic.num_ranks * config.critic.gpus
    return wanted


def count_gpus() -> int:
    """GPUs that this process can use."""
    try:
        import torch  # heavy, so only when a GPU is asked for
    except ImportError:
        return len(glob.glob("/dev/nvidia[0-9]*"))
    return torch.cuda.device_count()
