"""Where actors go: one placement group for a whole run, so that it starts whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.process import ENVIRONMENT
from rlft.config import Config
from rlft.config.base import Actors
from rlft.config.derived import draws, starts_scorer, uses_critic, uses_teacher
from rlft.config.roles import TrainedConfig
from rlft.errors import UserError


@dataclass(frozen=True)
class Seat:
    """What one actor reserves."""

    name: str  # "generator-0"
    cpus: float
    gpus: float
    resources: dict[str, float]
    beside: str | None = None  # the seat whose place it shares: the two take turns on the same cores and GPU

    def bundle(self) -> dict[str, float]:
        """As Ray wants it. A placement group refuses empty bundles, so a seat without needs takes a sliver of a CPU."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {k: v for k, v in wanted.items() if v > 0} or {"CPU": 0.001}

    @property
    def device(self) -> str:
        """Where its model lives."""
        return "cuda" if self.gpus > 0 else "cpu"


def seats(config: Config) -> dict[str, list[Seat]]:
    """The seats of each role."""
    roles: dict[str, tuple[Actors | TrainedConfig, int]] = {"learner": (config.learner, config.learner.num_ranks)}
    if starts_scorer(config):
        roles["scorer"] = (config.scorer, config.scorer.num_actors)
    if uses_teacher(config):
        roles["teacher"] = (config.teacher, config.teacher.num_actors)
    if draws(config):
        roles["generator"] = (config.generator, config.generator.num_actors)
        roles["reward_worker"] = (config.rewards, config.rewards.num_actors)
        if config.environment is not None:
            roles["environment"] = (config.environment, config.environment.num_actors)
        if uses_critic(config):
            roles["critic"] = (config.critic, config.critic.num_ranks)
    shared = {"generator": "learner"} if config.cluster.layout == "colocated" else {}
    return {
        role: [
            Seat(f"{role}-{i}", c.cpus, c.gpus, dict(c.resources), f"{shared[role]}-{i}" if role in shared else None)
            for i in range(count)
        ]
        for role, (c, count) in roles.items()
    }


def total(all_seats: dict[str, list[Seat]]) -> Counter[str]:
    """Everything that a run reserves."""
    need: Counter[str] = Counter()
    for bundle in _bundles([seat for group in all_seats.values() for seat in group]).values():
        need.update(bundle)
    return need


def _bundles(flat: Sequence[Seat]) -> dict[str, dict[str, float]]:
    """What is reserved, by the name of the seat that it is reserved for. Two that share a place need the larger of
    both."""
    bundles = {seat.name: seat.bundle() for seat in flat if seat.beside is None}
    for seat in flat:
        if seat.beside is not None:
            other, mine = bundles[seat.beside], seat.bundle()
            bundles[seat.beside] = {kind: max(other.get(kind, 0), mine.get(kind, 0)) for kind in {**other, **mine}}
    return bundles


def reserve(config: Config, all_seats: dict[str, list[Seat]]) -> tuple[PlacementGroup, dict[str, Any]]:
    """Reserve every seat; gives the group and for each seat the options that put its actor there. Raises UserError when
    the cluster is too small, saying what there is, what is free and which role asked for how much."""
    flat = [seat for group in all_seats.values() for seat in group]
    have, need = ray.cluster_resources(), total(all_seats)
    short = [kind for kind, amount in need.items() if amount > have.get(kind, 0) + 1e-6]
    if short:
        raise UserError(_too_small(all_seats, have, short))
    strategy = "PACK" if config.cluster.placement == "pack" else "SPREAD"
    bundles = _bundles(flat)
    group = placement_group(list(bundles.values()), strategy=strategy)
    if not group.wait(config.cluster.start_timeout_s):
        remove_placement_group(group)
        free = ", ".join(f"{k} {v:g}" for k, v in sorted(ray.available_resources().items()) if k in need)
        raise UserError(
            f"the actors found no room on the cluster within {config.cluster.start_timeout_s:.0f} s: they need "
            f"{_amounts(need)}, free now: {free or 'nothing'}. No single node may have room for one actor, or another "
            "run holds the resources. Lower generator.cpus, learner.gpus and so on, or wait for the other run."
        )
    options, index = {}, {name: i for i, name in enumerate(bundles)}
    shared = {seat.beside for seat in flat} - {None}
    for seat in flat:
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index[seat.beside or seat.name])
        part = 0.5 if seat.beside or seat.name in shared else 1.0  # each of two takes half of what both use in turn
        options[seat.name] = {
            "num_cpus": part * seat.bundle().get("CPU", 0), "num_gpus": part * seat.gpus,
            "resources": {kind: part * amount for kind, amount in seat.resources.items()} or None,
            "scheduling_strategy": where, "runtime_env": {"env_vars": ENVIRONMENT},
        }  # fmt: skip
    return group, options


def _too_small(all_seats: dict[str, list[Seat]], have: Mapping[str, float], short: list[str]) -> str:
    lines = []
    for kind in short:
        asked = ", ".join(
            f"{role} {len(group)} x {group[0].bundle().get(kind, 0):g}"
            for role, group in all_seats.items()
            if group[0].bundle().get(kind)
        )
        need = total(all_seats)[kind]
        lines.append(f"{kind}: the run needs {need:g} ({asked}), the cluster has {have.get(kind, 0):g}")
    return (
        "the cluster is too small for this run.\n  "
        + "\n  ".join(lines)
        + "\nAsk for less (for instance --generator.cpus 0.5, --learner.num_ranks 1) or add nodes."
    )


def _amounts(amounts: Counter[str]) -> str:
    return ", ".join(f"{kind} {amount:g}" for kind, amount in sorted(amounts.items()))
