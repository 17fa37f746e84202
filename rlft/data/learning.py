"""From a configuration to the rows that it learns from: examples, pairs, labelled completions. The table is here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from rlft.config import Config
from rlft.config.derived import learns_from, makes_reward_model
from rlft.data.examples import ExampleSet, load_examples
from rlft.data.pairs import load_labels, load_pairs
from rlft.data.scores import scored_pair
from rlft.data.tokenizer import end_tokens

LOADERS: dict[str, Callable[..., ExampleSet]] = {
    "examples": load_examples,
    "pairs": load_pairs,
    "labels": load_labels,
}


def load_learning_rows(config: Config, tokenizer: Any, window: int, rows: Iterable[Any] | None = None) -> ExampleSet:
    """What the run learns from, of `rows`, else of data.path. Raises UserError for data that cannot be used."""
    return _load(config, tokenizer, window, config.algorithm.preference_loss == "kto", rows=rows)


def load_held_out_rows(config: Config, tokenizer: Any, window: int) -> ExampleSet:
    """The same of evaluation.path."""
    data = config.data.model_copy(update={"max_rows": config.evaluation.max_rows, "shuffle": False})
    held_out = config.model_copy(update={"data": data})
    return _load(held_out, tokenizer, window, False, path=config.evaluation.path)


def _load(config: Config, tokenizer: Any, window: int, with_others: bool, **more: Any) -> ExampleSet:
    kind = learns_from(config.algorithm)
    assert kind is not None and config.model.path is not None
    if kind == "labels":
        more["with_others"] = with_others
    end = end_tokens(config.model.path, tokenizer)
    loaded = LOADERS[kind](config.data, tokenizer, window=window, seed=config.run.seed, end=end, **more)
    if makes_reward_model(config):
        return replace(loaded, examples=[scored_pair(group) for group in loaded.examples])
    return loaded
