"""Rollouts ahead of the learner, as far as staleness allows and no further.

A rollout is a group of samples: begun under one version of the weights, drawn, scored, and at last learned from. What
is begun and what a step learns from is decided here, on the loop's own thread, right after weight syncs:

    in order    max_staleness further steps are under way; a step learns from the groups that come first in the data, so
                that a run can be repeated to the digit
    in flight   half as many steps are under way, and a step learns from the groups that finish first; the other half of
                the staleness is what long groups may be carried over, and none is later than max_staleness

Groups whose rewards are all equal may be replaced by others. Knows nothing about where the roles run: with `background`
drawing and scoring go on in threads, without it a group is finished before `admit` returns.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlft.algorithms.advantages import flat_groups
from rlft.config import Config
from rlft.config.derived import flat_is_useless, in_flight, steps_ahead
from rlft.errors import RunError
from rlft.loops.credit import reward_matrix
from rlft.roles import Generator, Rewarder
from rlft.rollout import Rollout, score_stream
from rlft.samples import Group, Prompt, SamplingParams, sample_seed


class PromptSource(Protocol):
    """Where prompts come from: an endless order, a pure function of the seed."""

    def take(self, first: int, count: int) -> list[Prompt]:
        """`count` prompts from place `first` of that order."""
        ...


class Players(Protocol):
    """Of all roles, those that rollouts need (rlft.loops.on_policy.Roles)."""

    @property
    def generator(self) -> Generator: ...
    @property
    def rewarder(self) -> Rewarder: ...
    @property
    def background(self) -> bool: ...


@dataclass(frozen=True)
class Finished:
    """A group that is ready to be learned from."""

    group: Group
    version: int  # of the weights under which it was begun; its tokens may be of later ones
    generate_s: float
    score_s: float


@dataclass(frozen=True)
class Progress:
    """For a checkpoint: which groups are ready, which were begun and will be begun anew, and which is next."""

    next_place: int
    finished: dict[int, Finished]
    begun: tuple[int, ...]


def sampling_params(config: Config) -> SamplingParams:
    """How training samples are drawn."""
    generator = config.generator
    return SamplingParams(
        num_samples=config.algorithm.group_size,
        max_new_tokens=generator.max_new_tokens,
        temperature=generator.temperature,
        min_new_tokens=generator.min_new_tokens,
        stop=tuple(generator.stop),
        stop_token_ids=tuple(generator.stop_token_ids),
        ignore_eos=generator.ignore_eos,
    )


_LATER_S = 10.0  # whoever draws or scores has the same limit, and can say which actor hangs: it speaks first


class Rollouts:
    """Groups that were begun and not yet learned from, by their place in the order of the data."""

    def __init__(
        self, roles: Players, prompts: PromptSource, config: Config, progress: Progress | None, first_step: int = 0
    ) -> None:
        """`progress`: from the checkpoint from which the run goes on at `first_step`."""
        self._generator, self._rewarder, self._prompts, self._config = roles.generator, roles.rewarder, prompts, config
        self._per_step = config.loop.prompts_per_step
        self._in_order, self._background = not in_flight(config), roles.background
        start = Progress(first_step * self._per_step, {}, ()) if progress is None else progress
        self._next = start.next_place
        self._again = list(start.begun)  # to be begun anew
        self._finished = dict(start.finished)
        self._begun: dict[int, int] = {}  # place -> version, of what is being drawn or scored
        self._arrivals: queue.Queue[tuple[int, Finished] | BaseException] = queue.Queue()
        self._streams: set[int] = set()  # whose samples are still being drawn
        self._drawn = threading.Condition()

    def admit(self, step: int) -> None:
        """Begin as many groups as staleness allows at the beginning of this step, whose number is also the version of
        the weights."""
        places, self._again = self._again, []
        steps = min(steps_ahead(self._config) + 1, self._config.loop.steps - step)
        missing = steps * self._per_step - len(places) - len(self._finished) - len(self._begun)
        self._begin([*places, *self._new_places(max(0, missing))], step)

    def take(self, step: int) -> Rollout:
        """The groups of this step, waiting for them if need be."""
        algorithm = self._config.algorithm
        num_replaced, limit = 0, algorithm.replace_flat_groups if flat_is_useless(algorithm) else 0
        while True:
            chosen = self._first() if self._in_order else self._quickest(step)
            known = self._finished if chosen is None else chosen
            if self._in_order and not all(place in self._finished for place in known):
                known = ()  # which come in first is a matter of time: that must not decide which are replaced
            flat = [p for p in known if num_replaced < limit and p in self._finished and self._is_flat(p)]
            flat = flat[: limit - num_replaced]
            if flat:
                for place in flat:
                    del self._finished[place]
                self._begin(self._new_places(len(flat)), step)
                num_replaced += len(flat)
            elif chosen is not None and all(place in self._finished for place in chosen):
                break
            else:
                self._await_one()
        taken = [self._finished.pop(place) for place in sorted(chosen)]
        generate_s, score_s = max(t.generate_s for t in taken), max(t.score_s for t in taken)
        return Rollout([t.group for t in taken], generate_s, score_s, num_replaced)

    def _first(self) -> list[int]:
        """Places of the groups that come first in the data, finished or not."""
        return sorted([*self._begun, *self._finished])[: self._per_step]

    def _quickest(self, step: int) -> list[int] | None:
        """Places of one step's worth of finished groups such that all others can still be learned from in time; None
        when more must finish first. A group of version v is due at step v + max_staleness, and each step takes
        `per_step`: of those due within j steps at most j steps' worth may stay behind."""
        staleness, size = self._config.loop.max_staleness, self._per_step
        versions = self._begun | {place: finished.version for place, finished in self._finished.items()}
        chosen: list[int] = []
        for j in range(staleness + 1):
            due = {place for place, version in versions.items() if version + staleness <= step + j}
            missing = len(due) - j * size - len(due.intersection(chosen))
            ready = [place for place in self._finished if place in due and place not in chosen]  # the quickest first
            if missing > len(ready):
                return None
            chosen += ready[: max(0, missing)]
        chosen += [place for place in self._finished if place not in chosen][: size - len(chosen)]
        return chosen if len(chosen) == size else None

    def _is_flat(self, place: int) -> bool:
        """All samples have the same reward. Samples without one are not dropped in silence: such a group stays."""
        group = self._finished[place].group
        return all(s.reward is not None for s in group.samples) and bool(flat_groups(reward_matrix([group]))[0])

    def _new_places(self, count: int) -> list[int]:
        places = list(range(self._next, self._next + count))
        self._next += count
        return places

    def _begin(self, places: Sequence[int], version: int) -> None:
        """Start drawing; one stream for each step's worth, so that a resumed run draws in the same batches."""
        for start in range(0, len(places), self._per_step):
            part = places[start : start + self._per_step]
            self._begun |= dict.fromkeys(part, version)
            prompts = [self._prompts.take(place, 1)[0] for place in part]
            params, seed = sampling_params(self._config), self._config.run.seed
            seeds = [
                [sample_seed(seed, *divmod(place, self._per_step), index) for index in range(params.num_samples)]
                for place in part
            ]
            stream = self._generator.generate(prompts, seeds, params, version)
            with self._drawn:
                self._streams.add(part[0])
            if self._background:
                work = threading.Thread(target=self._consume, args=(stream, part, version), daemon=True)
                work.start()
            else:
                self._consume(stream, part, version)

    def _consume(self, stream: Iterator[tuple[int, Group]], places: Sequence[int], version: int) -> None:
        """Bring a stream's groups to their rewards and then to the loop, each as soon as it is ready."""

        def until_drawn() -> Iterator[tuple[int, Group]]:
            yield from stream
            self._end_of_drawing(places[0])

        try:
            for i, group, generate_s, score_s in score_stream(until_drawn(), self._rewarder, len(places)):
                self._arrivals.put((places[i], Finished(group, version, generate_s, score_s)))
        except BaseException as error:
            self._arrivals.put(error)  # raised where the loop waits
        finally:
            self._end_of_drawing(places[0])

    def _end_of_drawing(self, stream: int) -> None:
        with self._drawn:
            self._streams.discard(stream)
            self._drawn.notify_all()

    def _await_one(self, block: bool = True) -> bool:
        """Take in one finished group; False when none is there and `block` is False."""
        limit = self._config.cluster.stage_timeout_s + _LATER_S
        try:
            arrival = self._arrivals.get(timeout=limit) if block else self._arrivals.get_nowait()
        except queue.Empty:
            if not block:
                return False
            raise RunError(
                f"rollouts: no group was finished for {limit:.0f} s (cluster.stage_timeout_s); {len(self._begun)} are "
                f"being drawn or scored, the first under weight version {min(self._begun.values(), default=-1)}"
            ) from None
        if isinstance(arrival, BaseException):
            raise arrival
        place, finished = arrival
        del self._begun[place]
        self._finished[place] = finished
        return True

    def await_drawn(self) -> None:
        """In order: wait until everything that was begun is drawn (scoring may go on), because new weights are not to
        reach it. In flight they are."""
        if not self._in_order:
            return
        limit = self._config.cluster.stage_timeout_s
        with self._drawn:
            if not self._drawn.wait_for(lambda: not self._streams, timeout=limit):
                raise RunError(f"rollouts: {len(self._streams)} batches were not drawn within {limit:.0f} s")

    def progress(self, step: int) -> Progress | None:
        """For a checkpoint after `step` steps. In order everything under way is waited for; in flight what is not
        finished is noted, to be begun anew. None when nothing is under way."""
        while self._begun and self._await_one(block=self._in_order):
            pass
        if not self._begun and not self._finished and self._next == step * self._per_step:
            return None
        return Progress(self._next, dict(self._finished), tuple(sorted(self._begun)))

    def close(self) -> None:
        """Nothing is waited for: threads that still draw end with the process or with their actors."""
