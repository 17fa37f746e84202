"""What travels between processes: prompts, the samples drawn for them, and their rewards.

Frozen dataclasses of numpy and builtins, so that Ray hands them over without copying the arrays. Knows nothing about
torch, Ray or any engine. One flat token sequence per sample; entry t of every array describes token t.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

RewardStatus = Literal["ok", "wrong", "unparsed", "timeout", "refused", "error", "none", "gated"]
"""What became of a judgement. `ok`, and with a value too: `wrong` (a right or wrong question, answered wrongly),
`unparsed` (no answer could be read in the completion). `timeout` and `refused` have a value when it is the completion's
doing (a program that does not end) and none when the judge could not do its work. `error` and `none` have no value.
`gated`: not asked, as a gate before it was closed; counts 0."""
FinishReason = Literal["stop", "length"]
ENVIRONMENT = "environment"  # name of the part of a reward that the environment gives


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, ready for a generator."""

    id: str  # names the row it came from, e.g. "train.jsonl:17"
    token_ids: np.ndarray  # int32 [P]
    text: str  # the prompt as the model sees it, template included
    messages: tuple[Mapping[str, str], ...] | None  # the conversation, when the data is chat
    columns: Mapping[str, Any]  # every column of the row, ground truth among them
    source: str = ""  # the name of the data.mixture's source that it is of


