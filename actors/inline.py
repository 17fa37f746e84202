"""All roles in this process: no Ray, a debugger works. The same engines, called directly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from rewards.combine import RewardSet
from rlft.config import Config
from rlft.config.derived import learner_kind, reference_in_learner, starts_scorer, uses_critic, uses_teacher
from rlft.engines.build import make_generator, make_scorer
from rlft.engines.learner import Call, RankedCritic, RankedLearner, RankedRewardModel, ReferenceInLearner
from rlft.engines.task_learner import RankedTasks
from rlft.environments.build import make_episodes
from rlft.environments.load import BoundEnvironment
from rlft.environments.worker import ThreadRunner
from rlft.loops.offline import OfflineRoles
from rlft.loops.on_policy import Roles
from rlft.roles import Generator, Scorer
from rlft.samples import Group


class InlineRewarder:
    """See rlft.roles.Rewarder."""

    def __init__(self, rewards: RewardSet) -> None:
        self._rewards = rewards

    def score(self, groups: Iterator[tuple[int, Group]]) -> Iterator[tuple[int, Group]]:
        """Each group as it comes."""
        for place, group in groups:
            yield place, self._rewards.score_group(group)


def learner(config: Config) -> RankedLearner:
    """A learner of one rank."""
    from rlft.engines.policy_rank import PolicyRank

    return RankedLearner(config, _one_rank(PolicyRank, config, config.learner.gpus))


def reward_model(config: Config) -> RankedRewardModel:
    """A reward model of one rank, that learns."""
    from rlft.engines.reward_rank import RewardRank

    return RankedRewardModel(config, _one_rank(RewardRank, config, config.learner.gpus))


def tasks(config: Config) -> RankedTasks:
    """A model of one rank that learns several tasks."""
    from rlft.engines.task_rank import TaskRank

    return RankedTasks(config, _one_rank(TaskRank, config, config.learner.gpus))


def critic(config: Config) -> RankedCritic:
    """A critic of one rank."""
    from rlft.engines.critic_rank import CriticRank

    return RankedCritic(config, _one_rank(CriticRank, config, config.critic.gpus))


def _one_rank(kind: Any, config: Config, gpus: float) -> Call:
    from rlft.engines.deepspeed import Rendezvous

    rank = kind(config, Rendezvous(), _device(gpus))
    return lambda method, args: [getattr(rank, method)(*args[0])]


@contextmanager
def generator(config: Config, environment: BoundEnvironment | None) -> Iterator[Generator]:
    """The generator, with the environment in threads around it if there is one."""
    gpus = config.generator.gpus
    with closing(make_generator(config, _device(gpus), num_gpus=gpus)) as engine:
        if environment is None:
            yield engine
            return
        with closing(make_episodes(config, environment, engine, ThreadRunner(environment))) as episodes:
            yield episodes


@contextmanager
def on_policy_roles(config: Config, rewards: RewardSet, environment: BoundEnvironment | None = None) -> Iterator[Roles]:
    """All roles of an on-policy run."""
    with generator(config, environment) as drawing:
        learns = learner(config)
        yield Roles(
            generator=drawing,
            rewarder=InlineRewarder(rewards),
            learner=learns,
            scorer=_reference(config, learns),
            teacher=make_scorer(config, _device(config.teacher.gpus), "teacher") if uses_teacher(config) else None,
            critic=critic(config) if uses_critic(config) else None,
            background=False,
            facts={"this process": rewards.facts()},
        )


def offline_roles(config: Config) -> OfflineRoles:
    """All roles of a run that learns from data."""
    make: Any = {"learner": learner, "reward_model": reward_model, "tasks": tasks}[learner_kind(config)]
    learns = make(config)
    teacher = make_scorer(config, _device(config.teacher.gpus), "teacher") if uses_teacher(config) else None
    return OfflineRoles(learns, _reference(config, learns), teacher)


def _reference(config: Config, learns: Any) -> Scorer | None:
    if reference_in_learner(config):
        return ReferenceInLearner(learns)
    return make_scorer(config, _device(config.scorer.gpus)) if starts_scorer(config) else None


def _device(gpus: float) -> str:
    return "cuda" if gpus > 0 else "cpu"
