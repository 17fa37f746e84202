"""How well the heads of several tasks do on rows that they do not learn from.

Knows nothing about how rows are read or how the model is held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlft.config.tasks import TaskConfig
from rlft.data.task_rows import OUTSIDE
from rlft.data.tasks import TaskRows
from rlft.evaluation.text_metrics import is_match, token_f1
from rlft.roles import Metrics
from rlft.samples import Group


class HeldOutTasks:
    """Held-out rows of tasks. Called as rlft.evaluation.held_out.HeldOut."""

    def __init__(self, rows: Sequence[TaskRows]) -> None:
        self._rows = list(rows)

    def __call__(self, learner: Any, reference: object) -> Metrics:
        """eval/<name>/<metric> of each task. One label: accuracy. Many labels: accuracy (of rows all of whose labels
        are right) and f1 (of all labels given). Numbers: mse, correlation (Pearson's). Words: accuracy, and where the
        labels are B-, I- and O the f1 of spans. Questions: exact_match and f1 as in SQuAD."""
        outputs = iter(learner.outputs([group for rows in self._rows for group in rows.groups]))
        metrics: Metrics = {}
        for rows in self._rows:
            found = _MEASURES[_kind(rows.task)](rows.task, rows.groups, [next(outputs) for _ in rows.groups])
            metrics |= {f"eval/{rows.task.name}/{name}": value for name, value in found.items()}
        return metrics


def _kind(task: TaskConfig) -> str:
    return task.problem if task.kind == "sequence_classification" else task.kind


def _values(groups: Sequence[Group]) -> list[np.ndarray]:
    return [group.samples[0].labels.values for group in groups]  # type: ignore[union-attr]


def _of_labels(task: TaskConfig, groups: Sequence[Group], outputs: Sequence[np.ndarray]) -> Metrics:
    right = [logits.argmax(-1) == values for logits, values in zip(outputs, _values(groups), strict=True)]
    return {"accuracy": float(np.concatenate(right).mean())}


def _of_many(task: TaskConfig, groups: Sequence[Group], outputs: Sequence[np.ndarray]) -> Metrics:
    said, wanted = np.concatenate(outputs) > 0, np.concatenate(_values(groups)) > 0.5
    both, all_of_them = int((said & wanted).sum()), int(said.sum() + wanted.sum())
    return {"accuracy": float((said == wanted).all(-1).mean()), "f1": 2 * both / all_of_them if all_of_them else 1.0}


def _of_numbers(task: TaskConfig, groups: Sequence[Group], outputs: Sequence[np.ndarray]) -> Metrics:
    said, wanted = np.concatenate(outputs)[:, 0].astype(np.float64), np.concatenate(_values(groups)).astype(np.float64)
    metrics = {"mse": float(((said - wanted) ** 2).mean())}
    if said.std() > 0 and wanted.std() > 0:
        metrics["correlation"] = float(np.corrcoef(said, wanted)[0, 1])
    return metrics


def _of_words(task: TaskConfig, groups: Sequence[Group], outputs: Sequence[np.ndarray]) -> Metrics:
    metrics = _of_labels(task, groups, outputs)
    if all(label == OUTSIDE or label[:2] in ("B-", "I-") for label in task.labels):
        both = [
            [tagged_spans([task.labels[int(i)] for i in row]) for row in (logits.argmax(-1), values)]
            for logits, values in zip(outputs, _values(groups), strict=True)
        ]
        hits, all_of_them = sum(len(a & b) for a, b in both), sum(len(a) + len(b) for a, b in both)
        metrics["f1"] = 2 * hits / all_of_them if all_of_them else 1.0
    return metrics


def _of_questions(task: TaskConfig, groups: Sequence[Group], outputs: Sequence[np.ndarray]) -> Metrics:
    matches, overlaps = list[float](), list[float]()
    for group, logits in zip(groups, outputs, strict=True):
        labels = group.samples[0].labels
        assert labels is not None and labels.spans is not None
        first, last = best_span(logits)
        said = group.prompt.text[labels.spans[first, 0] : labels.spans[last, 1]]
        matches.append(max(is_match(said, answer) for answer in labels.answers))
        overlaps.append(max(token_f1(said, answer) for answer in labels.answers))
    return {"exact_match": float(np.mean(matches)), "f1": float(np.mean(overlaps))}


_MEASURES: dict[str, Callable[[TaskConfig, Sequence[Group], Sequence[np.ndarray]], Metrics]] = {
    "one_label": _of_labels,
    "many_labels": _of_many,
    "number": _of_numbers,
    "token_classification": _of_words,
    "question_answering": _of_questions,
}


def best_span(logits: np.ndarray) -> tuple[int, int]:
    """First and last place of the likeliest answer: the largest start + end logit, the end not before the start.
    logits f32 [P, 2]."""
    starts = np.maximum.accumulate(logits[:, 0])
    last = int((starts + logits[:, 1]).argmax())
    return int(logits[: last + 1, 0].argmax()), last


def tagged_spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first word, the word behind the last, label) of each span that the tags B-x, I-x and O make. An I- that
    continues nothing begins a span, as in the CoNLL-2003 evaluation (Tjong Kim Sang and De Meulder 2003)."""
    spans, begin = set(), 0
    for i, tag in enumerate([*tags, OUTSIDE]):
        before = tags[i - 1] if i else OUTSIDE
        continues = tag.startswith("I-") and before[1:] == tag[1:]
        if before != OUTSIDE and not continues:
            spans.add((begin, i, before[2:]))
        if tag != OUTSIDE and not continues:
            begin = i
    return spans
