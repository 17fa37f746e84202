"""Golden sets: whether completions are what they must be, and what got better or worse than with another model.

Knows completions only as samples: who drew them, and with which weights, is the caller's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rewards.call import Caller
from rewards.load import BoundReward, resolve
from rlft.config.data import DataConfig
from rlft.config.roles import RewardFunction
from rlft.data.prompts import load_prompts
from rlft.data.reading import Rows
from rlft.errors import UserError
from rlft.evaluation.golden_file import GoldenCase, GoldenFile, golden_error, read_golden, texts_of
from rlft.samples import Group, Prompt

Change = Literal["better", "worse", "same"]
_SHOWN = 60  # characters of a completion in a line of the table


class Expectation(NamedTuple):
    """Something that must hold of a completion."""

    text: str  # for people: `contains "Paris"`
    fails: Callable[[Group], str]  # why it does not hold of the group's one sample; "" when it does


@dataclass(frozen=True)
class Case:
    """A prompt and what is expected."""

    given: GoldenCase
    place: str  # "golden.yaml:12"
    expectations: tuple[Expectation, ...]
    must_pass: bool

    @property
    def name(self) -> str:
        """For people; no other case has it."""
        return str(self.given.name)


@dataclass(frozen=True)
class GoldenSet:
    """A file, ready to be asked about completions."""

    file: GoldenFile
    path: str
    cases: tuple[Case, ...]


class Outcome(NamedTuple):
    """What became of one case with one model."""

    fails: tuple[str, ...]  # for each expectation why it does not hold; "" when it does
    text: str  # the completion

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return not any(self.fails)


def load_golden(path: str, max_new_tokens: int) -> GoldenSet:
    """Read a golden set and find its reward functions. `max_new_tokens`: where completions are cut off. Raises
    UserError for a file that cannot be used, with every problem of its cases."""
    file, places = read_golden(path)
    caller = Caller()
    cases, problems = [], list[tuple[int, str]]()
    for given, place in zip(file.cases, places, strict=True):
        line = int(place.rpartition(":")[2])
        if given.max_tokens is not None and given.max_tokens > max_new_tokens:
            problems.append((
                line,
                f"{given.name}: max_tokens {given.max_tokens} is more than generator.max_new_tokens {max_new_tokens}, "
                "where every completion is cut off; expected at most that",
            ))  # fmt: skip
        try:
            expectations = tuple(_expectations(given, caller))
        except UserError as error:
            problems.append((line, f"{given.name}: {error}"))
            continue
        group = file.groups.get(given.group or "")
        must_pass = given.must_pass if given.must_pass is not None else group is not None and group.must_pass
        cases.append(Case(given, place, expectations, must_pass))
    if problems:
        raise golden_error(Path(path), problems)
    return GoldenSet(file, path, tuple(cases))


def _expectations(case: GoldenCase, caller: Caller) -> list[Expectation]:
    found = list[Expectation]()
    if case.equals is not None:
        found.append(_equals(texts_of(case.equals)))
    found += [_text("contains", text, lambda said, part: part in said) for text in texts_of(case.contains)]
    found += [_text("not_contains", text, lambda said, part: part not in said) for text in texts_of(case.not_contains)]
    found += [_text("regex", text, lambda said, part: bool(re.search(part, said))) for text in texts_of(case.regex)]
    if case.max_tokens is not None:
        found.append(_max_tokens(case.max_tokens))
    if case.reward is not None:
        spec = RewardFunction(function=case.reward.function, args=case.reward.args)
        bound = resolve(spec)
        bound.check_columns([*case.columns, "prompt" if case.messages is None else "messages"])
        found.append(_reward(bound, case.reward.min, caller))
    return found


def _equals(texts: Sequence[str]) -> Expectation:
    """One of the texts, white space around it aside."""
    name = "equals " + " or ".join(map(_quoted, texts))
    wanted = {text.strip() for text in texts}
    return Expectation(name, lambda group: "" if group.samples[0].text.strip() in wanted else name)


def _text(kind: str, part: str, holds: Callable[[str, str], bool]) -> Expectation:
    name = f"{kind} {_quoted(part)}"
    return Expectation(name, lambda group: "" if holds(group.samples[0].text, part) else name)


def _max_tokens(limit: int) -> Expectation:
    """Ended by the model itself within so many tokens, the one that ends it included."""

    def fails(group: Group) -> str:
        (sample,) = group.samples
        if sample.finish_reason == "stop" and sample.num_trained <= limit:
            return ""
        return f"max_tokens {limit}: {'cut off at' if sample.finish_reason == 'length' else 'has'} {sample.num_trained}"

    return Expectation(f"max_tokens {limit}", fails)


def _reward(reward: BoundReward, least: float, caller: Caller) -> Expectation:
    """A reward function that gives at least so much. One that fails has not given it."""
    name = f"reward {reward.name} at least {least:g}"

    def fails(group: Group) -> str:
        (result,) = caller.results(reward, group)
        if result.value is None:
            return f"{name}: {result.status} ({result.detail})"
        return "" if result.value >= least else f"{name}: {result.value:.4g}"

    return Expectation(name, fails)


def _quoted(text: str) -> str:
    return f'"{text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."}"'.replace("\n", "\\n")


def golden_prompts(
    golden: GoldenSet, data: DataConfig, tokenizer: Any, *, window: int, max_new_tokens: int
) -> list[Prompt]:
    """The cases' prompts in their order, rendered and tokenised as `data` says for the run's own: messages with the
    chat template, text without unless system_prompt or apply_chat_template ask for it."""
    found: dict[int, Prompt] = {}
    for column in ("prompt", "messages"):
        numbers = [i for i, case in enumerate(golden.cases) if getattr(case.given, column) is not None]
        if not numbers:
            continue
        cases = [golden.cases[i] for i in numbers]
        rows = [{**case.given.columns, column: _content(case.given)} for case in cases]
        places = [f"{case.place} ({case.name})" for case in cases]
        settings = data.model_copy(update={
            "path": None, "prompt_column": column, "max_rows": None, "too_long": "error", "shuffle": False,
            # a conversation needs its template whatever the run does with text
            "apply_chat_template": data.apply_chat_template if column == "prompt" else None,
        })  # fmt: skip
        prompts = load_prompts(
            settings, tokenizer, window=window, max_new_tokens=max_new_tokens, seed=0,
            rows=Rows(rows, places, golden.path),
        ).prompts  # fmt: skip
        found.update(zip(numbers, prompts, strict=True))
    return [found[i] for i in range(len(golden.cases))]


def _content(case: GoldenCase) -> Any:
    return case.prompt if case.messages is None else [message.model_dump() for message in case.messages]


def judge(golden: GoldenSet, groups: Sequence[Group]) -> list[Outcome]:
    """What became of each case: one group of one sample for each, in their order."""
    return [
        Outcome(tuple(expectation.fails(group) for expectation in case.expectations), group.samples[0].text)
        for case, group in zip(golden.cases, groups, strict=True)
    ]


def change(base: Outcome, now: Outcome) -> Change:
    """`worse` when something that held no longer does, whatever else holds now; `better` when only more holds."""
    pairs = list(zip(base.fails, now.fails, strict=True))
    if any(not before and after for before, after in pairs):
        return "worse"
    return "better" if any(before and not after for before, after in pairs) else "same"
