"""From a configuration to the rows that it learns from: examples, pairs, labelled completions, labelled steps. The
table is here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from rlft.config import Config
from rlft.config.derived import learns_from, makes_reward_model
from rlft.data.examples import ExampleSet, load_examples
from rlft.data.mixture import Mixture
from rlft.data.pairs import load_labels, load_pairs
from rlft.data.scores import MARGIN_COLUMN, check_margins, scored_pair, scored_steps
from rlft.data.sources import Examples, all_examples, with_sources
from rlft.data.steps import load_steps
from rlft.data.tokenizer import end_tokens
from rlft.errors import UserError
from rlft.samples import Group

LOADERS: dict[str, Callable[..., ExampleSet]] = {
    "examples": load_examples,
    "pairs": load_pairs,
    "labels": load_labels,
    "steps": load_steps,
}
_SCORED = {"pairs": scored_pair, "steps": scored_steps}  # as a reward model reads them


def load_learning_rows(config: Config, tokenizer: Any, window: int, rows: Iterable[Any] | None = None) -> Examples:
    """What the run learns from, of `rows`, else of data.path or data.mixture. Raises UserError for data that cannot be
    used."""
    return _load(config, tokenizer, window, config.algorithm.preference_loss == "kto", rows=rows)


def load_held_out_rows(config: Config, tokenizer: Any, window: int, learned: Examples | None = None) -> list[Group]:
    """The same of evaluation.path. Raises UserError too where one holds documents and the other, `learned`,
    prompts with completions, since that would measure something else than what is learned."""
    data = config.data.model_copy(update={"max_rows": config.evaluation.max_rows, "shuffle": False, "label_of": "all"})
    held_out = config.model_copy(update={"data": data})
    examples = _load(held_out, tokenizer, window, False, path=config.evaluation.path)
    if isinstance(learned, ExampleSet) and isinstance(examples, ExampleSet):
        _check_alike(learned, examples, str(config.evaluation.path))
    return with_sources(examples.take(0, len(examples)), config.evaluation.source_column)


def _check_alike(learned: ExampleSet, held_out: ExampleSet, path: str) -> None:
    if learned.documents == held_out.documents:
        return
    here, there = "documents", "prompts with completions"
    here, there = (here, there) if held_out.documents else (there, here)
    raise UserError(
        f"evaluation.path: {path} holds {here}, and what is learned are {there}. Expected rows of the same form. "
        f"What a model makes of other texts is measured by rlft eval RUN --perplexity --data {path}."
    )


def _load(config: Config, tokenizer: Any, window: int, with_others: bool, **more: Any) -> Examples:
    kind = learns_from(config.algorithm)
    assert kind is not None and config.model.path is not None
    load = partial(load_labels, with_others=with_others) if kind == "labels" else LOADERS[kind]
    if makes_reward_model(config):
        load = partial(_load_scored, load, _SCORED[kind])
    end = end_tokens(config.model.path, tokenizer)
    examples = all_examples(config.data, tokenizer, window=window, seed=config.run.seed, end=end, load=load, **more)
    if isinstance(examples, Mixture) and makes_reward_model(config) and kind == "pairs":
        _check_sources(examples)
    return examples


def _check_sources(examples: Mixture[Group]) -> None:
    """Raises UserError where only some sources have margins: within each all rows have one or none has."""
    has = [group.samples[0].returns is not None for group in examples.firsts]
    if any(has) and not all(has):
        without, others = examples.names[has.index(False)], examples.names[has.index(True)]
        raise UserError(
            f"source {without} of data.mixture has no column {MARGIN_COLUMN!r}, and {others} has one. Expected "
            "a number in every row (0 where nothing is known), or that column in none."
        )


def _load_scored(
    load: Callable[..., ExampleSet], scored: Callable[[Group], Group], *args: Any, **more: Any
) -> ExampleSet:
    """Rows as a reward model reads them."""
    loaded = load(*args, **more)
    if scored is scored_pair:
        check_margins(loaded.examples)
    return replace(loaded, examples=[scored(group) for group in loaded.examples])
