"""Rows that are made instead of read: the tasks of reasoning-gym, named by a path like
"reasoning_gym:countdown?size=2000&seed=7&max_numbers=5".

The same path gives the same rows everywhere, so a reward needs no more than the path and a row's number to have the
task again. `reasoning_gym` is imported only when it is needed.
"""

from __future__ import annotations

import difflib
import json
from typing import Any
from urllib.parse import parse_qsl

from rlft.errors import UserError

PREFIX = "reasoning_gym:"
EXPECTED = f"{PREFIX}TASK?size=1000&seed=1, with any of the task's own settings behind them"


def is_procedural(path: str) -> bool:
    """Whether a path names a task and no file."""
    return path.startswith(PREFIX)


def parse_path(path: str) -> tuple[str, dict[str, Any]]:
    """The task's name and its settings. Raises UserError for what is no name=value."""
    task, _, query = path.removeprefix(PREFIX).partition("?")
    settings: dict[str, Any] = {}
    for piece in query.split("&") if query else []:
        pairs = parse_qsl(piece, keep_blank_values=True)
        if "=" not in piece or not pairs or pairs[0][0] in settings:
            raise UserError(f"data.path {path!r}: found {piece!r} behind the question mark. Expected {EXPECTED}.")
        name, text = pairs[0]
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return task, settings


def open_task(path: str) -> Any:
    """The data set of reasoning-gym that a path names. Raises UserError when the library is not installed, there is no
    such task, or it does not take these settings."""
    task, settings = parse_path(path)
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(
            f"data.path {path!r} needs reasoning-gym, which cannot be imported ({error}). Install it: "
            "pip install 'rlft[reasoning-gym]'."
        ) from None
    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {len(DATASETS)}: {', '.join(DATASETS)}."
        raise UserError(f"data.path {path!r}: reasoning-gym has no task {task!r}. {hint}")
    if type(settings.get("size", 1)) is not int:
        raise UserError(f"data.path {path!r}: size is {settings['size']!r}; expected a whole number.")
    try:
        return reasoning_gym.create_dataset(task, **settings)
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(
            f"data.path {path!r}: the task does not take these settings: {error}. Expected {EXPECTED}."
        ) from None


def make_rows(path: str, max_rows: int | None) -> list[dict[str, Any]]:
    """The rows of a task: `prompt`, one right `answer`, and for the reward `reasoning_gym` (the path) and `task_row`
    (the number, from 0)."""
    data = open_task(path)
    size = len(data) if max_rows is None else min(max_rows, len(data))
    rows = []
    for number in range(size):
        entry = data[number]
        answer = "" if entry["answer"] is None else str(entry["answer"])
        rows.append({"prompt": entry["question"], "answer": answer, "reasoning_gym": path, "task_row": number})
    return rows
