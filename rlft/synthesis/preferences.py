"""Which of two answers is better, as another model sees it: preference labels from AI feedback.

Bai et al. 2022, arXiv:2212.08073, section 4.1; Lee et al. 2023, "RLAIF", arXiv:2309.00267, section 2.1. Judges prefer
what stands first (or second), so each pair is asked in both orders; where RLAIF takes the mean of both, here a pair
counts only when both agree. Knows nothing about files or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

from rlft.endpoint.client import Asker, row_seed
from rlft.errors import UserError
from rlft.synthesis.config import PreferConfig
from rlft.synthesis.constitution import Constitution, Principle
from rlft.synthesis.critique import whole_answer
from rlft.synthesis.rows import LeftOut, Outcome, SourceRow, made_row
from rlft.synthesis.verdicts import Verdict, ask_verdict


def labeller(config: PreferConfig, constitution: Constitution, seed: int) -> Callable[[SourceRow, Asker], Outcome]:
    """What makes the row {prompt, chosen, rejected, principle, judgements} for one prompt; `seed` is the run's."""

    def label(row: SourceRow, ask: Asker) -> Outcome:
        principle = constitution.draw(1, row_seed(seed, row.id, "principles"))[0]
        first, second = _answers(config, row, ask)
        if first.strip() == second.strip():
            raise LeftOut("identical")
        verdict, judgement = _judge(config, row, principle, first, second, ask)
        swapped, judgement_swapped = _judge(config, row, principle, second, first, ask)
        if verdict == swapped:  # the same place, so the other answer
            raise LeftOut("orders_disagree")
        chosen, rejected = (first, second) if verdict == "A" else (second, first)
        made = {
            "chosen": chosen,
            "rejected": rejected,
            "principle": principle.name,
            "judgements": [judgement, judgement_swapped],
        }
        return Outcome((made_row(row, made),))

    return label


def check_columns(config: PreferConfig, row: SourceRow) -> None:
    """Raise UserError when an answer that should come with the row is no text."""
    for key, column in (("first_column", config.first_column), ("second_column", config.second_column)):
        if column is None:
            continue
        value = row.columns.get(column)
        if not isinstance(value, str) or not value.strip():
            found = "is not there" if column not in row.columns else f"is {value!r:.60}"
            raise UserError(
                f"{row.id}: column {column!r} (prefer.{key}) {found}. Expected an answer as text. Columns there: "
                f"{', '.join(row.columns) or 'none'}."
            )


def _answers(config: PreferConfig, row: SourceRow, ask: Asker) -> tuple[str, str]:
    if config.first_column is None or config.second_column is None:
        return whole_answer(ask(row.messages)), whole_answer(ask(row.messages))
    return row.columns[config.first_column], row.columns[config.second_column]


def _judge(
    config: PreferConfig, row: SourceRow, principle: Principle, a: str, b: str, ask: Asker
) -> tuple[Verdict, str]:
    assert principle.prefer is not None, "load_constitution sees to it"
    temperature, max_asks = config.judge_temperature, config.max_asks
    return ask_verdict(ask, row.messages, principle.prefer, a, b, temperature=temperature, max_asks=max_asks)
