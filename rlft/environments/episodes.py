"""Samples of several turns: a generator that lets an environment answer what another generator draws.

The first turn of a prompt is drawn as a group, so that the prompt is computed once. Then each sample goes on by itself:
what its environment has answered is sent on together with whatever else is ready, while other samples are still drawn
or their environments still think. Generated tokens are never tokenised again; what the environment says stands between
them with loss_mask False. Knows the generator by its Protocol and environments by `worker.Runner`.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlft.environments.episode import Episode, Party
from rlft.environments.turns import Turns
from rlft.environments.worker import Answer, Method, Runner
from rlft.errors import RunError, UserError
from rlft.roles import Generator
from rlft.samples import Group, Prompt, SamplingParams, continuation_seed

MAX_CALLS = 32  # further calls of the generator that one call of ours has under way; more would be of few samples each
LINGER_S = 0.005  # how long what is ready waits for environments that answer at about the same time


@dataclass(frozen=True)
class Limits:
    """What bounds an episode and the waiting for it."""

    max_turns: int
    window: int  # tokens of prompt and everything behind it
    wait_s: float  # longest time in which nothing at all happens


class EpisodeGenerator:
    """See rlft.roles.Generator: `generate` gives groups whose samples have several turns; everything else is the inner
    generator's. `params.max_new_tokens` is a turn's."""

    def __init__(self, generator: Generator, runner: Runner, turns: Turns, limits: Limits) -> None:
        self._generator, self._runner, self._turns, self._limits = generator, runner, turns, limits
        self._keys = itertools.count()

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int
    ) -> Iterator[tuple[int, Group]]:
        """See rlft.roles.Generator. Begins at the first `next`. The prompts of the groups are the environment's, where
        it gives one."""
        parties = [
            Party(prompt, [Episode(next(self._keys), place, seed) for seed in row])
            for place, (prompt, row) in enumerate(zip(prompts, seeds, strict=True))
        ]
        return _Drive(self._generator, self._runner, self._turns, self._limits, parties, params, version).groups()

    def load(self, update: Any) -> bool:
        """See rlft.roles.Generator."""
        return self._generator.load(update)

    def probe(self, prompt: Prompt, seed: int, params: SamplingParams) -> dict[str, Group]:
        """See rlft.roles.Generator: one turn, without an environment."""
        return self._generator.probe(prompt, seed, params)

    def sleep(self) -> None:
        """See rlft.roles.Generator."""
        self._generator.sleep()

    def close(self) -> None:
        """No further calls of environments; the inner generator is its maker's to close."""
        self._runner.close()


