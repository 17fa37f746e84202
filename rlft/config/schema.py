"""The whole configuration of a run. One home for each key; the sections are in the files beside this one."""

from __future__ import annotations

from rlft.config.algorithm import AlgorithmConfig
from rlft.config.base import Section
from rlft.config.data import DataConfig, EvaluationConfig
from rlft.config.environment import EnvironmentConfig
from rlft.config.model import ModelConfig
from rlft.config.roles import CriticConfig, GeneratorConfig, LearnerConfig, RewardsConfig, ScorerConfig, TeacherConfig
from rlft.config.run import ClusterConfig, LoopConfig, RunConfig, TrackingConfig
from rlft.config.tasks import TaskConfig


class Config(Section):
    """Everything that a run needs to know."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    tasks: list[TaskConfig] = []
    """For algorithm.type tasks: what is learned side by side."""
    generator: GeneratorConfig = GeneratorConfig()
    environment: EnvironmentConfig | None = None
    rewards: RewardsConfig = RewardsConfig()
    scorer: ScorerConfig = ScorerConfig()
    teacher: TeacherConfig = TeacherConfig()
    learner: LearnerConfig = LearnerConfig()
    critic: CriticConfig = CriticConfig()
    loop: LoopConfig = LoopConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()
