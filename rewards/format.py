"""Rewards for the form of a completion, whatever it says. Know nothing about right or wrong answers."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.math.extract import last_boxed, marked_answer
from rewards.texts import Completion, completion_text, strict_json
from rlft.errors import UserError

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(?P<inside>.*?)\n?```", re.DOTALL)
_TAG = re.compile(r"[A-Za-z_][\w.-]*")


def has_answer(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """1 when the completion names an answer: \\boxed{...}, "#### ..." or "the answer is ..."; otherwise 0."""
    return [float(marked_answer(completion_text(completion)) is not None) for completion in completions]


def boxed_format(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """1 when the completion has something in a \\boxed{...}; otherwise 0."""
    return [float(bool((last_boxed(completion_text(completion)) or "").strip())) for completion in completions]


def format_regex(completions: Sequence[Completion], pattern: str, **columns: Any) -> list[float]:
    """1 when the regular expression `pattern` (from `args`) is found in the completion; otherwise 0. The dot matches
    line breaks too."""
    check_format_regex(pattern)
    compiled = re.compile(pattern, re.DOTALL)
    return [float(compiled.search(completion_text(completion)) is not None) for completion in completions]


def finished(completions: Sequence[Completion], finish_reasons: Sequence[str], **columns: Any) -> list[float]:
    """1 when the model ended the completion itself, 0 when it was cut off at max_new_tokens."""
    return [float(reason == "stop") for reason in finish_reasons]


def tags(
    completions: Sequence[Completion],
    tags: Sequence[str] = ("think", "answer"),
    opened: bool = False,
    **columns: Any,
) -> list[float]:
    """1 when the completion is <think>...</think><answer>...</answer> and nothing else, white space aside; otherwise 0
    (the format reward of DeepSeek-R1, Guo et al. 2025, arXiv:2501.12948, section 2.2.2).

    Args:
        tags: their names. Each is opened and closed once, in this order, with something in it.
        opened: the prompt has opened the first one already, as some chat templates do.
    """
    return [float(_in_tags(completion_text(completion), tags, opened)) for completion in completions]


def json_schema(
    completions: Sequence[Completion], schema: str | Mapping[str, Any], tag: str | None = None, **columns: Any
) -> list[float]:
    """1 when the completion is JSON that the schema accepts, bare or in one code fence; otherwise 0. JSON is read as
    the standard has it: no NaN, no comments, no key twice.

    Args:
        schema: a JSON schema (draft 2020-12, or what its $schema says), or the name of a file with one.
        tag: look only at what is between <tag> and </tag>, of which there must be one.
    """
    validator = _validator(schema if isinstance(schema, str) else json.dumps(schema))
    return [float(_accepted(validator, _part(completion_text(completion), tag))) for completion in completions]


def _in_tags(text: str, names: Sequence[str], opened: bool) -> bool:
    if opened:
        text = f"<{names[0]}>{text}"
    rest = text
    for name in names:
        start, end = f"<{name}>", f"</{name}>"
        rest = rest.lstrip()
        if text.count(start) != 1 or text.count(end) != 1 or not rest.startswith(start):
            return False
        inside, _, rest = rest[len(start) :].partition(end)
        if not inside.strip():
            return False
    return not rest.strip()


def _part(text: str, tag: str | None) -> str | None:
    if tag is None:
        return text
    start, end = f"<{tag}>", f"</{tag}>"
    if text.count(start) != 1 or text.count(end) != 1:
        return None
    inside, closed, _ = text.partition(start)[2].partition(end)
    return inside if closed else None


def _accepted(validator: Any, text: str | None) -> bool:
    from referencing.exceptions import Unresolvable

    if text is None:
        return False
    fenced = _FENCE.fullmatch(text.strip())
    try:
        tree = strict_json(fenced["inside"] if fenced else text)
    except ValueError:
        return False
    try:
        return validator.is_valid(tree)
    except RecursionError:  # a text nested deeper than anybody meant
        return False
    except Unresolvable as error:
        raise UserError(f"reward 'json_schema': the schema has a $ref that leads nowhere: {error}") from None


@functools.lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    """`schema`: JSON, or a file's name. Raises UserError for what is none."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    text, name = schema, "args.schema"
    if not schema.lstrip().startswith("{"):
        try:
            text, name = Path(schema).expanduser().read_text(encoding="utf-8"), schema
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"reward 'json_schema': the file {schema} cannot be read ({error}). Expected a JSON schema, or the "
                "name of a file with one."
            ) from None
    try:
        tree = strict_json(text)
    except ValueError as error:
        raise UserError(f"reward 'json_schema': {name} is not JSON: {error}") from None
    kind = validator_for(tree, default=Draft202012Validator)
    try:
        kind.check_schema(tree)
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "its top level"
        raise UserError(f"reward 'json_schema': {name} is no JSON schema: at {where}: {error.message}") from None
    return kind(tree, registry=Registry())  # a $ref is never fetched from the network


def check_json_schema(schema: Any = None, tag: Any = None, **other: Any) -> None:
    """For before a run starts: raise UserError for args that mean nothing."""
    if not isinstance(schema, str | Mapping):
        raise UserError(
            f"rewards: json_schema needs args.schema, a JSON schema or the name of a file with one; found {schema!r}"
        )
    if tag is not None:
        _check_tags("json_schema", "tag", [tag])
    _validator(schema if isinstance(schema, str) else json.dumps(schema))


def check_format_regex(pattern: Any = None) -> None:
    """For before a run starts: raise UserError for a pattern that is none."""
    if not isinstance(pattern, str):
        raise UserError(f"rewards: format_regex needs args.pattern, a regular expression; found {pattern!r}")
    try:
        re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"reward 'format_regex': pattern {pattern!r} is not a regular expression: {error}") from None


def check_tags(tags: Any = ("think", "answer"), opened: Any = False, **other: Any) -> None:
    """For before a run starts: raise UserError for args that mean nothing."""
    if not isinstance(tags, list | tuple) or not tags or len(set(map(str, tags))) < len(tags):
        raise UserError(f"rewards: tags has tags {tags!r}; expected a list of different names, like [think, answer]")
    _check_tags("tags", "tags", tags)
    if not isinstance(opened, bool):
        raise UserError(f"rewards: tags has opened {opened!r}; expected true or false")


def _check_tags(name: str, key: str, found: Sequence[Any]) -> None:
    for tag in found:
        if not isinstance(tag, str) or not _TAG.fullmatch(tag):
            raise UserError(f"rewards: {name} has {key} {tag!r}; expected the name of a tag without <>, like think")


format_regex.check_args = check_format_regex  # type: ignore[attr-defined]
tags.check_args = check_tags  # type: ignore[attr-defined]  # called when a run looks at its functions
json_schema.check_args = check_json_schema  # type: ignore[attr-defined]
