"""Reads a golden set: prompts with what the completion must be like, as YAML or as JSON Lines.

Every problem of a file is told at once, with its line. Knows nothing about models; what holds is decided in golden.py.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from rlft.config.base import Section
from rlft.config.keys import expected
from rlft.config.problems import near_files, show
from rlft.config.yaml_text import Path as KeyPath
from rlft.config.yaml_text import YamlError, dotted, read_yaml
from rlft.errors import UserError

Texts = str | list[str]


class GoldenMessage(Section):
    """One message of a conversation."""

    role: str
    content: str


class GoldenReward(Section):
    """A reward function, and the least that it must give."""

    function: str
    min: float
    args: dict[str, Any] = {}


class GoldenCase(Section):
    """A prompt, and what its completion must be like."""

    name: str | None = None
    group: str | None = None
    prompt: str | None = None
    messages: list[GoldenMessage] | None = None
    columns: dict[str, Any] = {}
    must_pass: bool | None = None
    equals: Texts | None = None
    contains: Texts | None = None
    not_contains: Texts | None = None
    regex: Texts | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    reward: GoldenReward | None = None


class GoldenGroup(Section):
    """What must hold for the cases of a group: all pass, or at least this share of them."""

    must_pass: bool = False
    threshold: float | None = Field(default=None, gt=0, le=1)


class GoldenFile(Section):
    """The whole file. `threshold`: the least share of all cases that must pass."""

    threshold: float | None = Field(default=None, gt=0, le=1)
    groups: dict[str, GoldenGroup] = {}
    cases: list[GoldenCase]


EXPECTATIONS = ("equals", "contains", "not_contains", "regex", "max_tokens", "reward")
Lines = dict[KeyPath, int]
Told = tuple[KeyPath, str]  # where in the file, and what is wrong there


def read_golden(path: str) -> tuple[GoldenFile, list[str]]:
    """The file, and each case's place in it, "golden.yaml:12". Every case has a name. Raises UserError with every
    problem at once."""
    file = Path(path).expanduser()
    tree, lines = _read(file)
    told: list[Told] = []
    try:
        golden = GoldenFile.model_validate(tree, strict=True)
    except ValidationError as error:
        told += dict(_explained(item, tree) for item in error.errors(include_url=False)).items()
    else:
        cases = [
            case if case.name else case.model_copy(update={"name": f"case {number}"})
            for number, case in enumerate(golden.cases, start=1)
        ]
        golden = golden.model_copy(update={"cases": cases})
        told += _check(golden)
        if not told:
            return golden, [f"{file.name}:{lines[('cases', i)]}" for i in range(len(cases))]
    raise golden_error(file, [(_line(at, lines), f"{_key(at, tree)}: {text}") for at, text in told])


def golden_error(file: Path, problems: list[tuple[int, str]]) -> UserError:
    """All problems as one message; each has its line (0: none)."""
    texts = [f"{file}:{line}: {text}" if line else f"{file}: {text}" for line, text in sorted(problems)]
    return UserError(texts[0] if len(texts) == 1 else f"{len(texts)} problems in {file}:\n  " + "\n  ".join(texts))


def _read(file: Path) -> tuple[dict[str, Any], Lines]:
    if not file.is_file():
        near = near_files(file, (".yaml", ".yml", ".jsonl"))
        raise UserError(f"--golden: {file} {'is no file' if file.exists() else 'does not exist'}{near}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not a UTF-8 text file (byte {error.start})") from None
    if file.suffix == ".jsonl":
        return _json_lines(file, text)
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file}: expected a golden set as .yaml or .jsonl")
    try:
        tree, lines, repeated = read_yaml(text)
    except YamlError as error:
        raise UserError(f"{file}:{error.line}: this is not YAML: {error}") from None
    if repeated:
        raise golden_error(file, [(line, str(problem)) for line, problem in repeated])
    if not isinstance(tree, dict):
        raise UserError(f"{file}: expected the key cases (and threshold, groups), found {show(tree)}")
    return tree, lines


def _json_lines(file: Path, text: str) -> tuple[dict[str, Any], Lines]:
    """One case a line; a line without a prompt holds threshold and groups."""
    tree, lines = {"cases": []}, Lines()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_each_once)
        except ValueError as error:
            raise UserError(f"{file}:{number}: this is not a JSON object on one line: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}:{number}: found {show(row)}, expected a JSON object: a case, or the settings")
        if row.keys() & {"threshold", "groups"} and not row.keys() & {"prompt", "messages"}:
            for key in row:
                if key in tree:
                    raise UserError(f"{file}:{number}: {key}: is there twice; keep one")
                lines[(key,)] = number
            tree |= row
        else:
            lines[("cases", len(tree["cases"]))] = number
            tree["cases"].append(row)
    return tree, lines


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"the key {twice[0]} is there twice")
    return dict(pairs)


def _key(at: KeyPath, tree: dict[str, Any]) -> str:
    """The key, and the name of the case that it is in: `cases.3.regex (capital)`."""
    if at[0] != "cases" or len(at) < 2:
        return dotted(at)
    case, number = tree["cases"][at[1]], int(at[1])
    name = case.get("name") if isinstance(case, dict) else None
    return f"{dotted(at)} ({name if isinstance(name, str) else f'case {number + 1}'})"


def _line(at: KeyPath, lines: Lines) -> int:
    """The line of the key, or of the nearest thing around it."""
    return next((lines[at[:length]] for length in range(len(at), 0, -1) if at[:length] in lines), 0)


def _explained(item: Any, tree: Any) -> Told:
    """One of pydantic's errors for people. What pydantic says of the kinds that a value might have been is left out."""
    section: type[Section] | None = GoldenFile
    field: FieldInfo | None = None
    at: KeyPath = ()
    inside = False  # a list or mapping of sections, so that the next part is an index or a name
    found: Any = tree
    for part in item["loc"]:
        if inside:
            inside = False
        elif section is not None and part in section.model_fields:
            field = section.model_fields[str(part)]
            section, inside = _section_of(field.annotation)
        elif section is not None and item["type"] == "extra_forbidden":
            return (*at, part), _unknown(str(part), section)
        else:
            break
        at = (*at, part)
        found = found[part] if isinstance(found, dict | list) and (isinstance(found, list) or part in found) else None
    if item["type"] == "missing" and field is not None:
        return at, f"is required and not there; expected {expected(field)}"
    if section is not None and not inside:
        return at, f"found {show(found)}, expected a mapping with some of {', '.join(section.model_fields)}"
    takes = "a mapping" if field is None else expected(field)
    quotes = f'; put quotes around it: "{found}"' if isinstance(found, int | float) and "text" in takes else ""
    return at, f"found {show(found)}, expected {takes}{quotes}"