class _Drive:
    """One call of `generate`. Its state belongs to the consumer's thread; others only put events into the queue: each a
    function to be called in that thread, or an error to be raised there."""

    def __init__(
        self, generator: Generator, runner: Runner, turns: Turns, limits: Limits, parties: Sequence[Party],
        params: SamplingParams, version: int,
    ) -> None:  # fmt: skip
        self._generator, self._runner, self._turns, self._limits = generator, runner, turns, limits
        self._parties, self._params, self._version = parties, params, version
        self._events: queue.Queue[Callable[[], None] | BaseException] = queue.Queue()
        self._closed = threading.Event()
        self._thinking: dict[int, tuple[Method, Episode]] = {}  # calls of environments under way, by key
        self._drawing: dict[int, int] = {}  # samples still to come, by the number of the call
        self._calls = itertools.count()
        self._new: list[Party] = []  # ready for their first turn
        self._ready: list[Episode] = []  # ready for a further turn
        self._done: list[int] = []  # places of finished groups that were not handed over

    def groups(self) -> Iterator[tuple[int, Group]]:
        """(place, group) as groups finish."""
        try:
            for party in self._parties:
                for episode in party.episodes:
                    self._ask("reset", episode, party.prompt.columns)
            for _ in self._parties:
                while not self._done:
                    self._send()
                    self._take_in()
                place = self._done.pop(0)
                yield place, self._finished_group(self._parties[place])
        finally:
            self._closed.set()
            self._runner.drop([e.key for party in self._parties for e in party.episodes])

    # Waiting

    def _take_in(self) -> None:
        """Wait for something to happen and for what happens at the same time."""
        self._handle(self._next_event())
        until = time.monotonic() + LINGER_S
        while not self._done:
            wait = max(0.0, until - time.monotonic()) if self._thinking and (self._ready or self._new) else 0.0
            try:
                event = self._events.get(timeout=wait) if wait else self._events.get_nowait()
            except queue.Empty:
                return
            self._handle(event)

    def _next_event(self) -> Callable[[], None] | BaseException:
        try:
            return self._events.get(timeout=self._limits.wait_s)
        except queue.Empty:
            calls = [f"{method} of {self._name(episode)}" for method, episode in self._thinking.values()]
            raise RunError(
                f"episodes: nothing happened for {self._limits.wait_s:.0f} s (cluster.stage_timeout_s); turns being "
                f"drawn: {sum(self._drawing.values())}; calls of the environment under way: {len(calls)}"
                f"{f', among them {calls[0]}' if calls else ''}"
            ) from None

    @staticmethod
    def _handle(event: Callable[[], None] | BaseException) -> None:
        if isinstance(event, BaseException):
            raise event
        event()

    def _name(self, episode: Episode) -> str:
        party = self._parties[episode.place]
        return f"{party.prompt.id}, sample {party.episodes.index(episode)}"

    # Environments

    def _ask(self, method: Method, episode: Episode, argument: Any) -> None:
        self._thinking[episode.key] = method, episode

        def done(get: Callable[[], Answer]) -> None:
            self._events.put(lambda: self._answered(method, episode, get()))

        self._runner.call(method, episode.key, argument, done)

    def _answered(self, method: Method, episode: Episode, answer: Answer) -> None:
        del self._thinking[episode.key]
        episode.seconds += answer.seconds
        if method == "step":
            self._stepped(episode, answer)
            return
        party = self._parties[episode.place]
        party.resets[episode.key] = answer
        if len(party.resets) == len(party.episodes):
            self._begin(party)

    def _begin(self, party: Party) -> None:
        """Every environment of a prompt was reset, or could not be. A sample whose reset failed keeps its first turn,
        so that groups stay whole, and has no reward."""
        given = [answer.value for answer in party.resets.values() if answer.status == "ok"]
        row = party.prompt
        different = next((value for value in given if value != given[0]), None) if given else None
        if different is not None or (None in given and given[0] is not None):
            raise UserError(
                f"{row.id}: the environment's reset gave different prompts for samples of one row: {given[0]!r:.100} "
                f"and {different!r:.100}. They are compared with each other, so they need the same prompt: make it a "
                "function of the row alone (random numbers from a seed in the row)."
            )
        if given and given[0] is not None:
            party.prompt = self._turns.prompt(given[0], row)
        length, room = len(party.prompt.token_ids), self._limits.window - self._params.max_new_tokens
        if not 0 < length <= room:
            raise UserError(
                f"{row.id}: the environment's prompt has {length} tokens, and there is room for 1 to {max(room, 0)} "
                f"(window {self._limits.window} - max_new_tokens {self._params.max_new_tokens})."
            )
        for episode in party.episodes:
            if party.resets[episode.key].status != "ok":
                episode.fail(party.resets[episode.key])
        self._new.append(party)

    def _stepped(self, episode: Episode, answer: Answer) -> None:
        """The environment has answered a turn: does the sample go on?"""
        if answer.status != "ok":
            episode.fail(answer)
            return self._finish(episode)
        step, party = answer.value, self._parties[episode.place]
        episode.add_step(step)
        if step.done:
            return self._finish(episode)
        episode.finish_reason = "length"  # unless it goes on
        if episode.num_turns >= self._limits.max_turns:
            return self._finish(episode)
        chat = party.prompt.messages is not None
        ids, messages = self._turns.between(step.observation, episode.last_token, chat)
        length = len(party.prompt.token_ids) + episode.num_tokens + len(ids)
        if length + self._params.max_new_tokens > self._limits.window:
            return self._finish(episode)
        episode.add_observation(ids, messages)
        self._ready.append(episode)

    def _finish(self, episode: Episode) -> None:
        party = self._parties[episode.place]
        party.finished.add(episode.key)
        if party.is_finished:
            self._done.append(episode.place)

    def _finished_group(self, party: Party) -> Group:
        prompt = party.prompt.token_ids
        samples = [e.sample(prompt, self._turns.text(e.sequence(prompt)[len(prompt) :])) for e in party.episodes]
        self._runner.drop([episode.key for episode in party.episodes])
        return party.group(samples)

    # Drawing

    def _send(self) -> None:
        """Have everything drawn that is ready: first turns in groups, further ones alone."""
        if self._new:
            parties, self._new = self._new, []
            prompts = [party.prompt for party in parties]
            self._draw(prompts, [[e.seed for e in p.episodes] for p in parties], self._params, [
                p.episodes for p in parties
            ])  # fmt: skip
        if self._ready and len(self._drawing) < MAX_CALLS:
            episodes, self._ready = self._ready, []
            seeds = [[continuation_seed(e.seed, e.num_tokens)] for e in episodes]
            prompts = [self._so_far(e) for e in episodes]
            self._draw(prompts, seeds, replace(self._params, num_samples=1), [[e] for e in episodes])

    def _so_far(self, episode: Episode) -> Prompt:
        """What a sample has, as the prompt of its next turn."""
        prompt, where = self._parties[episode.place].prompt, self._name(episode)
        sequence = episode.sequence(prompt.token_ids)
        return replace(prompt, id=f"{where}, turn {episode.num_turns + 1}", token_ids=sequence)

    def _draw(
        self, prompts: list[Prompt], seeds: list[list[int]], params: SamplingParams, whose: list[list[Episode]]
    ) -> None:
        number = next(self._calls)
        self._drawing[number] = sum(map(len, whose))
        stream = self._generator.generate(prompts, seeds, params, self._version)
        work = threading.Thread(target=self._consume, args=(stream, number, whose), name="episodes", daemon=True)
        work.start()

    def _consume(self, stream: Iterator[tuple[int, Group]], number: int, whose: list[list[Episode]]) -> None:
        try:
            for place, group in stream:
                if self._closed.is_set():
                    return
                self._events.put(lambda group=group, episodes=whose[place]: self._drawn(number, group, episodes))
            self._events.put(lambda: self._end_of_call(number))
        except BaseException as error:
            self._events.put(error)  # raised where the consumer waits

    def _drawn(self, number: int, group: Group, episodes: list[Episode]) -> None:
        self._drawing[number] -= len(episodes)
        for episode, sample in zip(episodes, group.samples, strict=True):
            episode.add_turn(sample, len(group.prompt.token_ids))
            if episode.failure is not None:  # of its reset
                self._finish(episode)
            else:
                self._ask("step", episode, sample.text)

    def _end_of_call(self, number: int) -> None:
        missing = self._drawing.pop(number)
        if missing:
            raise RunError(f"episodes: the generator ended without {missing} of the samples that it was asked for")
