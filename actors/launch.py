"""From a configuration to a finished run: build the roles, in this process or on a cluster, and hand them to a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.process import prepare
from rewards.combine import RewardSet
from rlft.algorithms.users import load_loss
from rlft.config import Config, derived
from rlft.config.data import DataConfig
from rlft.config.derived import draws, environment_weight, learner_kind, learns_tasks, uses_teacher, weight_transport
from rlft.config.load import dump_config
from rlft.data.learning import load_held_out_rows, load_learning_rows
from rlft.data.mixture import naming
from rlft.data.sources import Prompts, all_prompts, with_sources
from rlft.data.tasks import load_tasks
from rlft.data.tokenizer import load_tokenizer
from rlft.engines.build import check_engine
from rlft.environments.build import configured_environment, make_turns
from rlft.environments.load import BoundEnvironment
from rlft.evaluation.accuracy import Evaluation
from rlft.evaluation.held_out import HeldOut
from rlft.evaluation.tasks import HeldOutTasks
from rlft.evaluation.text_metrics import check_installed
from rlft.loops import offline, on_policy
from rlft.loops.rollouts import sampling_params
from rlft.models.load import check_language_model, counting_virtual, window
from rlft.models.quantization import check_quantization
from rlft.models.tiny import make_tiny_model
from rlft.runs.console import Console
from rlft.runs.folder import RunFolder
from rlft.runs.run import Run
from rlft.runs.store import RowStore
from rlft.samples import Group

WEIGHT_PATHS = {  # for people
    "memory": "through shared memory and the object store",
    "collective": "by broadcast from the learner (NCCL between GPUs, gloo between CPUs)",
    "ipc": "without being moved: they map the learner's own on the GPU that both share",
}


@dataclass(frozen=True)
class RunResult:
    """What a run leaves."""

    folder: Path
    checkpoint: Path | None  # a Hugging Face model
    steps: int
    metrics: dict[str, float]  # the newest value of each
    examples: tuple[Group, ...]  # groups of the last evaluation


def train(
    config: Config,
    *,
    rewards: Sequence[Callable[..., Any]] = (),
    dataset: Any = None,
    resume: str | Path | None = None,
) -> RunResult:
    """Run a configuration to its end. Data, rewards and model are looked at before any actor starts."""
    inline = config.cluster.mode == "inline"
    prepare(config, (config.learner.gpus + config.generator.gpus + config.scorer.gpus) if inline else 0)
    check_quantization(config.model, _learner_device(config))
    reward_set, environment = None, None
    if draws(config):
        check_engine(config)
        if ":" in config.algorithm.type:
            load_loss(config.algorithm.type)
        environment = configured_environment(config)
        check_installed(config.evaluation.metrics)
        optional = config.algorithm.advantage == "none"
        reward_set = RewardSet(config.rewards, rewards, environment_weight(config), may_be_empty=optional)
    path = Path(config.run.dir, config.run.name).absolute()  # a reward function may change the working directory
    with RunFolder.create(path, dump_config(config), None if resume is None else str(resume)) as folder:
        config = with_model(config, folder.path, anew=folder.resumed is None)
        tokenizer = load_tokenizer(str(config.model.path), config.model.chat_template)
        if learner_kind(config) == "learner":
            check_language_model(str(config.model.path))
        console = Console(config.loop.steps, title=config.run.name)
        if reward_set is None:
            return _offline(config, folder, tokenizer, console, dataset)
        return _on_policy(config, folder, tokenizer, console, reward_set, environment, dataset)


def _learner_device(config: Config) -> str:
    """Where the learner computes, as far as this process can see: a driver may have no GPU."""
    import torch

    return "cuda" if config.learner.gpus > 0 and torch.cuda.is_available() else "cpu"


def with_model(config: Config, folder: Path, anew: bool = False) -> Config:
    """Make the small model of `model.tiny` in the run folder (once, or `anew`) and point model.path at it."""
    if config.model.tiny is None:
        return config
    target = (folder / "model").resolve()
    if anew or not (target / "config.json").exists():
        make_tiny_model(config.model.tiny, target, config.run.seed)
    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(target), "tiny": None})})


def _on_policy(
    config: Config, folder: RunFolder, tokenizer: Any, console: Console, rewards: RewardSet,
    environment: BoundEnvironment | None, dataset: Any,
) -> RunResult:  # fmt: skip
    prompts = _prompts(config, tokenizer, config.data, environment, rows=dataset)
    for first in prompts.firsts:
        with naming(first.source):
            rewards.check_columns(first.columns)
    evaluation = load_evaluation(config, tokenizer, environment, has_rewards=not rewards.is_empty)
    with Run(folder, config, tokenizer, console) as run:
        console.message(f"data: {prompts.description}")
        if not run.is_done():
            with on_policy_roles(config, rewards, environment) as roles:
                run.tell_places(roles.places)
                run.tell_facts(roles.facts)
                console.message(f"weights reach the generators {WEIGHT_PATHS[weight_transport(config)]}")
                on_policy.train(roles, prompts, evaluation, run, config)
        return _result(run, evaluation)


def _offline(config: Config, folder: RunFolder, tokenizer: Any, console: Console, dataset: Any) -> RunResult:
    limit, held_out, again = window(str(config.model.path), config.model.adapter), None, False
    if learns_tasks(config):
        examples, of_tasks = load_tasks(config, tokenizer, limit)
        config = config.model_copy(update={"tasks": [rows.task for rows in examples.rows]})  # with the labels found
        held_out = HeldOutTasks(of_tasks) if of_tasks else None
    else:
        with counting_virtual(config.model.adapter):
            examples = load_learning_rows(config, tokenizer, limit, dataset)
        again = examples.repeats(config.loop.steps * config.loop.prompts_per_step)
        if config.evaluation.path is not None:
            with counting_virtual(config.model.adapter):
                held_out = HeldOut(load_held_out_rows(config, tokenizer, limit, examples), config.algorithm)
    with Run(folder, config, tokenizer, console) as run:
        console.message(f"data: {examples.description}")
        if not run.is_done():
            with offline_roles(config) as roles:
                run.tell_places(roles.places)
                store = RowStore(folder.path / "teacher_top") if again and uses_teacher(config) else None
                offline.train(roles, examples, run, config, held_out, store)
        return _result(run, None)


def _result(run: Run, evaluation: Evaluation | None) -> RunResult:
    run.console.message(f"finished step {run.step}. Run folder: {run.folder.path}  Model: {run.last_checkpoint}")
    examples = () if evaluation is None else tuple(evaluation.last)
    return RunResult(run.folder.path, run.last_checkpoint, run.step, dict(run.last_metrics), examples)


def _prompts(
    config: Config, tokenizer: Any, data: DataConfig, environment: BoundEnvironment | None, rows: Any = None,
    path: str | None = None,
) -> Prompts:  # fmt: skip
    limit = derived.window(config, window(str(config.model.path), config.model.adapter))
    with counting_virtual(config.model.adapter):
        prompts = all_prompts(
            data, tokenizer, window=limit, max_new_tokens=config.generator.max_new_tokens, seed=config.run.seed,
            rows=rows, path=path, tools=environment.tools if environment else None,
        )  # fmt: skip
    if environment is not None:
        for first in prompts.firsts:
            with naming(first.source):
                make_turns(config, environment).check(chat=first.messages is not None)
    return prompts


def load_evaluation(
    config: Config, tokenizer: Any, environment: BoundEnvironment | None = None, has_rewards: bool = True
) -> Evaluation | None:
    """The held-out prompts, if there are any, and how to draw for them."""
    settings = config.evaluation
    if settings.path is None:
        return None
    alone = {"mixture": [], "streaming": False, "shuffle": False}
    data = config.data.model_copy(update={"max_rows": settings.max_rows, **alone})
    held_out = _prompts(config, tokenizer, data, environment, path=settings.path)
    prompts = with_sources(held_out.take(0, len(held_out)), settings.source_column)
    params = replace(sampling_params(config), num_samples=settings.samples_per_prompt, temperature=settings.temperature)
    return Evaluation(prompts, params, config.run.seed, settings, has_rewards)


@contextmanager
def on_policy_roles(
    config: Config, rewards: RewardSet, environment: BoundEnvironment | None = None
) -> Iterator[on_policy.Roles]:
    """All roles of an on-policy run, for the length of this block."""
    if config.cluster.mode == "inline":
        from actors import inline

        with inline.on_policy_roles(config, rewards, environment) as roles:
            yield roles
    else:
        from actors import remote

        with remote.on_policy_roles(config, rewards, environment) as roles:
            yield roles


@contextmanager
def offline_roles(config: Config) -> Iterator[offline.OfflineRoles]:
    """All roles of a run that learns from data, for the length of this block."""
    if config.cluster.mode == "inline":
        from actors import inline

        yield inline.offline_roles(config)
    else:
        from actors import remote

        with remote.offline_roles(config) as roles:
            yield roles
