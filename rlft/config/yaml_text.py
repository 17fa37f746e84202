"""YAML text to plain data with the line of every key, and back. Knows nothing of the schema.

PyYAML reads YAML 1.1, in which `1e-6` is text, `no` is false, `1:30` is 90 and dates are objects. Here plain scalars
are read as in YAML 1.2's core schema: null, true/false, integers, floats, and everything else is text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from rlft.config.problems import Problem

Path = tuple[str | int, ...]
MAX_DEPTH = 32  # a configuration is about 5 deep; more is an alias that contains itself

_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
    r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_SCALARS = (
    ("null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$|0x[0-9a-fA-F]+$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # PyYAML's own table, here begun anew


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: _Dumper, text: str) -> yaml.Node:
    style = '"' if any(letter in text for letter in "\x85\u2028\u2029") else None  # PyYAML loses them otherwise
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)
for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class YamlError(Exception):
    """The text is not YAML. `line` counts from 1; 0 when unknown."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(text)
        self.line = line


def read_yaml(text: str) -> tuple[Any, dict[Path, int], list[tuple[int, Problem]]]:
    """The data, the line of each key and list item (from 1), and the keys that appear twice, with their lines. Raises
    YamlError."""
    lines: dict[Path, int] = {}
    repeated: list[tuple[int, Problem]] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = None if node is None else _read(loader, node, (), lines, repeated)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(part for part in (error.context, error.problem) if part)
        tabs = " (indent with spaces: YAML does not allow tabs)" if "'\\t'" in words else ""
        raise YamlError(words + tabs, mark.line + 1 if mark else 0) from None
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML does not allow, or a number out of range
        raise YamlError(" ".join(str(error).split())) from None
    return data, lines, repeated


def _read(
    loader: _Loader, node: yaml.Node, path: Path, lines: dict[Path, int], repeated: list[tuple[int, Problem]]
) -> Any:
    if len(path) > MAX_DEPTH:
        raise YamlError("nested too deeply; does an alias (*name) contain itself?", node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, child in enumerate(node.value):
            lines[(*path, index)] = child.start_mark.line + 1
            items.append(_read(loader, child, (*path, index), lines, repeated))
        return items
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    mapping: dict[str, Any] = {}
    for key_node, child in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlError("a key must be one word, not a list or a mapping", line)
        key = str(key_node.value)
        here = (*path, key)
        if key in mapping:
            repeated.append((line, Problem(dotted(here), f"is there twice, first in line {lines[here]}; keep one")))
        lines[here] = line
        mapping[key] = _read(loader, child, here, lines, repeated)
    return mapping


def write_yaml(data: Any) -> str:
    """YAML that read_yaml reads back to the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def dotted(path: Path) -> str:
    """("rewards", "functions", 0) -> "rewards.functions.0"."""
    return ".".join(str(part) for part in path)
