"""The generator actor, and several of them as one generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from actors.placement import Seat
from actors.process import here, prepare
from actors.supervisor import get_all, merge_streams
from rlft.config import Config
from rlft.engines.build import make_generator
from rlft.engines.weights import WeightUpdate
from rlft.samples import Group, Prompt, SamplingParams


@ray.remote
class GeneratorActor:
    """Holds one generator engine. Calls run one after the other, so a load waits for what is being drawn."""

    def __init__(self, config: Config, seat: Seat) -> None:
        prepare(config, seat.gpus, seat.cpus)
        self._generator = make_generator(config, seat.device, seat.name)

    def ready(self) -> str:
        """Answers once the engine stands: where it runs."""
        return here()

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int
    ) -> Iterator[tuple[int, Group]]:
        """See rlft.roles.Generator; streamed."""
        yield from self._generator.generate(prompts, seeds, params, version)

    def load(self, update: WeightUpdate) -> None:
        """See rlft.roles.Generator; the buckets are object refs."""
        self._generator.load(replace(update, buckets=tuple(ray.get(list(update.buckets), timeout=600))))

    def token_logprobs(self, group: Group, temperature: float) -> dict[str, list[np.ndarray]]:
        """See rlft.roles.Generator."""
        return self._generator.token_logprobs(group, temperature)


class GeneratorGroup:
    """See rlft.roles.Generator. Prompt i goes to actor i modulo their number, so a resumed run draws in the same
    batches."""

    def __init__(self, actors: Sequence[Any], names: Sequence[str], timeout_s: float) -> None:
        self._actors, self._names, self._timeout_s = actors, names, timeout_s

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int
    ) -> Iterator[tuple[int, Group]]:
        """Begins at once, not at the first `next`."""
        count, streams = len(self._actors), {}
        for i, (actor, name) in enumerate(zip(self._actors, self._names, strict=True)):
            if prompts[i::count]:
                call = actor.generate.options(num_returns="streaming")
                streams[call.remote(prompts[i::count], seeds[i::count], params, version)] = name
        places = {name: range(len(prompts))[i::count] for i, name in enumerate(self._names)}
        return (
            (places[name][place], group) for name, (place, group) in merge_streams(streams, "generate", self._timeout_s)
        )

    def load(self, update: WeightUpdate) -> None:
        """Every actor loads and verifies."""
        refs = [actor.load.remote(update) for actor in self._actors]
        get_all(refs, self._names, f"loading weight version {update.version}", self._timeout_s)

    def token_logprobs(self, group: Group, temperature: float) -> dict[str, list[np.ndarray]]:
        """See rlft.roles.Generator: every actor's answer."""
        refs = [actor.token_logprobs.remote(group, temperature) for actor in self._actors]
        answers = get_all(refs, self._names, "probe", self._timeout_s)
        return {name: logprobs for answer in answers for name, logprobs in answer.items()}
