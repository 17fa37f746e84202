"""Several sources of rows as one, in fixed proportions.

A batch is a stretch of one endless sequence of sources (order.py), and what a source gives to it is a stretch of the
source's own endless order, with its own epochs: a pure function of seed and place, so that a resumed run takes the same
rows. Knows nothing about what a row comes to (prompts, examples, pairs): a source is whatever has take, len and
description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from rlft.config.data import DataConfig, SourceConfig
from rlft.data.order import Interleaving, source_seed, whole_shares
from rlft.data.tokenizer import with_chat_template
from rlft.errors import UserError
from rlft.samples import Group, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item", Prompt, Group)


class Source(Protocol[Item]):
    """PromptSet and ExampleSet are."""

    @property
    def description(self) -> str: ...
    def take(self, first: int, count: int) -> list[Item]: ...
    def __len__(self) -> int: ...


class Mixture(Generic[Item]):
    """Sources in proportion to whole shares (order.whole_shares)."""

    def __init__(self, names: Sequence[str], sources: Sequence[Source[Item]], shares: Sequence[int]) -> None:
        self.names, self.sources, self._order = tuple(names), tuple(sources), Interleaving(shares)
        told = [
            f"{name}, {share / sum(shares):.4g} of the samples: {source.description}"
            for name, source, share in zip(names, sources, shares, strict=True)
        ]
        self.description = f"a mixture of {len(told)}\n  " + "\n  ".join(told)  # for people

    def take(self, first: int, count: int) -> list[Item]:
        """`count` items from place `first` of the mixture's endless order, each with its source's name."""
        places, parts = self._order.stretch(first, count)
        taken = {source: iter(self.sources[source].take(*part)) for source, part in parts.items()}
        return [named(next(taken[source]), self.names[source]) for source in places]

    def batch(self, step: int, num_examples: int) -> list[Item]:
        """The items of one step (from 0)."""
        return self.take(step * num_examples, num_examples)

    def repeats(self, count: int) -> bool:
        """Whether some of the first `count` items are there twice."""
        _, parts = self._order.stretch(0, count)
        return any(size > len(self.sources[source]) for source, (_, size) in parts.items())

    def __len__(self) -> int:
        """Items of all sources."""
        return sum(map(len, self.sources))

    @property
    def firsts(self) -> list[Item]:
        """One item of each source."""
        return [named(source.take(0, 1)[0], name) for source, name in zip(self.sources, self.names, strict=True)]


def named(item: Item, name: str) -> Item:
    """The prompt, or the group, with the name of its source."""
    if isinstance(item, Prompt):
        return replace(item, source=name)
    return replace(item, prompt=replace(item.prompt, source=name))


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Puts the source's name, where it has one, in front of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"source {source} of data.mixture: {error}" if source else str(error)) from None


Load = Callable[[DataConfig, "PreTrainedTokenizerBase", int], Source[Item]]  # data, tokenizer, seed


def mixed(data: DataConfig, tokenizer: PreTrainedTokenizerBase, seed: int, load: Load[Item]) -> Mixture[Item]:
    """The sources of data.mixture, each loaded with its own keys. Raises UserError as `load` does, with the source's
    name in front."""
    names, sources = [source.label for source in data.mixture], list[Source[Item]]()
    for name, source in zip(names, data.mixture, strict=True):
        own = tokenizer if source.chat_template is None else with_chat_template(tokenizer, source.chat_template)
        with naming(name):
            sources.append(load(data_of(data, source), own, source_seed(seed, name)))
    return Mixture(names, sources, shares_of(data, [len(source) for source in sources]))


def data_of(data: DataConfig, source: SourceConfig) -> DataConfig:
    """The data section of a run on this source alone."""
    not_data = {"name", "weight", "chat_template"}
    own: dict[str, Any] = {key: getattr(source, key) for key in SourceConfig.model_fields if key not in not_data}
    changes = {key: value for key, value in own.items() if value is not None}
    return data.model_copy(update={"mixture": [], "mixture_temperature": None, **changes})


def shares_of(data: DataConfig, sizes: Sequence[int]) -> list[int]:
    """Whole shares of the sources: by weight, or by size n as n ** (1 / temperature)."""
    temperature = data.mixture_temperature
    if temperature is None:
        return whole_shares([source.weight for source in data.mixture])
    if temperature == 1:
        return whole_shares(sizes)
    return whole_shares([max(1e-9, (size / max(sizes)) ** (1 / temperature)) for size in sizes])
