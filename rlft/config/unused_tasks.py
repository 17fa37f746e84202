"""Which keys have no effect where several tasks are learned, and which have none where that is not so."""

from __future__ import annotations

from rlft.config.derived import learns_tasks
from rlft.config.unused_algorithm import Rule

TASK_RULES = (
    Rule(
        lambda config: not learns_tasks(config),
        ("tasks", "algorithm.gradient_surgery", "algorithm.task_temperature"),
        "algorithm.type is not tasks",
    ),
    Rule(
        learns_tasks,
        (
            "data.path", "data.split", "data.*_column", "data.system_prompt", "data.apply_chat_template",
            "data.train_on", "data.unusable", "data.mixture*", "data.streaming", "model.chat_template",
            "evaluation.path",
        ),
        "algorithm.type is tasks, and each task reads rows of its own (tasks.N.path, columns, held_out)",
    ),
    Rule(learns_tasks, ("learner.tokens_per_logit_chunk",), "algorithm.type is tasks, whose heads make few logits"),
    Rule(
        lambda config: learns_tasks(config) and not any(task.held_out for task in config.tasks),
        ("evaluation.*",),
        "no task has held_out rows, so nothing is evaluated",
    ),
)  # fmt: skip
