"""Roles that play by the Protocols of rlft.roles without any model, and write down what happens to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlft.errors import WeightSyncError
from rlft.loops.on_policy import Roles, Underway
from rlft.loops.rollouts import Progress
from rlft.samples import Group, Prompt, Sample, SamplingParams, Totals
from tests.helpers import make_prompt, make_sample

Event = tuple[Any, ...]


@dataclass
class Journal:
    """What happened, in order; written to from several threads."""

    events: list[Event] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, *event: Any) -> None:
        with self.lock:
            self.events.append(event)

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event[0] in kinds]


def believed(sample: Sample, updates: int) -> np.ndarray:
    """Log-probs that the fake policy gives after so many updates: a function of token and weights."""
    values = -1.0 - 0.001 * sample.token_ids - 0.01 * updates
    return np.where(sample.loss_mask, values, 0.0).astype(np.float32)


@dataclass(frozen=True)
class FakeUpdate:
    """Stands for a WeightUpdate."""

    version: int
    updates: int
    everything: bool
    num_bytes: int


@dataclass
class FakeGenerator:
    """Each completion is one token, the number of the version and of the sample; `drift` spoils its log-probs."""

    journal: Journal
    drift: float = 0.0
    reads_back: bool = True
    version: int | None = None
    updates: int = 0

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int
    ) -> Iterator[tuple[int, Group]]:
        if self.version is None or self.version < version:
            raise WeightSyncError(f"asked for version {version}, on {self.version}")
        self.journal.write("generate", version, prompts[0].id)
        groups = [self._group(p, s, version) for p, s in zip(prompts, seeds, strict=True)]  # begins when called
        return iter(list(enumerate(groups))[::-1])  # the last is ready first

    def _group(self, prompt: Prompt, seeds: Sequence[int], version: int) -> Group:
        samples = [make_sample(prompt, [10 + i, 20 + version], seed=seed) for i, seed in enumerate(seeds)]
        return Group(prompt, tuple(
            replace(s, logprobs=believed(s, self.updates), weight_versions=np.where(s.loss_mask, version, -1))
            for s in samples
        ))  # fmt: skip

    def load(self, update: FakeUpdate) -> bool:
        self.journal.write("load", update.version)
        self.version, self.updates = update.version, update.updates
        return self.reads_back

    def probe(self, prompt: Prompt, seed: int, params: SamplingParams) -> dict[str, Group]:
        self.journal.write("probe", self.version, params.temperature)
        group = self._group(prompt, [seed], self.version or 0)
        (right,) = group.samples
        drift = np.where(right.loss_mask, np.float32(self.drift), np.float32(0))
        return {"first": group, "second": group.with_samples([replace(right, logprobs=right.logprobs + drift)])}

    def sleep(self) -> None:
        self.journal.write("sleep", self.version)


@dataclass
class FakeRewarder:
    """Rewards by index in the group: 0, 1, 0, 1 and so on; None for the samples of `failing`."""

    journal: Journal
    failing: frozenset[int] = frozenset()

    def score(self, groups: Iterator[tuple[int, Group]]) -> Iterator[tuple[int, Group]]:
        for place, group in groups:
            rewards = [None if i in self.failing else float(i % 2) for i in range(len(group.samples))]
            yield place, group.with_samples([replace(s, reward=r) for s, r in zip(group.samples, rewards, strict=True)])


@dataclass
class FakeScorer:
    """The reference: the policy before any update."""

    journal: Journal

    kept: int = 0  # updates of the policy that it is

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        self.journal.write("reference", sum(len(g.samples) for g in groups))
        return [[believed(s, self.kept) - 0.5 * s.loss_mask for s in g.samples] for g in groups]

    def load(self, update: FakeUpdate) -> None:
        self.kept = update.updates

    def save(self, folder: Path) -> None:
        (folder / "reference").write_text(str(self.kept))

    def restore(self, folder: Path) -> None:
        self.kept = int((folder / "reference").read_text())


@dataclass
class FakeLearner:
    """Counts updates and keeps what each was given."""

    journal: Journal
    updates: int = 0
    given: list[tuple[list[Group], Totals, int]] = field(default_factory=list)

    def logprobs(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        return [[believed(s, self.updates) for s in g.samples] for g in groups]

    def entropies(self, groups: Sequence[Group]) -> list[list[np.ndarray]]:
        return [[np.where(s.loss_mask, s.token_ids, 0).astype(np.float32) for s in g.samples] for g in groups]

    def update(
        self, groups: Sequence[Group], totals: Totals, step: int, kl_coef: float | None = None
    ) -> dict[str, float]:
        self.journal.write("update", step)
        self.given.append((list(groups), totals, step))
        self.updates += 1
        metrics = {"policy/loss": float(self.updates), "policy/skipped_updates": 0.0}
        if groups:
            metrics["sampler/logprob_diff_max"] = float(self.updates)
        return metrics

    def publish(self, version: int, everything: bool = False, carried: bool = False) -> FakeUpdate:
        self.journal.write("publish", version, everything)
        return FakeUpdate(version, self.updates, everything, 100 if everything else 10)

    def send(self, update: FakeUpdate) -> None:
        """The update carries everything."""

    def save(self, folder: Path) -> None:
        (folder / "updates").write_text(str(self.updates))

    def restore(self, folder: Path) -> None:
        self.updates = int((folder / "updates").read_text())


@dataclass
class FakePrompts:
    """Prompt i of step s is called "s/i", with four prompts in a step."""

    def take(self, first: int, count: int) -> list[Prompt]:
        return [make_prompt([4, 5, 6][: 1 + p % 4 % 3], f"{p // 4}/{p % 4}") for p in range(first, first + count)]


@dataclass
class FakeConsole:
    """Keeps what people are told."""

    messages: list[str] = field(default_factory=list)

    def message(self, text: str) -> None:
        self.messages.append(text)


@dataclass
class FakeRun:
    """Stands for rlft.runs.run.Run: begins where `folder` says, keeps what is logged."""

    step: int = 0
    progress: Progress | None = None
    restore_from: Path | None = None
    save_every: int = 0
    save_to: Path | None = None
    kl_coef: float = 0.0
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    saved: list[tuple[int, Progress | None]] = field(default_factory=list)
    console: FakeConsole = field(default_factory=FakeConsole)

    def restore(self, learner: Any, others: Sequence[Any] = ()) -> tuple[int, Underway | None]:
        for part in (learner, *others) if self.restore_from is not None else ():
            part.restore(self.restore_from)
        return self.step, None if self.progress is None else Underway(self.progress, self.kl_coef)

    def log_step(self, step: int, metrics: Any, clock: Any, num_tokens: int, groups: Sequence[Group] = ()) -> None:
        self.logged.append((step, dict(metrics)))

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        self.evaluations.append((step, metrics))

    def save_is_due(self, step: int) -> bool:
        return bool(self.save_every) and step % self.save_every == 0

    def save(self, step: int, learner: Any, loop: Any = None, others: Sequence[Any] = ()) -> None:
        self.saved.append((step, None if loop is None else loop.rollouts))
        self.kl_coef = self.kl_coef if loop is None else loop.kl_coef
        for part in (learner, *others) if self.save_to is not None else ():
            part.save(self.save_to)


def make_roles(background: bool = False, reference: bool = False, **generator: Any) -> tuple[Roles, Journal]:
    """All roles around one journal."""
    journal = Journal()
    roles = Roles(
        generator=FakeGenerator(journal, **generator), rewarder=FakeRewarder(journal), learner=FakeLearner(journal),
        scorer=FakeScorer(journal) if reference else None, background=background,
    )  # fmt: skip
    return roles, journal
