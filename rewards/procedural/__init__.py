"""The built-in reward `reasoning_gym`: what the scorer of a task of reasoning-gym says of an answer.

The rows come from data.path "reasoning_gym:TASK?..." (rlft/data/procedural.py). Several of the library's scorers hand
the answer to eval or to sympy's parse_expr, so all of them run in a process that may be killed (scorer.py beside).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

from rewards.killable.process import Killable
from rewards.math.extract import MAX_TEXT, last_boxes
from rewards.texts import Completion, completion_text
from rlft.errors import UserError
from rlft.samples import RewardResult

MEMORY_MB = 1024  # that scoring may take; tasks with data of their own load tens of MB
LOAD_S = 30.0  # the first row of a task makes its data set, in the worker

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_shared: Killable | None = None
_lock = threading.Lock()


def reasoning_gym_reward(
    completions: Sequence[Completion],
    reasoning_gym: Sequence[str],
    task_row: Sequence[int],
    deadline_s: float = 5.0,
    **columns: Any,
) -> list[RewardResult]:
    """The scorer's number, from 0 to 1: `ok` for 1, else `wrong`, whose value some tasks give in part.

    The answer is what stands in the last <answer>...</answer>, else in the last \\boxed{}, else the whole completion,
    at most its last 20,000 characters. `unparsed` 0 when there is nothing. `timeout` 0 when the scorer did not end
    within `deadline_s` or the memory it has: scorers are quick on what is an answer, so that is the answer's doing. So
    is it when a scorer raises, as many do on what has not the form they expect: `unparsed` 0. `error` where the row
    itself cannot be made.
    """
    results = []
    for completion, path, number in zip(completions, reasoning_gym, task_row, strict=True):
        answer = find_answer(completion_text(completion))
        if not answer:
            results.append(RewardResult(0.0, "unparsed", "the completion is empty"))
            continue
        reply = _process().ask({"path": path, "row": int(number), "step": "load"}, LOAD_S)
        if reply["verdict"] != "loaded":
            detail = reply.get("detail", "") or f"{reply['verdict']} after up to {LOAD_S:.0f} s"
            results.append(RewardResult(None, "error", f"{path}, row {number} cannot be made: {detail}"))
            continue
        reply = _process().ask({"path": path, "row": int(number), "answer": answer, "step": "score"}, deadline_s)
        results.append(_result(reply, deadline_s))
    return results


def _check_args(deadline_s: Any = 5.0) -> None:
    if isinstance(deadline_s, bool) or not isinstance(deadline_s, int | float) or not 0 < deadline_s <= 60:
        raise UserError(f"reward 'reasoning_gym': deadline_s is {deadline_s!r}; expected 0 to 60.")


reasoning_gym_reward.check_args = _check_args  # type: ignore[attr-defined]


def find_answer(text: str) -> str:
    """What a completion answers; see reasoning_gym_reward."""
    text = text[-MAX_TEXT:]
    tagged = _TAGGED.findall(text)
    boxed = None if tagged else last_boxes(text)
    return (tagged[-1] if tagged else boxed if boxed is not None else text).strip()


def _result(reply: dict[str, Any], deadline_s: float) -> RewardResult:
    verdict, detail = reply["verdict"], reply.get("detail", "")
    if verdict == "scored":
        score = reply["score"]
        return RewardResult(score, "ok") if score == 1.0 else RewardResult(score, "wrong", f"scored {score:g} of 1")
    if verdict == "timeout":
        return RewardResult(0.0, "timeout", f"scoring took longer than deadline_s {deadline_s:g}")
    if verdict in ("memory", "died"):
        return RewardResult(0.0, "timeout", f"scoring took more than {MEMORY_MB} MB, or its process died")
    return RewardResult(0.0, "unparsed", f"the task's scorer could not read it: {detail}")


def _process() -> Killable:
    global _shared
    with _lock:
        if _shared is None:
            hint = "Is reasoning-gym installed? pip install 'rlft[reasoning-gym]'."
            _shared = Killable("rewards.procedural.scorer", MEMORY_MB, "reward 'reasoning_gym'", hint)
        return _shared
