"""Dotted overrides: `--loop.steps 3`, `--data.path=x.jsonl`, `rewards.functions.0.weight=2`, or a mapping of the same.

Knows how to read them and how to put them into the tree of a YAML file; nothing about whether they are right.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rlft.config.base import Section
from rlft.config.keys import generic, is_list, is_text, schema_keys
from rlft.config.problems import Problem, show
from rlft.config.schema import Config
from rlft.config.yaml_text import Path, YamlError, dotted, read_yaml

Origins = dict[Path, str]  # where each key was set: "file.yaml:3" or "--loop.steps"


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Command-line words as (dotted overrides, the rest). An override is a word that begins with `--` and has a dot in
    its name; the next word is its value unless that begins with `--` too."""
    found, rest = [], []
    words = iter(range(len(arguments)))
    for index in words:
        word = arguments[index]
        if not (word.startswith("--") and "." in word.partition("=")[0]):
            rest.append(word)
            continue
        found.append(word)
        if "=" not in word and index + 1 < len(arguments) and not arguments[index + 1].startswith("--"):
            found.append(arguments[next(words)])
    return found, rest


def apply_overrides(
    tree: dict[str, Any],
    origins: Origins,
    overrides: Sequence[str] | Mapping[str, Any],
    root: type[Section] = Config,
) -> list[Problem]:
    """Put the overrides into `tree`, which has the keys of `root`, in order, and their origins into `origins`. Returns
    what could not be done."""
    if isinstance(overrides, str):
        overrides = shlex.split(overrides)
    problems: list[Problem] = []
    if isinstance(overrides, Mapping):
        pairs = [(str(key).lstrip("-"), value) for key, value in overrides.items()]
    else:
        pairs = _pairs([str(word) for word in overrides], problems)
    for key, value in pairs:
        where = f"--{key}"
        path = _path(key, root)
        if isinstance(overrides, Mapping) or isinstance(value, Problem):
            problem = value if isinstance(value, Problem) else None
        else:
            value, problem = _read_value(path, value, root)
        problem = problem or _put(tree, path, value, root)
        if problem:
            problems.append(problem._replace(key=key, where=where))
            continue
        for old in [old for old in origins if old[: len(path)] == path]:
            del origins[old]
        origins[path] = where
    return problems


def _pairs(words: list[str], problems: list[Problem]) -> list[tuple[str, str]]:
    """Keys and values, both as typed."""
    pairs = []
    position = 0
    while position < len(words):
        word = words[position]
        name, equals, value = word.partition("=")
        key = name.removeprefix("--")
        following = words[position + 1] if position + 1 < len(words) else None
        if equals and key:
            pairs.append((key, value))
        elif word.startswith("--") and following is not None and not following.startswith("--"):
            pairs.append((key, following))
            position += 1
        elif word.startswith("--"):
            problems.append(Problem(key, f"needs a value: --{key} VALUE, or --{key}=VALUE", f"--{key}"))
        else:
            problems.append(Problem("", f'"{word}" is no override; write --section.key value'))
        position += 1
    return pairs


def _path(key: str, root: type[Section]) -> Path:
    """ "loop.max-staleness" -> ("loop", "max_staleness"). Names inside free mappings (resources, args) stay as they
    are."""
    path: list[str | int] = []
    for part in key.split("."):
        above = generic(tuple(path))
        parent = schema_keys(root).get(above.removesuffix(".N"))
        in_list = parent is not None and is_list(parent.field.annotation) and not above.endswith(".N")
        if in_list and part.isdigit():
            path.append(int(part))
        else:
            in_section = not path or (parent is not None and parent.section is not None)
            path.append(part.replace("-", "_") if in_section else part)
    return tuple(path)


def _read_value(path: Path, text: str, root: type[Section]) -> tuple[Any, Problem | None]:
    key = schema_keys(root).get(generic(path))
    if key and is_text(key.field.annotation) and text not in ("null", "~", ""):
        return text, None
    try:
        return read_yaml(text)[0], None
    except YamlError as error:
        return None, Problem("", f'the value "{text}" is not YAML: {error}')


def _put(tree: dict[str, Any], path: Path, value: Any, root: type[Section]) -> Problem | None:
    """Set one value, making the sections on the way."""
    node: Any = tree
    for depth, part in enumerate(path):
        key: Any = part
        last = depth == len(path) - 1
        if isinstance(node, list):
            if not str(part).isdigit() or int(part) > len(node):
                return Problem(
                    "", f"{dotted(path[:depth])} is a list of {len(node)}; expected an index, 0 to {len(node)}"
                )
            key = int(part)
            if key == len(node):
                node.append(None)
        elif not isinstance(node, dict):
            return Problem("", f"cannot be set, because {dotted(path[:depth])} is {show(node)} and holds no keys")
        if last:
            node[key] = value
            return None
        inside = node[key] if isinstance(node, list) else node.get(key)
        if isinstance(inside, Section):
            inside = inside.model_dump(exclude_unset=True)
        node[key] = ([] if _begins_list(path[: depth + 1], root) else {}) if inside is None else inside
        node = node[key]
    return None


def _begins_list(path: Path, root: type[Section]) -> bool:
    key = schema_keys(root).get(generic(path))
    return key is not None and is_list(key.field.annotation)
