"""JUDGE.yaml: who judges, by what, and where it is written down. As strict as a run's configuration.

Knows nothing about requests or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from rlft.config.base import Section
from rlft.config.load import load_section
from rlft.config.problems import Problem
from rlft.endpoint.config import EndpointConfig
from rlft.synthesis.config import RunConfig, asking_problems


class JudgeConfig(Section):
    """judge: what is asked about two answers."""

    question: str = (
        "Which answer is better: more correct, more helpful and more to the point? A longer answer is not a better one."
    )
    """What the judge compares by, in words."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of verdicts."""
    max_asks: int = Field(default=3, ge=1)
    """How often each order is asked until the last line of a reply is a verdict."""
    reference_column: str | None = None
    """Column of the data with the answers to compare with, instead of another model's."""


class JudgeJob(Section):
    """The whole file."""

    run: RunConfig = RunConfig()
    endpoint: EndpointConfig
    judge: JudgeConfig = JudgeConfig()


def load_judge(file: str, overrides: Sequence[str] = ()) -> JudgeJob:
    """The YAML file with overrides on top. Raises UserError with everything that is wrong, by line."""
    return load_section(JudgeJob, file, overrides, check=_problems)


def _problems(job: JudgeJob) -> Iterator[Problem]:
    yield from asking_problems(job.run, job.endpoint)
    if "temperature" in job.endpoint.model_fields_set:
        yield Problem("endpoint.temperature", "has no effect on a judge; give judge.temperature instead")
    if not job.judge.question.strip():
        yield Problem("judge.question", "is empty; say what the judge compares by, or leave the key out")
