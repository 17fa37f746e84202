"""tasks: what `algorithm.type: tasks` learns side by side, each with rows and a head of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlft.config.base import Section

TaskKind = Literal["sequence_classification", "token_classification", "question_answering"]
Problem = Literal["one_label", "many_labels", "number"]

COLUMNS: dict[str, tuple[str, ...]] = {  # what a row has, by the name that `columns` calls it
    "sequence_classification": ("text", "pair", "label"),
    "token_classification": ("tokens", "tags", "text", "spans"),
    "question_answering": ("context", "question", "answers"),
}


class TaskConfig(Section):
    """tasks: heads that are trained together on one model, and the rows of each."""

    name: str
    """Names its metrics and its folder in checkpoints."""
    kind: TaskKind
    """`sequence_classification`: a label for a text (or a pair). `token_classification`: one for each word of it.
    `question_answering`: where in a context the answer is."""
    path: str
    """JSONL, JSON or Parquet file, a folder saved by `datasets`, or the name of a data set on the Hub."""
    split: str = "train"
    """The split, for data sets that have several."""
    held_out: str | None = None
    """Held-out rows, read like path. Empty: this task is not evaluated."""
    held_out_split: str | None = None
    """Their split. Empty: the same as split."""
    columns: dict[str, str] = {}
    """Columns that are not named as expected, for instance {text: sentence}. Expected are `text`, `label` and, only if
    it is named here, `pair` (a second text); `tokens` and `tags`, or `text` and `spans` ([start, end, label] each);
    `context`, `question` and `answers`."""
    problem: Problem = "one_label"
    """For sequence_classification. `one_label`: one of the labels. `many_labels`: a list of any of them. `number`:
    regression."""
    labels: list[str] = []
    """All labels, in order; numbers in the data are then places in it, from 0. Empty: those that are in the data."""
    share: float = Field(default=1.0, gt=0)
    """Rows of this task in each step, in proportion to the other tasks' shares. Not with algorithm.task_temperature."""
    weight: float = Field(default=1.0, gt=0)
    """Factor of its loss, which is the mean over its rows (token_classification: over its words) in a step."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of its head, on the learner's schedule. Empty: learner.lr."""
    adapter: Literal["shared", "own"] = "shared"
    """With model.adapter: one adapter for all tasks that share it, or one for this task alone."""
