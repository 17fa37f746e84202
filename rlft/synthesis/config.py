"""The YAML files of `rlft synth`: one schema per command, as strict as a run's configuration.

Knows nothing about requests or files besides what their keys are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from rlft.config.base import Section
from rlft.config.data import DataConfig
from rlft.config.load import load_section
from rlft.config.places import DATA_SUFFIXES
from rlft.config.problems import Problem, near_files
from rlft.config.roles import RewardFunction
from rlft.endpoint.config import EndpointConfig, endpoint_problems


class SourceConfig(Section):
    """data: the prompts."""

    path: str
    """Read like data.path of a run: JSONL, JSON or Parquet file, a folder saved by `datasets`, a name on the Hub."""
    split: str = "train"
    """The split, for data sets that have several."""
    prompt_column: str | None = None
    """Column with the prompt (text or messages). Found by itself when it has one of the usual names."""
    system_prompt: str | None = None
    """Put in front of each conversation for the endpoint. The rows that are made do not have it."""
    max_rows: int | None = Field(default=None, ge=1)
    """Use only the first rows. May be raised later: the same output goes on."""

    def as_data(self) -> DataConfig:
        """The same for the readers of rlft.data."""
        return DataConfig.model_validate(self.model_dump())


class RunConfig(Section):
    """run: where rows go, and when to stop."""

    out: str | None = None
    """The JSONL file to make; `--out FILE` on the command line."""
    seed: int = 0
    """Fixes which principles are drawn for each row, and the seeds that the endpoint is sent."""
    max_cost: float | None = Field(default=None, gt=0)
    """Send no further request once this has been spent, earlier starts with the same output included."""
    max_failed_fraction: float = Field(default=0.2, ge=0, le=1)
    """Stop when more than this part of the rows failed, once 20 are done, and at the end."""


class ReviseConfig(Section):
    """revise: answers are criticised and rewritten by a constitution (Bai et al. 2022, arXiv:2212.08073)."""

    constitution: str
    """YAML file with the principles."""
    num_principles: int = Field(default=1, ge=1)
    """Principles drawn for each row, one critique and one revision for each, in turn."""
    pairs: bool = False
    """Add `chosen` (the last revision) and `rejected` (the draft); rows where both are the same are left out."""


class PreferConfig(Section):
    """prefer: which of two answers follows a principle better, asked in both orders."""

    constitution: str
    """YAML file with the principles; one is drawn for each row."""
    first_column: str | None = None
    """Column with one answer. Empty: both answers are drawn from the endpoint."""
    second_column: str | None = None
    """Column with the other answer."""
    judge_temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of verdicts."""
    max_asks: int = Field(default=3, ge=1)
    """How often each order is asked until the last line of a reply is a verdict."""


class DistillConfig(Section):
    """distill: the endpoint's model answers, a student learns from it (Kim and Rush 2016, arXiv:1606.07947)."""

    num_answers: int = Field(default=1, ge=1)
    """Answers for each prompt."""
    reasoning: Literal["keep", "drop"] = "keep"
    """`keep`: what the model thought stands before its answer in <think>...</think>. `drop`: only the answer."""
    accept_reward: float = 1.0
    """With rewards.functions: the least reward of an answer that is kept."""


class VerifierConfig(Section):
    """rewards: functions that say which answers are right, as in a run's configuration."""

    functions: list[RewardFunction] = []
    """The reward functions; their weighted sum counts. They see the answer without its reasoning. None: every answer is
    kept."""


class Job(Section):
    """What every command has."""

    run: RunConfig = RunConfig()
    endpoint: EndpointConfig
    data: SourceConfig


class ReviseJob(Job):
    """rlft synth revise."""

    revise: ReviseConfig


class PreferJob(Job):
    """rlft synth prefer."""

    prefer: PreferConfig


class DistillJob(Job):
    """rlft synth distill."""

    distill: DistillConfig = DistillConfig()
    rewards: VerifierConfig = VerifierConfig()


