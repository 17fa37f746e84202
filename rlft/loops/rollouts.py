"""Rollouts ahead of the learner, as far as staleness allows and no further.

A step's rollouts are its prompts, drawn and scored. `start_through` begins those of every step up to a bound; the loop
calls it only after a weight sync, so the bound is what limits how old samples get. Knows nothing about where the roles
run: with `background` the waiting is done on threads, without it each rollout is finished before `start_through`
returns; what is drawn with which weights is the same.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from rlft.config import Config
from rlft.roles import Generator, Rewarder
from rlft.rollout import Rollout, collect, draw
from rlft.samples import Prompt, SamplingParams


class PromptSource(Protocol):
    """Where prompts come from: a pure function of the step."""

    def batch(self, step: int, num_prompts: int) -> list[Prompt]:
        """The prompts of a step."""
        ...


def sampling_params(config: Config) -> SamplingParams:
    """How training samples are drawn."""
    generator = config.generator
    return SamplingParams(
        num_samples=config.algorithm.group_size,
        max_new_tokens=generator.max_new_tokens,
        temperature=generator.temperature,
        min_new_tokens=generator.min_new_tokens,
        stop=tuple(generator.stop),
        ignore_eos=generator.ignore_eos,
    )


class Rollouts:
    """Rollouts of coming steps, begun and not yet taken."""

    def __init__(
        self, generator: Generator, rewarder: Rewarder, prompts: PromptSource, config: Config,
        background: bool, ready: dict[int, Rollout],
    ) -> None:  # fmt: skip
        """`ready`: rollouts that a checkpoint brought along."""
        self._generator, self._rewarder, self._prompts, self._config = generator, rewarder, prompts, config
        self._threads = ThreadPoolExecutor(config.loop.max_staleness + 1) if background else None
        self._running: dict[int, Future[Rollout]] = {}
        for step, rollout in ready.items():
            self._running[step] = Future()
            self._running[step].set_result(rollout)

    def start_through(self, last: int, first: int, version: int) -> None:
        """Begin the rollouts of steps first .. last (as far as the run goes) that have not begun yet."""
        for step in range(first, min(last, self._config.loop.steps - 1) + 1):
            if step not in self._running:
                self._running[step] = self._start(step, version)

    def _start(self, step: int, version: int) -> Future[Rollout]:
        prompts = self._prompts.batch(step, self._config.loop.prompts_per_step)
        stream = draw(self._generator, prompts, sampling_params(self._config), self._config.run.seed, step, version)
        if self._threads is not None:
            return self._threads.submit(collect, stream, self._rewarder, len(prompts))
        done: Future[Rollout] = Future()
        done.set_result(collect(stream, self._rewarder, len(prompts)))
        return done

    def take(self, step: int) -> Rollout:
        """The rollout of a step, waiting for it if need be."""
        return self._running.pop(step).result()

    def settle(self) -> dict[int, Rollout]:
        """Wait for every rollout that has begun, and keep it: for a checkpoint."""
        return {step: future.result() for step, future in self._running.items()}

    def close(self) -> None:
        """Do not wait for what is still running."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
