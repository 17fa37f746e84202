"""One rollout: prompts are drawn for, and each group goes to the rewarder while others are still decoded.

Used by the loops and by evaluation. Knows the roles only by their Protocols.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlft.errors import RunError
from rlft.roles import Generator, Rewarder
from rlft.samples import Group, Prompt, SamplingParams, sample_seed


@dataclass(frozen=True)
class Rollout:
    """A step's scored groups, in the order of its prompts, and the seconds that they took."""

    groups: list[Group]
    generate_s: float
    score_s: float


def draw(
    generator: Generator, prompts: Sequence[Prompt], params: SamplingParams, seed: int, step: int, version: int
) -> Iterator[tuple[int, Group]]:
    """Start drawing samples whose seeds follow from run, step, place and index."""
    seeds = [[sample_seed(seed, step, i, j) for j in range(params.num_samples)] for i in range(len(prompts))]
    return generator.generate(prompts, seeds, params, version)


def collect(stream: Iterator[tuple[int, Group]], rewarder: Rewarder, num_prompts: int) -> Rollout:
    """Hand each group to the rewarder as it finishes; bring the scored ones into the order of their prompts."""
    begin, waited = time.perf_counter(), 0.0

    def timed() -> Iterator[tuple[int, Group]]:
        nonlocal waited
        while True:
            before = time.perf_counter()
            item = next(stream, None)
            waited += time.perf_counter() - before
            if item is None:
                return
            yield item

    by_place = dict(rewarder.score(timed()))
    if sorted(by_place) != list(range(num_prompts)):
        missing = sorted(set(range(num_prompts)) - set(by_place))
        raise RunError(f"rollouts of {len(missing)} of {num_prompts} prompts never came back (places {missing[:5]})")
    return Rollout([by_place[i] for i in range(num_prompts)], waited, time.perf_counter() - begin - waited)
