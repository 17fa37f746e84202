"""The built-in reward `math`: is the final answer right? Finding and comparing are in the files beside this one.

Knows nothing about Ray or models. All but the last stage is linear in the length of a completion; the last, sympy on
formulas, runs in a process of its own that is killed when it is late (rewards/killable).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rewards.math.choices import chosen
from rewards.math.compare import Verdict, compare
from rewards.math.extract import after_hashes, final_answer, marked_answer, open_box
from rewards.math.policy import Policy
from rewards.texts import Completion, completion_text
from rlft.errors import UserError
from rlft.samples import RewardResult, RewardStatus

GOLD_COLUMNS = ("answer", "solution", "ground_truth", "target")
GROUP_DEADLINES = 6  # a group waits for at most so many deadlines: with the defaults below timeout_s


def math_reward(
    completions: Sequence[Completion],
    column: str | None = None,
    choices: str | None = None,
    units: str = "gold",
    percent: str = "strict",
    tolerance: float = 0.0,
    order: str = "free",
    deadline_s: float = 5.0,
    symbolic: bool = True,
    **columns: Any,
) -> list[RewardResult]:
    """1 when the final answer of the completion is the one in the data; otherwise 0, and what was expected and found.

    The right answer comes from `column`, else from the first of GOLD_COLUMNS that there is. It may be a bare answer, a
    worked solution with \\boxed{...} or GSM8K's "... #### 990", or a list of answers that all count. `choices` names a
    column with the options' texts, of which A is the first. The others are those of rewards/math/policy.py.

    Statuses: `ok` 1; `wrong` 0; `unparsed` 0 where no answer is found, or it is no mathematics, or more than is let
    near sympy (a tower of powers, say); `timeout` without a value where sympy did not finish. The last may be the
    completion's doing or sympy's: a right answer in an odd form takes long too, and a 0 for it would teach that it is
    wrong. `error` for a row without a right answer, which harms no other. Raises UserError when there is no column.
    """
    policy = Policy(units, percent, tolerance, order, deadline_s, symbolic)  # type: ignore[arg-type]
    golds = _column(columns, column, GOLD_COLUMNS, "with the right answer")
    options = _column(columns, choices, (), "") if choices else [None] * len(completions)
    end = time.monotonic() + GROUP_DEADLINES * policy.deadline_s
    known: dict[tuple[str, str], RewardResult] = {}  # a group says the same thing often
    results = []
    for completion, gold, texts in zip(completions, golds, options, strict=True):
        text = completion_text(completion)
        key = (f"{gold!r} {texts!r}", text)
        if key not in known:
            begin = time.perf_counter()
            result = _judged(text, gold, texts, policy, late=time.monotonic() > end)
            known[key] = RewardResult(*result, seconds=time.perf_counter() - begin)
        results.append(known[key])
    return results


def _check_args(column: Any = None, choices: Any = None, **policy: Any) -> None:
    for name, value in (("column", column), ("choices", choices)):
        if value is not None and not isinstance(value, str):
            raise UserError(f"reward 'math': {name} is {value!r}; expected the name of a column.")
    Policy(**policy)


def _check_columns(names: Iterable[str], column: str | None = None, choices: str | None = None, **policy: Any) -> None:
    there = dict.fromkeys(names)
    _column(there, column, GOLD_COLUMNS, "with the right answer")
    if choices is not None:
        _column(there, choices, (), "")


math_reward.check_args = _check_args  # type: ignore[attr-defined]
math_reward.check_columns = _check_columns  # type: ignore[attr-defined]  # called with the data's columns, and args


def gold_answers(gold: Any) -> list[str]:
    """The right answers in a cell of the data. Raises ValueError when there is none."""
    found: list[str] = []
    for item in gold if isinstance(gold, list | tuple) else [gold]:
        if item is None or isinstance(item, bool):
            continue
        text = str(item)
        hashes = after_hashes(text)
        answer = hashes if hashes is not None else marked_answer(text) or open_box(text)
        found.append(answer if answer is not None else text)
    found = [answer for answer in found if answer.strip()]
    if not found:
        raise ValueError(f"no right answer in {str(gold)[:80]!r}")
    return found


def _judged(text: str, gold: Any, options: Any, policy: Policy, late: bool) -> tuple[float | None, RewardStatus, str]:
    """Value, status and detail of one completion."""
    try:
        right = gold_answers(gold)
    except ValueError as error:
        return None, "error", str(error)
    answer = final_answer(text)
    if answer is None:
        return 0.0, "unparsed", "no answer found: no box, no 'answer is', no formula or number at the end"
    if options is not None:
        right, answer = [chosen(one, options) for one in right], chosen(answer, options)
    if late:
        policy = Policy(policy.units, policy.percent, policy.tolerance, policy.order, policy.deadline_s, symbolic=False)
    verdicts: list[Verdict] = []
    for one in right:
        verdicts.append(compare(one, answer, policy))
        if verdicts[-1].word == "right":
            return 1.0, "ok", ""
    undecided = next((verdict for verdict in verdicts if verdict.word == "timeout"), None)
    if late and any("formulas" in verdict.detail for verdict in verdicts):
        undecided = Verdict("timeout", f"the group's time, {GROUP_DEADLINES} times deadline_s, was used up before it")
    if undecided:
        return None, "timeout", undecided.detail
    return 0.0, "unparsed" if verdicts[0].word == "unparsed" else "wrong", verdicts[0].detail


def _column(columns: Mapping[str, Any], name: str | None, usual: Sequence[str], what: str) -> Sequence[Any]:
    found = name or next((one for one in usual if one in columns), None)
    if found is not None and found in columns:
        return columns[found]
    missing = f"no column {name!r}" if name else f"no column {what}"
    raise UserError(
        f"reward 'math': {missing}. Columns there: {', '.join(sorted(columns))}; tried {name or ', '.join(usual)}. "
        "Name the right one with args: {column: ...}."
    )
