"""The reward of a sample: the weighted sum of what several functions say, or none at all when one of them could not.

Knows nothing about Ray; a RewardSet can be sent to a worker, where functions from files are loaded again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from rewards.call import Caller
from rewards.load import BoundReward, resolve
from rlft.config.roles import RewardFunction, RewardsConfig
from rlft.errors import RunError, UserError
from rlft.samples import ENVIRONMENT, Group, RewardResult, Sample

GATE_ROUNDING = 1e-9  # of values that are sums: 0.1 + 0.2 reaches 0.3


class RewardSet:
    """The reward functions of a run."""

    def __init__(
        self,
        config: RewardsConfig,
        extra: Sequence[Callable[..., Any] | RewardFunction] = (),
        environment_weight: float | None = None,
        may_be_empty: bool = False,
    ) -> None:
        """Resolve the functions of `config` and then `extra`, those of a driver script. `environment_weight`: factor of
        what an environment has given, None without one. Raises UserError when a function is not usable, when nothing
        gives rewards (unless it `may_be_empty`: then every reward is 0), or when two are given the same name."""
        given = [spec.name for spec in config.functions if spec.name]
        if environment_weight is not None:
            given = [*given, ENVIRONMENT]
        twice = [name for name, count in Counter(given).items() if count > 1]
        if twice:
            whose = "a function and the environment" if twice[0] == ENVIRONMENT else "two functions"
            raise UserError(f"rewards.functions: {whose} have the name {twice[0]!r}. Give each its own.")
        self.rewards: list[BoundReward] = []
        for spec in (*config.functions, *extra):
            bound = resolve(spec)
            chosen = isinstance(spec, RewardFunction) and spec.name
            self.rewards.append(bound if chosen else replace(bound, name=self._free_name(bound.name, given)))
        _check_shape(self.rewards)
        self._environment_weight = environment_weight
        self.is_empty = not self.rewards and environment_weight is None
        if self.is_empty and not may_be_empty:
            raise UserError(
                "rewards.functions is empty. Name at least one, for instance "
                "--rewards.functions '[{function: math}]', or pass rewards=[my_function]."
            )
        self._caller = Caller()
        self._weights = {reward.name: reward.weight for reward in self.rewards}
        self._weights[ENVIRONMENT] = 1.0 if environment_weight is None else environment_weight

    @property
    def names(self) -> list[str]:
        """The functions' names in metrics and reward_parts; different from each other."""
        return [reward.name for reward in self.rewards]

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raise UserError when a function needs a column that is not among `columns`. For before a run starts."""
        columns = list(columns)
        for reward in self.rewards:
            reward.check_columns(columns)

    def facts(self) -> dict[str, Mapping[str, Any]]:
        """For the run's records, where this is called: of each function that has something to tell (an attribute
        `facts`, called with its args), that. A text under "warning" is for people. Raises UserError when a function
        cannot work here."""
        return {
            reward.name: reward.function.facts(**reward.args)  # type: ignore[attr-defined]
            for reward in self.rewards
            if hasattr(reward.function, "facts")
        }

    def score_group(self, group: Group, alone: AbstractContextManager[Any] | None = None) -> Group:
        """`group` with `reward` and `reward_parts` on every sample. The environment's part, which is there already,
        stays and counts.

        May be called by several threads at once. `alone`: a lock that is held while a function is called that does not
        say it may be called for several groups at once; a judge may, it mostly waits.

        A function that fails leaves a status there and no reward. Raises UserError when a function is wrong in itself
        (wrong number of values, say), RunError when too many calls hang.
        """
        if not group.samples:
            return group
        results = self._results(group, alone or nullcontext())
        samples = []
        for sample, parts in zip(group.samples, results, strict=True):
            if self._environment_weight is not None and ENVIRONMENT in sample.reward_parts:
                parts = {ENVIRONMENT: sample.reward_parts[ENVIRONMENT], **parts}
            if not parts and not self.is_empty:
                parts = {ENVIRONMENT: RewardResult(None, "none", "no turn of the episode was given a reward")}
            parts = {name: replace(part, weight=self._weights[name]) for name, part in parts.items()}
            samples.append(replace(sample, reward=_total(parts), reward_parts=parts))
        return group.with_samples(samples)

    def _results(self, group: Group, alone: AbstractContextManager[Any]) -> list[dict[str, RewardResult]]:
        """For each sample, what the functions say, one after the other: what a gate has closed out is not asked."""
        parts: list[dict[str, RewardResult]] = [{} for _ in group.samples]
        inside = list(range(len(parts)))  # samples for which every gate so far is open
        closed_by = ""
        for reward in self.rewards:
            asked = group.with_samples([group.samples[i] for i in inside])
            earlier = {name: [parts[i][name].value for i in inside] for name in parts[0]}
            with reward.beside(len(inside)) if reward.beside and inside else alone:
                said = iter(self._caller.results(reward, asked, earlier) if inside else ())
            for i, own in enumerate(parts):
                gated = RewardResult(None, "gated", f"not asked: {closed_by} is a gate, and it is closed", used=0.0)
                own[reward.name] = _bounded(next(said), reward) if i in inside else gated
            if reward.gate is not None:
                closed_by = reward.name
                inside = [i for i in inside if _reaches(parts[i][reward.name].value, reward.gate)]
        return parts

    def _free_name(self, name: str, reserved: Sequence[str]) -> str:
        taken = {*self.names, *reserved}
        number, free = 2, name
        while free in taken:
            free, number = f"{name}_{number}", number + 1
        return free


def _total(parts: Mapping[str, RewardResult]) -> float | None:
    """The weighted sum; None when a part has no value."""
    total = 0.0
    for part in parts.values():
        if part.counted is None:
            return None
        total += part.weight * part.counted
    return total


def _bounded(result: RewardResult, reward: BoundReward) -> RewardResult:
    """Within floor and cap, where there are any and it has a value."""
    if result.value is None or (reward.floor is None and reward.cap is None):
        return result
    above = result.value if reward.floor is None else max(result.value, reward.floor)
    return replace(result, used=above if reward.cap is None else min(above, reward.cap))


def _reaches(value: float | None, gate: float) -> bool:
    return value is not None and value >= gate - GATE_ROUNDING


def _check_shape(rewards: Sequence[BoundReward]) -> None:
    """Raise UserError for floors, caps and gates that mean nothing, and for functions that need another before them."""
    for place, reward in enumerate(rewards):
        if reward.floor is not None and reward.cap is not None and reward.floor >= reward.cap:
            raise UserError(
                f"rewards: {reward.name!r} has floor {reward.floor:g} and cap {reward.cap:g}, so it would always count "
                "the same. Expected a floor below the cap."
            )
        if reward.gate is not None and place == len(rewards) - 1:
            raise UserError(
                f"rewards: {reward.name!r} has gate {reward.gate:g} and stands last, so the gate closes nothing out. "
                "Move it in front of the functions that it is a gate for, or leave the gate out."
            )
        if hasattr(reward.function, "check_order"):
            reward.function.check_order([before.name for before in rewards[:place]], **reward.args)


def check_failures(groups: Sequence[Group], max_failed_fraction: float) -> None:
    """Raise RunError when more than `max_failed_fraction` of the samples have no reward; say which function, how it
    failed and where."""
    samples = [(group.prompt.id, sample) for group in groups for sample in group.samples]
    failed = [(place, sample) for place, sample in samples if sample.reward is None]
    if not samples or len(failed) / len(samples) <= max_failed_fraction:
        return
    raise RunError(
        f"rewards: {len(failed)} of {len(samples)} samples have no reward, more than rewards.max_failed_fraction "
        f"{max_failed_fraction:g} allows. {_failures(failed)}Mend the function, or raise rewards.max_failed_fraction."
    )


def _failures(failed: Sequence[tuple[str, Sample]]) -> str:
    bad = [
        (name, result, place)
        for place, sample in failed
        for name, result in sample.reward_parts.items()
        if result.counted is None
    ]
    if not bad:
        return "No reward function was called for them. "
    lines = []
    for function in dict.fromkeys(name for name, _, _ in bad):
        own = [(result, place) for name, result, place in bad if name == function]
        statuses = Counter(result.status for result, _ in own)
        counts = ", ".join(f"{status} {count}" for status, count in statuses.most_common())
        detail = Counter(result.detail for result, _ in own).most_common(1)[0][0]
        example = next(place for result, place in own if result.detail == detail)
        lines.append(f"Reward {function!r}: {counts}; most often {detail!r}, for instance for prompt {example}. ")
    return "".join(lines)
