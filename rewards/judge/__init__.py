"""The reward `judge`: another model behind an OpenAI-compatible endpoint says how good an answer is.

Start here, then modes.py (what is asked and what verdicts come to), questions.py (the form of a question, and why a
text in it cannot pass for a verdict), asking.py (requests, breaker, cache) and settings.py (the args). What the judge
cannot say is None with a status, never a number.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from rewards.deadline import deadline
from rewards.judge.admission import Admission
from rewards.judge.asking import Answer, Asking
from rewards.judge.modes import Row, constitution_scores, rubric_scores, scores, win_shares
from rewards.judge.questions import Question
from rewards.judge.settings import load_rubric, principles_of, read_args, rubric_of
from rewards.texts import completion_text
from rlft.errors import UserError
from rlft.samples import RewardResult


class Judge:
    """One judge of a configuration; says from 0 to 1 how good each completion of a group is, all at once."""

    def __init__(self, **args: Any) -> None:
        """`args` as in rewards/judge/settings.py. Raises UserError for what cannot work."""
        self._args = read_args(args)
        self._rubric = load_rubric(self._args.rubric) if self._args.rubric else None
        self._constitution = principles_of(self._args)
        self._given = args
        self._admission = Admission(self._args.endpoint.max_concurrent)
        self._asking: Asking | None = None  # made where it is used: the worker may be another process
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._given,)  # connections and threads stay where they are

    def beside(self, num_samples: int) -> AbstractContextManager[None]:
        """Groups may be judged side by side, each inside this."""
        by_pairs = 2 if self._args.reference_column is not None else 2 * self._args.rounds
        return self._admission.of(num_samples * (by_pairs if self._args.mode == "pairwise" else 1))

    def check_columns(self, names: Iterable[str], **args: Any) -> None:
        """Raise UserError when the data lacks a column that args name."""
        names = list(names)
        for key in ("reference_column", "rubric_column"):
            column = getattr(self._args, key)
            if column is not None and column not in names:
                raise UserError(
                    f"rewards: judge's {key} is {column!r}, and the data has no such column. Columns there: "
                    f"{', '.join(names) or 'none'}."
                )

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[RewardResult]:
        """One result for each completion, all of one prompt."""
        args, references = self._args, [None] * len(completions)
        if args.reference_column is not None:
            references = [_text(args.reference_column, value) for value in columns[args.reference_column]]
        talks = [_talk(prompt) for prompt in prompts]
        rows = [Row(*row) for row in zip(talks, map(completion_text, completions), references, strict=True)]
        if args.mode == "pairwise":
            return win_shares(args, rows, self._constitution, self._ask)
        if args.mode == "rubric":
            own = columns[args.rubric_column] if args.rubric_column is not None else ()
            rubrics = [self._rubric] * len(rows) if self._rubric is not None else [rubric_of(value) for value in own]
            return rubric_scores(rows, rubrics, self._ask)
        if self._constitution is not None:
            return constitution_scores(args, rows, self._constitution, self._ask)
        return scores(args, rows, self._ask)

    def _ask(self, questions: Sequence[Question]) -> list[Answer]:
        with self._lock:
            self._asking = self._asking or Asking(self._args)
        return self._asking.ask(questions, deadline())


def judge(**args: Any) -> Judge:
    """What `function: judge` with these args is; see Judge."""
    return Judge(**args)


def _again(args: dict[str, Any]) -> Judge:
    return Judge(**args)


def _talk(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in prompt)


def _text(column: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"rewards: judge's reference_column {column!r} holds {value!r:.60}. Expected an answer as text."
        )
    return value


judge.with_args = judge  # type: ignore[attr-defined]  # called with args when a run looks at its functions
