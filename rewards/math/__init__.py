"""The built-in reward `math`: is the final answer right? Extraction and comparison are in the files beside this one.

Knows nothing about Ray or models. The whole work is linear in the length of a completion, so it needs no sandbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.math.compare import same_answer
from rewards.math.extract import after_hashes, final_answer, last_boxed
from rewards.texts import Completion, completion_text
from rlft.errors import UserError

GOLD_COLUMNS = ("answer", "solution", "ground_truth", "target")


def math_reward(completions: Sequence[Completion], column: str | None = None, **columns: Any) -> list[float]:
    """1 when the final answer of the completion equals the one in the data, as text or as an exact number; otherwise 0.

    The right answer comes from `column`, else from the first of GOLD_COLUMNS that there is. It may be a bare answer, a
    worked solution with \\boxed{...} or GSM8K's "... #### 990", or a list of answers that all count. Raises ValueError
    when a row has no right answer (so that its samples are left out), UserError when there is no such column.
    """
    name = column or next((name for name in GOLD_COLUMNS if name in columns), None)
    if name is None or name not in columns:
        found = f"no column {column!r}" if column else "no column with the right answer"
        raise UserError(
            f"reward 'math': {found}. Columns there: {', '.join(sorted(columns))}; tried "
            f"{column or ', '.join(GOLD_COLUMNS)}. Name the right one with args: {{column: ...}}."
        )
    rewards = []
    for completion, gold in zip(completions, columns[name], strict=True):
        right = gold_answers(gold)
        answer = final_answer(completion_text(completion))
        rewards.append(float(answer is not None and any(same_answer(one, answer) for one in right)))
    return rewards


def gold_answers(gold: Any) -> list[str]:
    """The right answers in a cell of the data. Raises ValueError when there is none."""
    found: list[str] = []
    for item in gold if isinstance(gold, list | tuple) else [gold]:
        if item is None or isinstance(item, bool):
            continue
        text = str(item)
        hashes = after_hashes(text)
        answer = hashes if hashes is not None else last_boxed(text)
        found.append(answer if answer is not None else text)
    found = [answer for answer in found if answer.strip()]
    if not found:
        raise ValueError(f"no right answer in {str(gold)[:80]!r}")
    return found
