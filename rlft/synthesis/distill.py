"""A teacher's answers for a student to learn: sequence-level distillation, with a verifier where there is one.

Kim and Rush 2016, arXiv:1606.07947; with a verifier it is rejection sampling from the teacher (as in STaR, Zelikman et
al. 2022, arXiv:2203.14465). Knows nothing about files or HTTP.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import numpy as np

from rewards.combine import RewardSet
from rlft.config.roles import RewardFunction, RewardsConfig
from rlft.endpoint.client import Asker, RequestFailed
from rlft.endpoint.replies import Reply
from rlft.errors import UserError
from rlft.samples import Group, Prompt, Sample
from rlft.synthesis.config import DistillConfig
from rlft.synthesis.critique import whole_answer
from rlft.synthesis.rows import LeftOut, Outcome, SourceRow, made_row, with_answer

UNVERIFIED = "unverified"  # the verifier failed on an answer


class Verifier:
    """Reward functions as judges of texts."""

    def __init__(self, functions: list[RewardFunction]) -> None:
        """Raises UserError when a function is not there or wants token ids, which an endpoint does not give."""
        self._rewards = RewardSet(RewardsConfig(functions=functions))
        self._lock = threading.Lock()  # functions need not be safe for threads; a reward worker too scores one group
        for reward in self._rewards.rewards:
            if "completion_ids" in reward.required or "completion_ids" in (reward.accepts or ()):
                raise UserError(
                    f"rewards.functions: {reward.name!r} looks at tokens (completion_ids), and an endpoint gives text. "
                    "Take it out."
                )

    def check_columns(self, row: SourceRow) -> None:
        """Raise UserError when a function needs a column that is not there."""
        self._rewards.check_columns(row.columns)

    def scores(self, row: SourceRow, answers: list[str]) -> list[tuple[float | None, str]]:
        """(reward, "") of each answer, or (None, why there is none)."""
        none, mask = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=bool)
        is_text = isinstance(row.prompt, str)
        prompt = Prompt(
            id=row.id,
            token_ids=none,
            text=row.prompt if isinstance(row.prompt, str) else "",
            messages=None if is_text else tuple(row.messages),
            columns=row.columns,
        )
        group = Group(prompt, tuple(Sample.given(none, mask, answer) for answer in answers))
        with self._lock:
            scored = self._rewards.score_group(group)
        return [(sample.reward, _why(sample)) for sample in scored.samples]


def distiller(config: DistillConfig, verifier: Verifier | None) -> Callable[[SourceRow, Asker], Outcome]:
    """What makes the rows {prompt, completion, reward} for one prompt: those answers that the verifier accepts, each
    once. A row whose every answer failed has failed."""

    def distill(row: SourceRow, ask: Asker) -> Outcome:
        left_out, details = Counter[str](), dict[str, str]()
        num_same = 0
        answers: dict[str, Reply] = {}  # by what was said, so that each is there once
        for _ in range(config.num_answers):
            try:
                reply = ask(row.messages)
                text = whole_answer(reply)
            except LeftOut as reason:
                left_out[str(reason)] += 1
            except RequestFailed as failure:
                left_out[failure.kind] += 1
                details[failure.kind] = str(failure)
            else:
                num_same += text.strip() in answers
                answers.setdefault(text.strip(), reply)
        kept = _verified(list(answers.values()), row, config, verifier, left_out, details)
        if details and not kept and left_out.keys() == details.keys():
            kind = next(iter(details))
            return Outcome(failed=kind, detail=details[kind])
        return Outcome(
            tuple(_made(row, reply, reward, config) for reply, reward in kept),
            +(left_out + Counter(duplicate=num_same)),
        )

    return distill


def _verified(
    replies: list[Reply],
    row: SourceRow,
    config: DistillConfig,
    verifier: Verifier | None,
    left_out: Counter[str],
    details: dict[str, str],
) -> list[tuple[Reply, float | None]]:
    """Those that are kept, with their rewards; the others are counted in `left_out`."""
    if verifier is None or not replies:
        return [(reply, None) for reply in replies]
    kept: list[tuple[Reply, float | None]] = []
    for reply, (reward, why) in zip(replies, verifier.scores(row, [reply.text for reply in replies]), strict=True):
        if reward is None:
            left_out[UNVERIFIED] += 1
            details[UNVERIFIED] = why
        elif reward < config.accept_reward:
            left_out["rejected"] += 1
        else:
            kept.append((reply, reward))
    return kept


def _made(row: SourceRow, reply: Reply, reward: float | None, config: DistillConfig) -> dict[str, object]:
    thought = f"<think>\n{reply.reasoning}\n</think>\n\n" if reply.reasoning and config.reasoning == "keep" else ""
    answer = thought + reply.text
    scored = {} if reward is None else {"reward": reward}
    return made_row(row, {"completion": answer, **with_answer(row, answer), **scored})


def _why(sample: Sample) -> str:
    return "; ".join(f"{name}: {part.detail}" for name, part in sample.reward_parts.items() if part.counted is None)
