"""What must hold between tasks that are learned side by side, and between them and other keys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from rlft.config.derived import learns_tasks, zero_stage
from rlft.config.problems import Problem
from rlft.config.schema import Config
from rlft.config.tasks import COLUMNS, TaskConfig

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def check_tasks(config: Config) -> Iterator[Problem]:
    """Tasks with names that tell them apart, keys that have an effect, and a learner that can do what they ask for."""
    if not learns_tasks(config):
        return
    if not config.tasks:
        yield Problem(
            "tasks",
            "is empty, but algorithm.type is tasks; expected at least one: `tasks: [{name: mood, kind: "
            "sequence_classification, path: mood.jsonl}]`",
        )
    seen: dict[str, int] = {}
    for i, task in enumerate(config.tasks):
        if not _NAME.fullmatch(task.name):
            yield Problem(
                f"tasks.{i}.name", f'"{task.name}" cannot name a folder; expected letters, digits, _ and - only'
            )
        elif task.name.lower() in seen:
            yield Problem(
                f"tasks.{i}.name",
                f'"{task.name}" is the name of tasks.{seen[task.name.lower()]} too; give it another name',
            )
        seen.setdefault(task.name.lower(), i)
        for key, text in _own(task):
            yield Problem(f"tasks.{i}.{key}", text)
        for key, text in _no_effect(task, config):
            yield Problem(f"tasks.{i}.{key}", f"has no effect, because {text}; take it out")
    yield from _check_stage(config)


def _own(task: TaskConfig) -> Iterator[tuple[str, str]]:
    """Key and text of what is wrong with a task alone."""
    known = COLUMNS[task.kind]
    for name in task.columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            meant = f", did you mean {near[0]}?" if near else "."
            yield "columns", f'has "{name}"{meant} Expected any of {", ".join(known)} for kind {task.kind}'
    if task.kind == "token_classification":
        words, spans = {"tokens", "tags"} & {*task.columns}, {"text", "spans"} & {*task.columns}
        if words and spans:
            both = ", ".join([*sorted(words), *sorted(spans)])
            yield "columns", f"names {both}; expected either tokens and tags, or text and spans"
    for label in sorted({label for label in task.labels if task.labels.count(label) > 1}):
        yield "labels", f'has "{label}" twice; keep one'
    if "" in task.labels:
        yield "labels", "has an empty one; give it a name"
    if len(task.labels) == 1 and task.problem == "one_label":
        yield "labels", f'has only "{task.labels[0]}", so there is nothing to learn; expected at least 2'


def _no_effect(task: TaskConfig, config: Config) -> Iterator[tuple[str, str]]:
    """Key and reason of what is set and does nothing."""
    if task.problem != "one_label" and task.kind != "sequence_classification":
        yield "problem", f"kind is {task.kind}; only sequence_classification has such a choice"
    if task.labels and task.kind == "question_answering":
        yield "labels", "kind is question_answering, which has none"
    elif task.labels and task.kind == "sequence_classification" and task.problem == "number":
        yield "labels", "problem is number"
    if task.held_out_split is not None and task.held_out is None:
        yield "held_out_split", "held_out is empty"
    if task.share != 1 and config.algorithm.task_temperature is not None:
        yield "share", "algorithm.task_temperature takes shares from the numbers of rows"
    if task.adapter == "own" and config.model.adapter is None:
        yield "adapter", "model.adapter is empty, and all weights are trained by all tasks"


def _check_stage(config: Config) -> Iterator[Problem]:
    """Whole gradients on every rank where they are looked at one task at a time."""
    stage = zero_stage(config.learner, config.model.dtype)
    if stage == 0:
        return
    needs = "expected learner.zero_stage 0 (which needs model.dtype float32)"
    if config.algorithm.gradient_surgery != "none":
        yield Problem(
            "algorithm.gradient_surgery",
            f"{config.algorithm.gradient_surgery} needs each task's whole gradient on every rank, but ZeRO stage "
            f"{stage} splits it; {needs}",
        )
    for i, task in enumerate(config.tasks):
        if task.adapter == "own" and config.model.adapter is not None:
            yield Problem(
                f"tasks.{i}.adapter",
                f"own: ranks then work on different adapters at a time, but ZeRO stage {stage} wants the same; {needs}",
            )