def _section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section in a key, and whether it holds several of them, by index or by name."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    for inner in get_args(annotation):
        section, inside = _section_of(inner)
        if section is not None:
            return section, inside or get_origin(annotation) in (list, dict)
    return None, False


def _unknown(key: str, section: type[Section]) -> str:
    names = list(section.model_fields)
    near = difflib.get_close_matches(key.lower().replace("-", "_"), names, n=1, cutoff=0.6)
    return f"unknown key; {f'did you mean {near[0]}?' if near else 'expected one of ' + ', '.join(names)}"


def _check(golden: GoldenFile) -> Iterator[Told]:
    """What must hold between the keys."""
    if not golden.cases:
        yield ("cases",), "is empty; expected at least one"
    used = {case.group for case in golden.cases}
    for name, group in golden.groups.items():
        if name not in used:
            yield ("groups", name), "no case is in it; take it out, or give cases `group`"
        if group.must_pass and group.threshold is not None:
            yield ("groups", name, "threshold"), "has no effect beside must_pass, which asks for all; keep one"
    names = Counter(case.name for case in golden.cases)
    for i, case in enumerate(golden.cases):
        if names[case.name] > 1:
            yield ("cases", i, "name"), f'"{case.name}" names {names[case.name]} cases; give each its own'
        if case.group is not None and case.group not in golden.groups:
            near = difflib.get_close_matches(case.group, golden.groups, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"write `{case.group}: {{}}` below groups"
            yield ("cases", i, "group"), f'"{case.group}" is not among groups; {hint}'
        for at, text in _check_case(case):
            yield ("cases", i, *at), text


def _check_case(case: GoldenCase) -> Iterator[Told]:
    if (case.prompt is None) == (case.messages is None):
        yield (), "expected either prompt (text) or messages (a conversation)"
    if not any(getattr(case, name) is not None for name in EXPECTATIONS):
        yield (), f"expects nothing of the completion; give at least one of {', '.join(EXPECTATIONS)}"
    if case.columns and case.reward is None:
        yield ("columns",), "has no effect without reward, whose function they are for; take it out"
    for name in {"prompt", "messages"} & case.columns.keys():
        yield ("columns", name), "is a key of the case itself; call the column something else"
    for name in ("equals", "contains", "not_contains", "regex"):
        texts = texts_of(getattr(case, name))
        if texts == [] and getattr(case, name) is not None:
            yield (name,), "is an empty list; expected a text, or a list of texts"
        if name != "equals" and "" in texts:
            yield (name,), "an empty text is in every completion; expected some text"
        for text in texts if name == "regex" else ():
            try:
                re.compile(text)
            except re.error as error:
                yield (name,), f"{text!r} is not a regular expression: {error}"


def texts_of(value: Texts | None) -> list[str]:
    """One text or several, as a list."""
    return [value] if isinstance(value, str) else list(value or ())
