"""All roles as Ray actors, each in its place on the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray.util.placement_group import remove_placement_group

from actors.channel import connect
from actors.cluster import connected
from actors.environment import ActorRunner, EnvironmentActor
from actors.generator import GeneratorActor, GeneratorGroup
from actors.learner import LearnerActor, start_ranks
from actors.placement import Seat, reserve, seats
from actors.reward_worker import RewarderGroup, RewardWorker
from actors.scorer import ScorerActor, ScorerGroup
from actors.supervisor import deaths_named, get_all
from rewards.combine import RewardSet
from rlft.config import Config
from rlft.config.derived import learner_kind, reference_in_learner, weight_transport
from rlft.engines.learner import Call, RankedCritic, RankedLearner, RankedRewardModel, ReferenceInLearner
from rlft.engines.task_learner import RankedTasks
from rlft.environments.build import make_episodes
from rlft.environments.load import BoundEnvironment
from rlft.errors import RunError
from rlft.loops.offline import OfflineRoles
from rlft.loops.on_policy import Roles

Start = Callable[..., tuple[list[Any], list[str]]]
TRAINED: dict[str, Any] = {"learner": RankedLearner, "reward_model": RankedRewardModel, "tasks": RankedTasks}


@contextmanager
def _placed(config: Config) -> Iterator[tuple[dict[str, list[Seat]], Start]]:
    """Ray runs and every seat is reserved: the seats, and the way to start the actors of a role in theirs. At the end
    the actors are killed and the seats given back."""
    all_seats = seats(config)
    with connected(config, all_seats):
        group, options = reserve(config, all_seats)
        started: dict[str, Any] = {}

        def start(role: str, kind: Any, *args: Any) -> tuple[list[Any], list[str]]:
            mine = {s.name: kind.options(**options[s.name]).remote(config, s, *args) for s in all_seats.get(role, [])}
            started.update(mine)
            return list(mine.values()), list(mine)

        try:
            with deaths_named(started):
                yield all_seats, start
        finally:
            remove_placement_group(group)  # kills the actors in it


def _trained(
    config: Config, start: Start, role: str = "learner", kind: str = ""
) -> tuple[Call, dict[str, str], list[Any]]:
    """The way to call the ranks of the learner or the critic, where each runs, and their actors. `kind` of rank, where
    it is not named as the role."""
    actors, names = start(role, LearnerActor, kind or role)
    call, places = start_ranks(actors, names, config, role)
    return call, dict(zip(names, places, strict=True)), actors


@contextmanager
def offline_roles(config: Config) -> Iterator[OfflineRoles]:
    """All roles of a run that learns from data, loaded and ready."""
    with _placed(config) as (_, start):
        scorers, names = start("scorer", ScorerActor)
        teachers, teacher_names = start("teacher", ScorerActor, "teacher")
        kind = learner_kind(config)
        call, places, _ = _trained(config, start, kind=kind)
        everyone, all_names = [*scorers, *teachers], [*names, *teacher_names]
        limit = config.cluster.start_timeout_s
        ready = get_all([actor.ready.remote() for actor in everyone], all_names, "starting", limit)
        limit = config.cluster.stage_timeout_s
        learner: Any = TRAINED[kind](config, call)
        reference = ReferenceInLearner(learner) if reference_in_learner(config) else None
        yield OfflineRoles(
            learner=learner,
            scorer=ScorerGroup(scorers, names, limit) if scorers else reference,
            teacher=ScorerGroup(teachers, teacher_names, limit, "teacher") if teachers else None,
            places=places | dict(zip(all_names, ready, strict=True)),
        )


@contextmanager
def on_policy_roles(config: Config, rewards: RewardSet, environment: BoundEnvironment | None = None) -> Iterator[Roles]:
    """All roles of an on-policy run, loaded and ready."""
    with _placed(config) as (all_seats, start):
        generators, generator_names = start("generator", GeneratorActor)
        workers, worker_names = start("reward_worker", RewardWorker, rewards)
        scorers, scorer_names = start("scorer", ScorerActor)
        teachers, teacher_names = start("teacher", ScorerActor, "teacher")
        environments, environment_names = start("environment", EnvironmentActor, environment)
        call, places, learners = _trained(config, start)
        critic = None
        if "critic" in all_seats:
            critic_call, critic_places, _ = _trained(config, start, "critic")
            critic, places = RankedCritic(config, critic_call), places | critic_places
        everyone = [*generators, *workers, *scorers, *teachers, *environments]
        names = [*generator_names, *worker_names, *scorer_names, *teacher_names, *environment_names]
        ready = get_all([actor.ready.remote() for actor in everyone], names, "starting", config.cluster.start_timeout_s)
        told = get_all([w.facts.remote() for w in workers], worker_names, "starting", config.cluster.start_timeout_s)
        limit = config.cluster.stage_timeout_s
        if weight_transport(config) == "collective":
            connect(learners, all_seats["learner"][0].name, generators, generator_names, config)
        generator: Any = GeneratorGroup(generators, generator_names, limit)
        if environment is not None:
            generator = make_episodes(config, environment, generator, ActorRunner(environments, environment_names))
        learner = RankedLearner(config, call)
        reference = ReferenceInLearner(learner) if reference_in_learner(config) else None
        try:
            yield Roles(
                generator=generator,
                rewarder=RewarderGroup(workers, worker_names, limit),
                learner=learner,
                critic=critic,
                teacher=ScorerGroup(teachers, teacher_names, limit, "teacher") if teachers else None,
                scorer=ScorerGroup(scorers, scorer_names, limit) if scorers else reference,
                background=True,
                places=places | dict(zip(names, ready, strict=True)),
                facts=dict(zip(worker_names, told, strict=True)),
            )
        finally:
            with suppress(RunError):  # one that is dead or stuck is killed with the rest; 20 s: a few for each process
                GeneratorGroup(generators, generator_names, timeout_s=20).close()