NOT_CONTENT = {
    *("run.out", "run.max_cost", "run.max_failed_fraction", "data.path", "data.max_rows", "endpoint.base_url"),
    *("endpoint.api_key_env", "endpoint.timeout_s", "endpoint.max_concurrent", "endpoint.max_retries"),
    *("endpoint.backoff_s", "endpoint.max_wait_s", "endpoint.prompt_price", "endpoint.completion_price"),
}
"""May differ when a job goes on with the same output: they say where things are, how fast and how far, not what is
made. The model is known by its name, so that its server may move; rows by their fingerprints, so that the data may."""

COMMANDS: dict[str, type[Job]] = {"revise": ReviseJob, "prefer": PreferJob, "distill": DistillJob}
J = TypeVar("J", bound=Job)


def load_job(root: type[J], file: str, overrides: Sequence[str] = ()) -> J:
    """The job in a YAML file with overrides on top. Raises UserError with everything that is wrong."""
    return load_section(root, file, overrides, check=find_problems)


def content_settings(job: Section) -> dict[str, Any]:
    """Every key that shapes what is made, dotted, with its value."""
    tree = job.model_dump(mode="json")
    flat = {f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()}
    return {key: value for key, value in flat.items() if key not in NOT_CONTENT}


def find_problems(job: Job) -> Iterator[Problem]:
    """What the types do not say."""
    if job.run.out is None:
        yield Problem("run.out", "is empty: give --out FILE, for instance --out made.jsonl")
    yield from asking_problems(job.run, job.endpoint)
    if job.data.path.startswith((".", "/", "~")) or job.data.path.endswith(DATA_SUFFIXES):
        yield from _missing_file("data.path", job.data.path, DATA_SUFFIXES)
    if isinstance(job, ReviseJob):
        yield from _missing_file("revise.constitution", job.revise.constitution, (".yaml", ".yml"))
    if isinstance(job, PreferJob):
        yield from _missing_file("prefer.constitution", job.prefer.constitution, (".yaml", ".yml"))
        yield from _prefer_problems(job)
    if isinstance(job, DistillJob) and not job.rewards.functions and "accept_reward" in job.distill.model_fields_set:
        yield Problem("distill.accept_reward", "has no effect without rewards.functions; name one, or leave it out")


def asking_problems(run: RunConfig, endpoint: EndpointConfig) -> Iterator[Problem]:
    """What the types do not say of an endpoint, and of where its answers go."""
    yield from endpoint_problems(endpoint)
    if run.out is not None and not run.out.endswith(".jsonl"):
        yield Problem("run.out", f'found "{run.out}", expected a name that ends in .jsonl')
    if run.max_cost is not None and endpoint.prompt_price is None:
        yield Problem("run.max_cost", "needs endpoint.prompt_price and endpoint.completion_price")


def _missing_file(key: str, path: str, suffixes: tuple[str, ...]) -> Iterator[Problem]:
    file = Path(path).expanduser()
    if not file.exists():
        yield Problem(key, f'"{path}" does not exist{near_files(file, suffixes)}')


def _prefer_problems(job: PreferJob) -> Iterator[Problem]:
    first, second = job.prefer.first_column, job.prefer.second_column
    if (first is None) != (second is None):
        missing = "first_column" if first is None else "second_column"
        yield Problem(f"prefer.{missing}", "is empty, and the other column is named; name both or none")
    elif first is not None and first == second:
        yield Problem("prefer.second_column", f'is "{second}", as the first; expected another column')
    if first is None:
        return
    given = {
        "endpoint.temperature": "temperature" in job.endpoint.model_fields_set,
        "data.system_prompt": job.data.system_prompt is not None,
    }
    for key in (key for key, is_set in given.items() if is_set):
        yield Problem(key, "has no effect where answers come from columns; leave it out (see prefer.judge_temperature)")
