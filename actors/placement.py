"""Where actors go: one placement group for a whole run, so that it starts whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.process import ENVIRONMENT
from rlft.config import Config
from rlft.config.base import Actors
from rlft.config.roles import LearnerConfig
from rlft.errors import UserError


@dataclass(frozen=True)
class Seat:
    """What one actor reserves."""

    name: str  # "generator-0"
    cpus: float
    gpus: float
    resources: dict[str, float]

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
    roles: dict[str, tuple[Actors | LearnerConfig, int]] = {"learner": (config.learner, config.learner.num_ranks)}
    if config.algorithm.type != "sft":
        roles["generator"] = (config.generator, config.generator.num_actors)
        roles["reward_worker"] = (config.rewards, config.rewards.num_actors)
        if config.algorithm.kl_coef > 0:
            roles["scorer"] = (config.scorer, config.scorer.num_actors)
    return {
        role: [Seat(f"{role}-{i}", c.cpus, c.gpus, dict(c.resources)) for i in range(count)]
        for role, (c, count) in roles.items()
    }


def total(all_seats: dict[str, list[Seat]]) -> Counter[str]:
    """Everything that a run reserves."""
    need: Counter[str] = Counter()
    for seat in (s for group in all_seats.values() for s in group):
        need.update(seat.bundle())
    return need


def reserve(config: Config, all_seats: dict[str, list[Seat]]) -> tuple[PlacementGroup, dict[str, Any]]:
    """Reserve every seat; gives the group and for each seat the options that put its actor there. Raises UserError when
    the cluster is too small, saying what there is, what is free and which role asked for how much."""
    flat = [seat for group in all_seats.values() for seat in group]
    have, need = ray.cluster_resources(), total(all_seats)
    short = [kind for kind, amount in need.items() if amount > have.get(kind, 0) + 1e-6]
    if short:
        raise UserError(_too_small(all_seats, have, short))
    strategy = "PACK" if config.cluster.placement == "pack" else "SPREAD"
    group = placement_group([seat.bundle() for seat in flat], strategy=strategy)
    if not group.wait(config.cluster.start_timeout_s):
        remove_placement_group(group)
        free = ", ".join(f"{k} {v:g}" for k, v in sorted(ray.available_resources().items()) if k in need)
        raise UserError(
            f"the actors found no room on the cluster within {config.cluster.start_timeout_s:.0f} s: they need "
            f"{_amounts(need)}, free now: {free or 'nothing'}. No single node may have room for one actor, or another "
            "run holds the resources. Lower generator.cpus, learner.gpus and so on, or wait for the other run."
        )
    options = {}
    for i, seat in enumerate(flat):
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)
        options[seat.name] = {
            "num_cpus": seat.bundle().get("CPU", 0), "num_gpus": seat.gpus, "resources": seat.resources or None,
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