@dataclass(frozen=True, slots=True)
class RewardResult:
    """What one reward function said of one sample. A sample of which a part has nothing to count is not learned
    from."""

    value: float | None
    status: RewardStatus
    detail: str = ""  # for people: the error, or why
    seconds: float = 0.0
    weight: float = 1.0  # in the sample's reward
    used: float | None = None  # counts instead of `value`: within the function's floor and cap, 0 behind a closed gate
    counts: Mapping[str, float] = field(default_factory=dict)  # what it took, summed up in metrics: requests, tokens

    @property
    def counted(self) -> float | None:
        """What is weighed and added up; None when the function could not say."""
        return self.value if self.used is None else self.used


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The likeliest tokens in the place of each token of a sample; all 0 where nothing is trained."""

    ids: np.ndarray  # int32 [T, K]
    logprobs: np.ndarray  # f32 [T, K], at `temperature`
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class TaskLabels:
    """What a head should say of a row of its task. P: the places that the head reads, where the row's loss_mask is
    True."""

    task: str  # the task's name
    values: np.ndarray  # by kind: int64 [1] label, f32 [1, C] of many labels 0 or 1, f32 [1] number; int64 [P] label of
    # each word; int64 [2] first and last place of the answer
    spans: np.ndarray | None = None  # int32 [P, 2], for questions: the characters of the text that each place is
    answers: tuple[str, ...] = ()  # for questions: right answers


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion, with its prompt in front: T = prompt tokens + completion tokens."""

    token_ids: np.ndarray  # int32 [T]
    loss_mask: np.ndarray  # bool [T], True on tokens to train on
    logprobs: np.ndarray  # f32 [T], the sampler's log-prob of each token; 0 where loss_mask is False
    weight_versions: np.ndarray  # int32 [T], version of the weights that made the token; -1 where nobody sampled it
    finish_reason: FinishReason
    seed: int
    text: str  # the decoded completion, special tokens left out; with an environment, what that said is in it
    reward: float | None = None  # the weighted sum; None when a part failed, and the sample is not trained on
    reward_parts: Mapping[str, RewardResult] = field(default_factory=dict)
    advantages: np.ndarray | None = None  # f32 [T]
    old_logprobs: np.ndarray | None = None  # f32 [T], the learner's before its first update on this sample
    ref_logprobs: np.ndarray | None = None  # f32 [T], the reference policy's
    values: np.ndarray | None = None  # f32 [T], what the critic expects before each token
    returns: np.ndarray | None = None  # f32 [T], what it should have expected
    teacher_logprobs: np.ndarray | None = None  # f32 [T], the teacher's of each token
    teacher_top: TopTokens | None = None  # or its likeliest tokens
    turn_rewards: np.ndarray | None = None  # f32 [T], on each turn's last token what the environment gave, else NaN
    turns: tuple[Mapping[str, Any], ...] = ()  # with an environment: what was said behind the prompt, as messages
    tool_errors: int = 0  # calls of tools that failed
    labels: TaskLabels | None = None  # for a row of a task

    @classmethod
    def given(cls, token_ids: np.ndarray, loss_mask: np.ndarray, text: str) -> Sample:
        """One that nobody drew: an example from data."""
        return cls(
            token_ids=token_ids,
            loss_mask=loss_mask,
            logprobs=np.zeros(len(token_ids), dtype=np.float32),
            weight_versions=np.full(len(token_ids), -1, dtype=np.int32),
            finish_reason="stop",
            seed=0,
            text=text,
        )

    @property
    def num_trained(self) -> int:
        """Number of tokens that are trained on."""
        return int(self.loss_mask.sum())

    @property
    def own_text(self) -> str:
        """What the model itself said, in all its turns: an answer that only a tool gave is not its own."""
        if not self.turns:
            return self.text
        return "".join(turn["content"] for turn in self.turns if turn["role"] == "assistant")

    @property
    def num_turns(self) -> int:
        """How often the model spoke."""
        return sum(turn["role"] == "assistant" for turn in self.turns) if self.turns else 1


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one prompt. Every sample begins with the prompt's tokens."""

    prompt: Prompt
    samples: tuple[Sample, ...]

    def with_samples(self, samples: Sequence[Sample]) -> Group:
        """The same prompt with other samples."""
        return replace(self, samples=tuple(samples))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw. `temperature` 0 takes the most likely token. Training draws from the whole distribution (no top-p,
    no top-k), because a learner cannot reproduce renormalised probabilities."""

    num_samples: int
    max_new_tokens: int
    temperature: float = 1.0
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()  # besides the tokens that end a completion anyway
    ignore_eos: bool = False  # draw exactly max_new_tokens tokens; for benchmarks


def sample_seed(seed: int, step: int, position: int, index: int) -> int:
    """The sampling seed of one sample, in [0, 2**63): a function of the run's seed, the step, the prompt's place in the
    step's batch and the sample's index in its group. Hence a restarted generator makes the same sample again."""
    digest = hashlib.blake2b(np.array([seed, step, position, index], dtype="<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def continuation_seed(seed: int, num_tokens: int) -> int:
    """The seed with which a sample goes on after so many tokens, for engines whose random numbers begin anew with each
    request; the sample's own seed at the start."""
    if num_tokens == 0:
        return seed
    digest = hashlib.blake2b(np.array([seed, num_tokens], dtype="<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Totals:
    """Numbers of the whole update: all ranks, all micro-batches. Losses are sums divided by these counts, so that one
    batch, its micro-batches, its packing and any number of ranks give the same result."""

    num_tokens: int  # trained tokens
    num_samples: int
    max_new_tokens: int  # longest completion allowed
    kl: float = 0.0  # for KTO: of the policy from the reference, in nats a completion

    def token_weight(self, average: str, num_trained: int) -> float:
        """Weight in the loss of each token of a sample with `num_trained` trained tokens."""
        if average == "token":
            return 1.0 / self.num_tokens
        if average == "sequence":
            return 1.0 / (num_trained * self.num_samples)
        if average == "max_length":
            return 1.0 / (self.max_new_tokens * self.num_samples)
        if average == "sample_sum":
            return 1.0 / self.num_samples
        raise ValueError(f"unknown average {average!r}")


def count_totals(groups: Sequence[Group], max_new_tokens: int) -> Totals:
    """Totals over these groups; at least 1 each, so that an empty update divides by something."""
    samples = [sample for group in groups for sample in group.samples]
    return Totals(max(1, sum(s.num_trained for s in samples)), max(1, len(samples)), max_new_tokens)
