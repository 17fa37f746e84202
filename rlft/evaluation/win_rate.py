"""How often a model's answers are preferred to others, as a judge sees it that is asked about each pair in both orders.

Judges prefer what stands first (or second): Zheng et al. 2023, "Judging LLM-as-a-Judge", arXiv:2306.05685, section
3.4, whose rule this is: a win counts only when both orders say so, all else is a tie. Knows nothing about files, HTTP
or models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlft.endpoint.client import Asker
from rlft.evaluation.judge_file import JudgeConfig
from rlft.synthesis.rows import Outcome, SourceRow, made_row
from rlft.synthesis.verdicts import ask_verdict

ANSWER, OTHER = "answer", "base_answer"  # columns of the rows
WIN, LOSS, DISAGREE, SAME = "win", "loss", "orders_disagree", "same_answer"
_Z = 1.959963984540054  # of a standard normal, 2.5 % lie above


@dataclass(frozen=True)
class WinRate:
    """What the verdicts on all pairs come to."""

    wins: int  # both orders prefer the model's answer
    losses: int  # both prefer the other one
    orders_disagree: int  # a tie: each order prefers another answer, so the same place
    same_answer: int  # a tie that nobody was asked about
    num_first: int  # verdicts for the answer that stood first
    num_verdicts: int

    @property
    def num_judged(self) -> int:
        """Pairs that count."""
        return self.wins + self.losses + self.orders_disagree + self.same_answer

    @property
    def rate(self) -> float | None:
        """(wins + ties / 2) / pairs; None without any."""
        return (self.wins + self.num_ties / 2) / self.num_judged if self.num_judged else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of `rate`, 95 %. As a tie varies less than a coin does, it is rather too wide than too narrow."""
        return wilson(self.wins + self.num_ties / 2, self.num_judged) if self.num_judged else None

    @property
    def num_ties(self) -> int:
        """For whatever reason."""
        return self.orders_disagree + self.same_answer

    @property
    def num_decided(self) -> int:
        """Pairs that are no ties."""
        return self.wins + self.losses

    @property
    def first_place(self) -> float | None:
        """Share of verdicts for the answer that stood first: 0.5 for a judge that does not look at places."""
        return self.num_first / self.num_verdicts if self.num_verdicts else None


def wilson(successes: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, from `successes` of `count` (Wilson 1927): with p = successes / count it is
    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)."""
    share, square = successes / count, _Z * _Z / count
    middle, half = share + square / 2, _Z * math.sqrt((share * (1 - share) + square / 4) / count)
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def comparer(config: JudgeConfig) -> Callable[[SourceRow, Asker], Outcome]:
    """What makes the row {prompt, answer, base_answer, verdict, verdicts, judgements} of a source row with both answers
    in its columns. Two answers that are the same (white space around them aside) are a tie, and nobody is asked. Raises
    LeftOut for a judge that gives no verdict."""

    def compare(row: SourceRow, ask: Asker) -> Outcome:
        answer, other = row.columns[ANSWER], row.columns[OTHER]
        if answer.strip() == other.strip():
            return _outcome(row, SAME, (), ())
        settings = {"temperature": config.temperature, "max_asks": config.max_asks}
        first, why = ask_verdict(ask, row.messages, config.question, answer, other, **settings)
        second, why_swapped = ask_verdict(ask, row.messages, config.question, other, answer, **settings)
        verdict = DISAGREE if first == second else WIN if first == "A" else LOSS
        return _outcome(row, verdict, (first, second), (why, why_swapped))

    return compare


def _outcome(row: SourceRow, verdict: str, verdicts: tuple[str, ...], judgements: tuple[str, ...]) -> Outcome:
    made = {name: row.columns[name] for name in (ANSWER, OTHER)}
    made |= {"verdict": verdict, "verdicts": list(verdicts), "judgements": list(judgements)}
    return Outcome((made_row(SourceRow(row.id, row.fingerprint, row.prompt, row.messages, {}), made),))


def count_verdicts(rows: Iterable[Mapping[str, Any]]) -> WinRate:
    """The rows of `comparer`, counted."""
    pairs, places = Counter[str](), Counter[str]()
    for row in rows:
        pairs[row["verdict"]] += 1
        places.update(row["verdicts"])
    return WinRate(pairs[WIN], pairs[LOSS], pairs[DISAGREE], pairs[SAME], places["A"], places.total())
