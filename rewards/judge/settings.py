"""The args of the reward `judge`, as strict as the rest of a configuration, and the file of a rubric."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from rlft.config.base import Section
from rlft.config.load import load_section, read_section
from rlft.config.problems import Problem
from rlft.endpoint.config import EndpointConfig, endpoint_problems
from rlft.errors import UserError
from rlft.synthesis.constitution import Constitution, load_constitution

_ONLY = {  # the modes in which a key has an effect
    "question": ("score", "pairwise"),
    "min": ("score", "constitution"),
    "max": ("score", "constitution"),
    "rubric": ("rubric",),
    "rubric_column": ("rubric",),
    "constitution": ("constitution", "pairwise"),
    "rounds": ("pairwise",),
}
QUESTIONS = {
    "score": "How good is the answer: how correct, helpful and to the point? A longer answer is not a better one.",
    "pairwise": "Which answer is better: more correct, more helpful and more to the point? A longer answer is not a "
    "better one.",
}


class Criterion(Section):
    """One line of a rubric."""

    name: str
    """What it is called in the verdict."""
    criterion: str
    """What must hold of the answer: "It names a source for each number."."""
    weight: float = 1.0
    """How much it counts. Below 0 for a mistake: when it holds, so much goes off."""


class Rubric(Section):
    """A rubric's file."""

    criteria: list[Criterion]
    """What is looked at."""


class JudgeArgs(Section):
    """args of the reward judge."""

    endpoint: EndpointConfig
    """The judge's server and model."""
    mode: Literal["score", "pairwise", "rubric", "constitution"] = "score"
    """`score`: a number for each answer. `pairwise`: which of two answers is better, in both orders. `rubric`: which
    criteria an answer meets. `constitution`: a number for each principle."""
    question: str | None = None
    """What the judge goes by, in words. For score and pairwise."""
    min: float = 0.0
    """The lowest score that the judge may give; it becomes 0."""
    max: float = 10.0
    """The highest; it becomes 1."""
    rubric: str | None = None
    """YAML file with the criteria."""
    rubric_column: str | None = None
    """Column of the data with each row's own criteria: a list of {name, criterion, weight}, also as JSON text."""
    constitution: str | None = None
    """YAML file with principles, as for `rlft synth`. Mode constitution asks for the `score` of each; mode pairwise
    draws one for each prompt and goes by its `prefer`."""
    reference_column: str | None = None
    """Column of the data with a reference answer. pairwise compares with it; the others show it to the judge."""
    rounds: int = Field(default=1, ge=1)
    """pairwise without a reference: each answer is compared with this many behind it in its group, so with twice as
    many in all; each pair is asked in both orders."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of verdicts."""
    max_asks: int = Field(default=3, ge=1)
    """How often is asked until a reply is a verdict."""
    max_failures: int = Field(default=5, ge=1)
    """After so many requests in a row that were given up, nothing is asked for pause_s."""
    pause_s: float = Field(default=30.0, gt=0)
    """See max_failures."""
    cache: bool | str = False
    """Ask the same thing once: true keeps verdicts in each worker's memory, the name of a file also for later runs."""


def read_args(args: Mapping[str, Any]) -> JudgeArgs:
    """The args of a configuration. Raises UserError with everything that is wrong."""
    try:
        return read_section(JudgeArgs, args, check=_problems)
    except UserError as error:
        raise UserError(f"rewards: args of judge: {error}") from None


def load_rubric(file: str) -> list[Criterion]:
    """The criteria in a YAML file. Raises UserError with everything that is wrong."""
    return load_section(Rubric, file, check=lambda rubric: _criteria_problems(rubric.criteria)).criteria


def rubric_of(value: Any) -> list[Criterion]:
    """A row's own criteria. Raises UserError with everything that is wrong."""
    try:
        tree = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UserError(f"rewards: judge.rubric_column holds text that is not JSON ({error}): {value!r:.60}") from None
    try:
        found = read_section(
            Rubric, {"criteria": list(tree or ())}, check=lambda rubric: _criteria_problems(rubric.criteria)
        )
    except (UserError, TypeError) as error:
        raise UserError(f"rewards: judge.rubric_column: {error}; found {value!r:.80}") from None
    return found.criteria


def principles_of(args: JudgeArgs) -> Constitution | None:
    """The principles, where there are any. Raises UserError for a file that does not do."""
    if args.constitution is None:
        return None
    return load_constitution(args.constitution, "score" if args.mode == "constitution" else "prefer")


def _problems(args: JudgeArgs) -> Iterator[Problem]:
    yield from endpoint_problems(args.endpoint)
    if "temperature" in args.endpoint.model_fields_set:
        yield Problem("endpoint.temperature", "has no effect on a judge; give temperature beside endpoint instead")
    for key, modes in _ONLY.items():
        if args.mode not in modes and key in args.model_fields_set:
            yield Problem(key, f"has no effect in mode {args.mode}, only in {' and '.join(modes)}; leave it out")
    if args.question is not None and not args.question.strip():
        yield Problem("question", "is empty; say what the judge goes by, or leave the key out")
    if args.min >= args.max:
        yield Problem("min", f"is {args.min:g} and max is {args.max:g}; expected less than max")
    if args.mode == "rubric" and (args.rubric is None) == (args.rubric_column is None):
        yield Problem("rubric", "mode rubric needs either rubric (a YAML file) or rubric_column (a column of the data)")
    if args.mode == "constitution" and args.constitution is None:
        yield Problem("constitution", "is required in mode constitution: a YAML file with principles")
    if args.mode == "pairwise" and args.constitution is not None and args.question is not None:
        yield Problem("question", "has no effect beside constitution; keep one")
    if args.reference_column is not None and "rounds" in args.model_fields_set:
        yield Problem("rounds", "has no effect with reference_column, with which every answer is compared once")
    if args.cache == "":
        yield Problem("cache", "is empty; expected true, false or the name of a file")


def _criteria_problems(criteria: list[Criterion]) -> Iterator[Problem]:
    names = [one.name for one in criteria]
    if not any(one.weight > 0 for one in criteria):
        yield Problem("criteria", "has none with a weight above 0, so that every answer would get 0")
    for number, one in enumerate(criteria):
        if not one.criterion.strip() or not one.name.strip():
            yield Problem(f"criteria.{number}", "has an empty name or criterion; expected text")
        if names.count(one.name) > 1:
            yield Problem(f"criteria.{number}.name", f'"{one.name}" is there twice; give each its own')
        if one.weight == 0:
            yield Problem(f"criteria.{number}.weight", "is 0, so it would be asked for nothing; leave the line out")
