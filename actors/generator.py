"""The generator actor, and several of them as one generator."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from actors.placement import Seat
from actors.process import here, prepare
from actors.supervisor import get_all, merge_streams
from rlft.config import Config
from rlft.engines.build import make_generator
from rlft.engines.transport import ChannelSeat
from rlft.engines.weights import WeightUpdate
from rlft.samples import Group, Prompt, SamplingParams

_MAX_STREAMS = 256  # calls of `generate` that draw at once; more wait


@ray.remote(concurrency_groups={"draw": _MAX_STREAMS, "control": 4})  # pyright: ignore[reportCallIssue]
class GeneratorActor:
    """Holds one generator engine. Weights are loaded beside what is being drawn."""

    def __init__(self, config: Config, seat: Seat) -> None:
        prepare(config, seat.gpus, seat.cpus)
        self._generator = make_generator(config, seat.device, seat.name, seat.gpus)

    @ray.method(concurrency_group="control")
    def ready(self) -> str:
        """Answers once the engine stands: where it runs."""
        return here()

    @ray.method(concurrency_group="draw")
    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int
    ) -> Iterator[tuple[int, Group]]:
        """See rlft.roles.Generator; streamed."""
        yield from self._generator.generate(prompts, seeds, params, version)

    @ray.method(concurrency_group="control")
    def num_receivers(self) -> int:
        """See rlft.engines.build.Engine."""
        return self._generator.num_receivers()

    @ray.method(concurrency_group="control")
    def join(self, seat: ChannelSeat) -> None:
        """See rlft.engines.build.Engine."""
        self._generator.join(seat)

    @ray.method(concurrency_group="control")
    def load(self, update: WeightUpdate) -> bool:
        """See rlft.roles.Generator; the buckets are object refs."""
        return self._generator.load(replace(update, buckets=tuple(ray.get(list(update.buckets), timeout=600))))

    @ray.method(concurrency_group="control")
    def probe(self, prompt: Prompt, seed: int, params: SamplingParams) -> dict[str, Group]:
        """See rlft.roles.Generator."""
        return self._generator.probe(prompt, seed, params)

    @ray.method(concurrency_group="control")
    def sleep(self) -> None:
        """See rlft.roles.Generator."""
        self._generator.sleep()

    @ray.method(concurrency_group="control")
    def close(self) -> None:
        """Stop processes that the engine has started."""
        self._generator.close()


class GeneratorGroup:
    """See rlft.roles.Generator. Prompt i goes to actor i modulo their number, so a resumed run draws in the same
    batches; a call with fewer prompts than actors begins at an actor that follows from the first prompt."""

    def __init__(self, actors: Sequence[Any], names: Sequence[str], timeout_s: float) -> None:
        self._actors, self._names, self._timeout_s = actors, names, timeout_s

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int
    ) -> Iterator[tuple[int, Group]]:
        """Begins at once, not at the first `next`."""
        count, streams = len(self._actors), {}
        row = prompts[0].id.partition(", ")[0]  # the same for all turns: their generator has cached what they share
        first = zlib.crc32(row.encode()) % count if len(prompts) < count else 0
        places = {}
        for i in range(min(count, len(prompts))):
            who = (first + i) % count
            call = self._actors[who].generate.options(num_returns="streaming")
            streams[call.remote(prompts[i::count], seeds[i::count], params, version)] = self._names[who]
            places[self._names[who]] = range(len(prompts))[i::count]
        return (
            (places[name][place], group) for name, (place, group) in merge_streams(streams, "generate", self._timeout_s)
        )

    def load(self, update: WeightUpdate) -> bool:
        """Every actor loads and verifies."""
        return all(self._everyone("load", f"loading weight version {update.version}", update))

    def probe(self, prompt: Prompt, seed: int, params: SamplingParams) -> dict[str, Group]:
        """See rlft.roles.Generator: every actor's answer."""
        answers = self._everyone("probe", "probe", prompt, seed, params)
        return {name: group for answer in answers for name, group in answer.items()}

    def sleep(self) -> None:
        """See rlft.roles.Generator."""
        self._everyone("sleep", "sleep")

    def close(self) -> None:
        """Stop processes that the engines have started."""
        self._everyone("close", "stopping the generators")

    def _everyone(self, method: str, stage: str, *args: Any) -> list[Any]:
        refs = [getattr(actor, method).remote(*args) for actor in self._actors]
        return get_all(refs, self._names, stage, self._timeout_s)
