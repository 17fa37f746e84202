"""One sample of several turns while it grows: what was drawn, what the environment answered, what it earned.

Knows nothing about generators, threads or how environments are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlft.environments.base import Step
from rlft.environments.worker import Answer
from rlft.samples import ENVIRONMENT, FinishReason, Group, Prompt, RewardResult, Sample


@dataclass
class Episode:
    """Array entries describe the tokens behind the prompt; `parts` are (token_ids, loss_mask, logprobs,
    weight_versions) of turns and observations in their order."""

    key: int  # names it to the environments
    place: int  # of its prompt
    seed: int
    parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    turns: list[Mapping[str, Any]] = field(default_factory=list)  # the parts as messages
    num_turns: int = 0
    tool_errors: int = 0
    rewards: list[tuple[int, float]] = field(default_factory=list)  # turn (from 1), reward
    seconds: float = 0.0  # in the environment
    failure: RewardResult | None = None  # of a call of the environment
    finish_reason: FinishReason = "stop"

    @property
    def num_tokens(self) -> int:
        """Tokens behind the prompt."""
        return sum(len(part[0]) for part in self.parts)

    @property
    def last_token(self) -> int:
        """The last one that there is."""
        return int(self.parts[-1][0][-1])

    def add_turn(self, sample: Sample, start: int) -> None:
        """What the generator drew, which begins at token `start` of its answer."""
        arrays = sample.token_ids, sample.loss_mask, sample.logprobs, sample.weight_versions
        self.parts.append(tuple(array[start:] for array in arrays))
        self.turns.append({"role": "assistant", "content": sample.text})
        self.num_turns += 1
        self.finish_reason = sample.finish_reason

    def add_observation(self, token_ids: np.ndarray, messages: Sequence[Mapping[str, Any]]) -> None:
        """Tokens that nobody sampled and nobody trains on."""
        count = len(token_ids)
        rest = np.zeros(count, bool), np.zeros(count, np.float32), np.full(count, -1, np.int32)
        self.parts.append((token_ids.astype(np.int32), *rest))
        self.turns.extend(messages)

    def add_step(self, step: Step) -> None:
        """What the environment said of the last turn, without its observation."""
        self.tool_errors += step.tool_errors
        if step.reward is not None:
            self.rewards.append((self.num_turns, step.reward))

    def fail(self, answer: Answer) -> None:
        """A call of the environment went wrong; the sample has no reward."""
        assert answer.status != "ok"
        detail = f"turn {self.num_turns}: {answer.detail}" if self.num_turns else answer.detail
        self.failure = RewardResult(None, answer.status, detail, answer.seconds)

    def sequence(self, prompt: np.ndarray) -> np.ndarray:
        """The prompt and all that follows, int32 [T]."""
        return np.concatenate([prompt, *(part[0] for part in self.parts)])

    def sample(self, prompt: np.ndarray, text: str) -> Sample:
        """The whole of it; `text` is decoded from what is behind the prompt."""
        count = len(prompt)
        before = prompt, np.zeros(count, bool), np.zeros(count, np.float32), np.full(count, -1, np.int32)
        columns = [np.concatenate(column) for column in zip(before, *self.parts, strict=True)]
        return Sample(
            *columns,
            finish_reason=self.finish_reason,
            seed=self.seed,
            text=text,
            reward_parts=self._reward_parts(),
            turns=tuple(self.turns),
            turn_rewards=self._turn_rewards(count),
            tool_errors=self.tool_errors,
        )

    def _turn_rewards(self, start: int) -> np.ndarray | None:
        """See Sample.turn_rewards; None when no turn was given anything."""
        if not self.rewards:
            return None
        given = dict.fromkeys(range(1, self.num_turns + 1), 0.0)
        for number, reward in self.rewards:
            given[number] += reward
        columns, turns = [np.full(start, np.nan)], iter(given.values())
        for _, mask, *_ in self.parts:
            columns.append(np.full(len(mask), np.nan))
            if mask.any():
                columns[-1][-1] = next(turns)
        return np.concatenate(columns).astype(np.float32)

    def _reward_parts(self) -> dict[str, RewardResult]:
        if self.failure is not None:
            return {ENVIRONMENT: self.failure}
        if not self.rewards:
            return {}
        detail = "; ".join(f"turn {turn}: {reward:g}" for turn, reward in self.rewards)
        return {ENVIRONMENT: RewardResult(sum(reward for _, reward in self.rewards), "ok", detail, self.seconds)}


@dataclass
class Party:
    """The episodes of one prompt."""

    prompt: Prompt
    episodes: list[Episode]
    resets: dict[int, Answer] = field(default_factory=dict)  # by key, as they come
    finished: set[int] = field(default_factory=set)  # keys

    @property
    def is_finished(self) -> bool:
        """No sample goes on."""
        return len(self.finished) == len(self.episodes)

    def group(self, samples: Sequence[Sample]) -> Group:
        """The samples of its episodes as a group."""
        return Group(self.prompt, tuple(samples))
