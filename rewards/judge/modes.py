"""The ways to judge a group: what is asked about each answer, and the number from 0 to 1 that verdicts come to.

    score         one number
    rubric        the weights of the criteria that are met, over those above 0 (Gunjal et al. 2025, "Rubrics as
                  Rewards", arXiv:2507.17746; weights below 0 and the floor at 0 as in HealthBench, Arora et al. 2025,
                  arXiv:2505.08775)
    constitution  the mean of one number per principle, by their weights (principles after Bai et al. 2022,
                  arXiv:2212.08073)
    pairwise      the share of comparisons that an answer wins; a tie is half a win. Judges prefer what stands first (or
                  second), so each pair is asked in both orders and their mean is taken (Zheng et al. 2023,
                  arXiv:2306.05685; Lee et al. 2023, arXiv:2309.00267)

Knows nothing about how a question is asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rewards.judge.asking import Answer
from rewards.judge.questions import Question, each, number_schema
from rewards.judge.settings import QUESTIONS, Criterion, JudgeArgs
from rlft.endpoint.client import row_seed
from rlft.samples import RewardResult, RewardStatus
from rlft.synthesis.constitution import Constitution

Ask = Callable[[Sequence[Question]], list[Answer]]
_WIN = {"A": 1.0, "B": 0.0, "tie": 0.5}  # of the answer that stands first
_WORST: tuple[RewardStatus, ...] = ("refused", "error", "timeout")  # which of several failures is told


class Row(NamedTuple):
    """An answer and what it is judged with."""

    talk: str  # the conversation before it
    answer: str
    reference: str | None


def scores(args: JudgeArgs, rows: Sequence[Row], ask: Ask) -> list[RewardResult]:
    """Mode score."""
    task = (
        f"{args.question or QUESTIONS['score']}\nGive a score from {args.min:g} (worst) to {args.max:g} (best)."
        f"{_with_reference(rows)}"
    )
    kind = f"<a number from {args.min:g} to {args.max:g}>"
    questions = [
        Question(_data(row), task, "score", kind, json.dumps(number_schema(args.min, args.max))) for row in rows
    ]

    def value(verdict: dict[str, Any]) -> tuple[float, str]:
        return (verdict["score"] - args.min) / (args.max - args.min), f"{verdict['score']:g}: {verdict['reason']}"

    return [_result(answer, value) for answer in ask(questions)]


def constitution_scores(
    args: JudgeArgs, rows: Sequence[Row], constitution: Constitution, ask: Ask
) -> list[RewardResult]:
    """Mode constitution."""
    weights = {one.name: one.weight for one in constitution.principles}
    lines = "\n".join(f"- {one.name}: {(one.score or '').strip()}" for one in constitution.principles)
    task = (
        f"Judge the answer by each of these principles:\n{lines}\nGive each a score from {args.min:g} (not followed at "
        f"all) to {args.max:g} (followed perfectly).{_with_reference(rows)}"
    )
    kind = (
        "{" + ", ".join(f"{json.dumps(name)}: <a number from {args.min:g} to {args.max:g}>" for name in weights) + "}"
    )
    schema = json.dumps(each(list(weights), number_schema(args.min, args.max)))

    def value(verdict: dict[str, Any]) -> tuple[float, str]:
        given = verdict["scores"]
        mean = sum(weights[name] * given[name] for name in weights) / sum(weights.values())
        told = ", ".join(f"{name} {given[name]:g}" for name in weights)
        return (mean - args.min) / (args.max - args.min), f"{told}: {verdict['reason']}"

    return [
        _result(answer, value) for answer in ask([Question(_data(row), task, "scores", kind, schema) for row in rows])
    ]


def rubric_scores(rows: Sequence[Row], rubrics: Sequence[Sequence[Criterion]], ask: Ask) -> list[RewardResult]:
    """Mode rubric; each row has its own criteria."""
    questions = []
    for row, rubric in zip(rows, rubrics, strict=True):
        lines = "\n".join(f"- {one.name}: {one.criterion.strip()}" for one in rubric)
        task = f"Say of each of these whether it holds of the answer:\n{lines}{_with_reference(rows)}"
        kind = "{" + ", ".join(f"{json.dumps(one.name)}: <true or false>" for one in rubric) + "}"
        schema = json.dumps(each([one.name for one in rubric], {"type": "boolean"}))
        questions.append(Question(_data(row), task, "holds", kind, schema))

    def value(verdict: dict[str, Any], rubric: Sequence[Criterion]) -> tuple[float, str]:
        met = sum(one.weight for one in rubric if verdict["holds"][one.name])
        told = ", ".join(one.name for one in rubric if verdict["holds"][one.name]) or "nothing"
        return max(0.0, met / sum(one.weight for one in rubric if one.weight > 0)), f"{told}: {verdict['reason']}"

    answers = zip(ask(questions), rubrics, strict=True)
    return [_result(answer, lambda verdict, own=rubric: value(verdict, own)) for answer, rubric in answers]


def win_shares(args: JudgeArgs, rows: Sequence[Row], constitution: Constitution | None, ask: Ask) -> list[RewardResult]:
    """Mode pairwise: against the reference where there is one, else each against `rounds` answers behind it in the
    group, in a circle, so that all are compared equally often. 2 * answers * rounds questions at most. A pair counts
    when both its orders got a verdict; an answer of which no pair counts has no value,
    unless it stands alone: that is a tie."""
    task = args.question or QUESTIONS["pairwise"]
    if constitution is not None:
        task = str(constitution.draw(1, row_seed(0, rows[0].talk, "principles"))[0].prefer)
    texts = [row.answer for row in rows]
    pairs = [(i, None) for i in range(len(rows))] if rows[0].reference is not None else pairings(len(rows), args.rounds)
    asked, questions = [], []
    for i, j in pairs:
        other = str(rows[i].reference) if j is None else texts[j]
        if texts[i].strip() != other.strip():
            asked.append((i, j))
            questions += [_comparison(rows[i].talk, task, a, b) for a, b in ((texts[i], other), (other, texts[i]))]
    answers = iter(ask(questions))
    shares: list[list[float]] = [[] for _ in rows]
    failures: list[list[Answer]] = [[] for _ in rows]
    counts: list[Counter[str]] = [Counter() for _ in rows]
    for i, j in pairs:
        if (i, j) not in asked:
            outcome = 0.5
        else:
            both = (next(answers), next(answers))
            for answer in both:
                counts[i].update(answer.counts)
            failed = [answer for answer in both if answer.verdict is None]
            if failed:
                failures[i].extend(failed)
                if j is not None:
                    failures[j].extend(failed)
                continue
            outcome = (_WIN[both[0].verdict["better"]] + 1 - _WIN[both[1].verdict["better"]]) / 2  # type: ignore[index]
        shares[i].append(outcome)
        if j is not None:
            shares[j].append(1 - outcome)
    return [_share(*one) for one in zip(shares, failures, counts, strict=True)]


def pairings(count: int, rounds: int) -> list[tuple[int, int | None]]:
    """Each of `count` with the next, the one after that, ..., in a circle; no pair twice."""
    pairs = {
        (min(i, (i + step) % count), max(i, (i + step) % count)) for step in range(1, rounds + 1) for i in range(count)
    }
    return sorted((i, j) for i, j in pairs if i != j)


def _comparison(talk: str, task: str, a: str, b: str) -> Question:
    data = (("conversation", talk), ("answer_A", a), ("answer_B", b))
    words = f'{task.strip()}\nSay which of the two answers is better, or "tie".'
    return Question(data, words, "better", '<"A", "B" or "tie">', json.dumps({"enum": list(_WIN)}))


def _share(shares: Sequence[float], failures: Sequence[Answer], counts: Mapping[str, float]) -> RewardResult:
    if shares:
        lost = f", {len(failures)} verdicts missing" if failures else ""
        detail = f"{sum(shares):g} of {len(shares)} comparisons won{lost}"
        return RewardResult(sum(shares) / len(shares), "ok", detail, counts=dict(counts))
    if failures:
        worst = min(failures, key=lambda answer: _WORST.index(answer.status))
        return RewardResult(None, worst.status, worst.detail, counts=dict(counts))
    return RewardResult(0.5, "ok", "there is no other answer to compare it with: neither won nor lost")


def _result(answer: Answer, value: Callable[[dict[str, Any]], tuple[float, str]]) -> RewardResult:
    if answer.verdict is None:
        return RewardResult(None, answer.status, answer.detail, counts=answer.counts)
    number, detail = value(answer.verdict)
    return RewardResult(number, "ok", detail, counts=answer.counts)


def _data(row: Row) -> tuple[tuple[str, str], ...]:
    data = (("conversation", row.talk), ("answer", row.answer))
    return data if row.reference is None else (*data, ("reference", row.reference))


def _with_reference(rows: Sequence[Row]) -> str:
    return "" if rows[0].reference is None else "\nThe reference is a good answer to the same; others may be as good."
