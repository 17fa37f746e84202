"""One rank of a model that learns several tasks.

What a rank is given is already cut into micro-batches, each of rows whose tasks go through one adapter, with gradient
surgery of one task alone. In the configuration it is the learner. Knows nothing about Ray or how often it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlft.algorithms import tasks as losses
from rlft.algorithms.statistics import Mean, Stats, joined, mean_of
from rlft.algorithms.surgery import conflicts, pcgrad, surgery_orders
from rlft.batch import make_pack
from rlft.config import Config
from rlft.config.derived import zero_stage
from rlft.config.tasks import TaskConfig
from rlft.engines.deepspeed import Rendezvous, ZeroEngine, join
from rlft.engines.scoring import EMPTY
from rlft.engines.task_export import save_tasks
from rlft.engines.updating import RankUpdate
from rlft.models.quantization import write_quantization
from rlft.models.tasks import TaskPart, adapter_of, inner, load_tasks_model, task_parts
from rlft.samples import Group

_LOSSES = {"one_label": losses.one_label, "many_labels": losses.many_labels, "number": losses.number}


class TaskRank:
    """A rank of the model with several heads."""

    def __init__(self, config: Config, rendezvous: Rendezvous, device: str = "cpu") -> None:
        """Load the model, join the other ranks and hand the model to DeepSpeed. The tasks know all their labels."""
        self._config, self._where, self._device = config, rendezvous, torch.device(device)
        self._tasks = config.tasks
        join(rendezvous, self._device)
        torch.manual_seed(config.run.seed * 1_000_003 + rendezvous.rank)
        self._model = load_tasks_model(config.model, config.tasks, device, config.run.seed)
        if config.learner.gradient_checkpointing:
            body: Any = inner(self._model.body)
            body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            body.enable_input_require_grads()
        rates = {
            name: (task.lr or config.learner.lr) / config.learner.lr
            for task, head in zip(config.tasks, self._model.heads, strict=True)
            for name, parameter in self._model.named_parameters()
            if any(parameter is p for p in head.parameters())
        }
        stage, dtype = zero_stage(config.learner, config.model.dtype), config.model.dtype
        self._engine = ZeroEngine(self._model, config.learner, stage, dtype, rendezvous, self._device, rates)
        self._apart = config.algorithm.gradient_surgery == "pcgrad"
        self._run = (
            self._model if self._apart else self._engine
        )  # whose gradients DeepSpeed does not look after, or does

    def outputs(self, micro_batches: Sequence[Sequence[Group]]) -> list[list[list[np.ndarray]]]:
        """What the row's head says, [micro-batch][group][sample] -> f32 [P, C] in each of its places."""
        self._engine.eval()
        return [self._outputs(groups) for groups in micro_batches]

    @torch.no_grad()
    def _outputs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        logits, parts = self._forward(groups or [EMPTY])
        rows = {  # of each task what is left of it
            task.name: iter(each.cpu().split(part.sizes))
            for task, part, each in zip(self._tasks, parts, logits, strict=True)
            if part is not None
        }
        return [[next(rows[s.labels.task]).numpy() for s in g.samples if s.labels is not None] for g in groups]

    def update(
        self, micro_batches: Sequence[Sequence[Group]], counts: Sequence[int], lr: float, step: int
    ) -> RankUpdate:
        """One optimizer step. counts: of each task, the rows (or words) that the whole update has. Every rank is given
        as many micro-batches as every other."""
        self._engine.train()
        learn = self._learn_apart if self._apart else self._learn
        loss, stats = learn(micro_batches, counts, step)
        grad_norm, applied = self._engine.step(lr)
        return RankUpdate(loss, stats, grad_norm, applied)

    def _learn(self, micro_batches: Sequence[Sequence[Group]], counts: Sequence[int], step: int) -> tuple[float, Stats]:
        """Forward and backward of each micro-batch: the sum of the losses, and their statistics."""
        total, parts = 0.0, list[Stats]()
        for number, groups in enumerate(micro_batches, 1):
            loss, stats = self._loss(groups or [EMPTY], counts)
            total += float(loss.detach())
            self._engine.accumulate(loss, number == len(micro_batches))
            parts.append(stats)
        return total, joined(parts)

    def _learn_apart(
        self, micro_batches: Sequence[Sequence[Group]], counts: Sequence[int], step: int
    ) -> tuple[float, Stats]:
        """The same, with a gradient of the shared weights for each task, which are made into one."""
        own_names = self._model.own_parameters()
        trained = [(n, p) for n, p in self._model.named_parameters() if p.requires_grad]
        shared, own = [p for n, p in trained if n not in own_names], [p for n, p in trained if n in own_names]
        by_task = {task.name: _zeros(shared) for task, count in zip(self._tasks, counts, strict=True) if count}
        of_own, total, parts = _zeros(own), 0.0, list[Stats]()
        for groups in micro_batches:
            if not groups:
                continue
            loss, stats = self._loss(groups, counts)
            total += float(loss.detach())
            loss.backward()
            (name,) = {s.labels.task for g in groups for s in g.samples if s.labels is not None}
            by_task[name] += _taken(shared)
            of_own += _taken(own)
            parts.append(stats)
        gradients = torch.stack([self._engine.add_over_ranks(gradient) for gradient in by_task.values()])
        orders = surgery_orders(self._config.run.seed, step, len(gradients))
        self._engine.put_gradient(shared, pcgrad(gradients, orders))
        self._engine.put_gradient(own, self._engine.add_over_ranks(of_own))
        against, pairs = conflicts(gradients)
        if self._where.rank == 0:
            parts.append({"tasks/conflicts": Mean(against, pairs)})
        return total, joined(parts)

    def _forward(self, groups: Sequence[Group]) -> tuple[list[Tensor], list[TaskPart | None]]:
        parts = task_parts(groups, self._tasks, self._device)
        if self._config.model.adapter is not None:
            first = next((task for task, part in zip(self._tasks, parts, strict=True) if part is not None), None)
            self._model.use_adapter(adapter_of(first or self._tasks[0]))
        return self._run(make_pack(groups, device=self._device), parts), parts

    def _loss(self, groups: Sequence[Group], counts: Sequence[int]) -> tuple[Tensor, Stats]:
        """The part of the sum that these rows are: each task's losses, divided by its count, times its weight."""
        logits, parts = self._forward(groups)
        total, stats = torch.zeros((), device=self._device), Stats()
        for task, part, each, count in zip(self._tasks, parts, logits, counts, strict=True):
            if part is None:
                total = total + each.sum() * 0.0
                continue
            judged = _judge(task, part, each)
            total = total + judged.loss.sum() * (task.weight / count)
            stats[f"tasks/{task.name}/loss"] = mean_of(judged.loss)
            if judged.right is not None:
                stats[f"tasks/{task.name}/accuracy"] = mean_of(judged.right)
        return total, stats

    def save(self, folder: Path) -> None:
        """The model and each task as transformers loads it into `folder` (see rlft.engines.task_export), DeepSpeed's
        and random state into `folder`/learner."""
        save_tasks(self._model, self._engine, folder, self._where.rank)
        if self._where.rank == 0:
            for target in (folder, *(folder / "tasks" / task.name for task in self._tasks)):
                write_quantization(self._config.model, target)
        self._engine.save(folder / "learner")

    def restore(self, folder: Path) -> None:
        """Back to what `save` wrote."""
        self._engine.restore(folder / "learner")


def _judge(task: TaskConfig, part: TaskPart, logits: Tensor) -> losses.Judged:
    if task.kind == "question_answering":
        return losses.answer_span(logits, part.labels, part.sizes)
    return _LOSSES[task.problem](logits, part.labels)


def _zeros(parameters: Sequence[Tensor]) -> Tensor:
    """f32 [P] for the gradients of all of them."""
    device = parameters[0].device if parameters else None
    return torch.zeros(sum(p.numel() for p in parameters), device=device)


def _taken(parameters: Sequence[Tensor]) -> Tensor:
    """Their gradients, one behind the other, f32 [P]; they have none afterwards."""
    parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return torch.cat([part.float() for part in parts]) if parts else torch.zeros(0)
