"""What must hold between optimizer, schedule, ZeRO stage and memory settings of learner and critic, and which of their
keys have no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from rlft.config.derived import decay_steps, moment_betas, uses_critic, zero_stage
from rlft.config.optimizers import OPTIMIZERS, OWN_KEYS
from rlft.config.problems import Problem
from rlft.config.roles import TrainedConfig
from rlft.config.schema import Config
from rlft.config.unused_algorithm import Rule

_FALL = ("linear", "cosine", "wsd")


def trained_roles(config: Config) -> Mapping[str, TrainedConfig]:
    """What is trained in this run, by the name of its section."""
    return {"learner": config.learner} | ({"critic": config.critic} if uses_critic(config) else {})


def _rules(role: str) -> Iterator[Rule]:
    def when(applies: Callable[[TrainedConfig], bool]) -> Callable[[Config], bool]:
        return lambda config: applies(getattr(config, role))

    for name, kind in OPTIMIZERS.items():
        keys = tuple(f"{role}.{key}" for key in OWN_KEYS if key not in kind.keys)
        has = f"has {' and '.join(kind.keys)}" if kind.keys else f"has none of {', '.join(OWN_KEYS)}"
        yield Rule(when(lambda t, n=name: t.optimizer == n), keys, f"{role}.optimizer is {name}, which {has}")
    for name in ("constant", "inverse_sqrt"):
        yield Rule(
            when(lambda t, n=name: t.schedule == n), (f"{role}.min_lr_ratio",),
            f"{role}.schedule is {name}; it needs linear, cosine or wsd",
        )  # fmt: skip
    yield Rule(when(lambda t: t.schedule != "wsd"), (f"{role}.decay_steps",), f"{role}.schedule is not wsd")
    yield Rule(
        when(lambda t: t.gpus == 0), (f"{role}.offload", f"{role}.offload_activations"),
        f"{role}.gpus is 0, so everything is in CPU memory anyway",
    )  # fmt: skip


OPTIMIZER_RULES = (*_rules("learner"), *_rules("critic"))


def check_optimizers(config: Config, given: object) -> Iterator[Problem]:
    """Learner and critic: a warm-up that ends, float32 master weights, an optimizer that can do what it is asked."""
    for role, trained in (("learner", config.learner), ("critic", config.critic)):
        yield from _check_course(role, trained, config.loop.steps)
        if config.model.dtype == "bfloat16" and trained.zero_stage == 0:
            yield Problem(
                f"{role}.zero_stage",
                "0 keeps no float32 master weights for model.dtype bfloat16; expected 1, 2 or 3, or leave it out",
            )
        for index, beta in enumerate(moment_betas(trained)):
            if not 0 <= beta < 1:
                yield Problem(f"{role}.betas.{index}", f"found {beta}, expected at least 0 and below 1")
    for role, trained in trained_roles(config).items():
        stage = zero_stage(trained, config.model.dtype)
        yield from _check_stage(role, trained, stage, config.model.dtype)
        yield from _check_offload(role, trained, stage)


def optimizer_notes(config: Config) -> Iterator[str]:
    """What must be known before the run starts."""
    for role, trained in trained_roles(config).items():
        if OPTIMIZERS[trained.optimizer].paged and trained.gpus == 0:
            yield (
                f"{role}.optimizer {trained.optimizer}: {role}.gpus is 0, so there is no GPU memory to move state out "
                "of, and nothing is paged"
            )


def _check_course(role: str, trained: TrainedConfig, steps: int) -> Iterator[Problem]:
    """A warm-up that ends, and behind it a decay that begins."""
    if trained.warmup_steps >= steps:
        yield Problem(
            f"{role}.warmup_steps",
            f"{trained.warmup_steps} never ends in a run of loop.steps {steps}; expected fewer",
        )
    elif trained.schedule == "wsd" and trained.warmup_steps + decay_steps(trained, steps) > steps:
        yield Problem(
            f"{role}.decay_steps",
            f"{decay_steps(trained, steps)} and {role}.warmup_steps {trained.warmup_steps} are more than loop.steps "
            f"{steps}; expected fewer",
        )


def _check_stage(role: str, trained: TrainedConfig, stage: int, dtype: str) -> Iterator[Problem]:
    """Whole matrices for optimizers that look at rows and columns: from stage 1 on a rank's share is one long row."""
    name = trained.optimizer
    if OPTIMIZERS[name].splits or stage == 0:
        return
    why = (
        f"{role}.zero_stage {stage} splits them"
        if trained.zero_stage is not None
        else f"{'several ranks' if dtype == 'float32' else f'model.dtype {dtype}'} would make {role}.zero_stage {stage}"
    )
    yield Problem(
        f"{role}.optimizer",
        f"{name} needs whole matrices, but {why}; expected {role}.zero_stage 0"
        f"{'' if dtype == 'float32' else ' with model.dtype float32'}, or another optimizer",
    )


def _check_offload(role: str, trained: TrainedConfig, stage: int) -> Iterator[Problem]:
    """An optimizer and a ZeRO stage that can be offloaded."""
    name, kind, offload = trained.optimizer, OPTIMIZERS[trained.optimizer], trained.offload
    if offload == "none":
        if kind.on_cpu and trained.gpus > 0:
            yield Problem(
                f"{role}.optimizer",
                f"{name} steps in CPU memory, but {role}.gpus is {trained.gpus:g}; set {role}.offload optimizer, or "
                "take adamw",
            )
        return
    if not kind.offloads or not kind.splits:
        able = ", ".join(n for n, k in OPTIMIZERS.items() if k.offloads and k.splits)
        yield Problem(f"{role}.offload", f"{offload}, but {role}.optimizer {name} stays on the GPU; expected {able}")
        return
    least = 3 if offload == "optimizer_and_weights" else 1
    if stage < least and trained.gpus > 0:  # without, offload has no effect, which is told elsewhere
        stages = "3" if least == 3 else "1, 2 or 3"
        yield Problem(f"{role}.offload", f"{offload} needs {role}.zero_stage {stages}, found {stage}; set it")
