"""A YAML file (or a mapping) and overrides become a Config, or one UserError that names everything that is wrong.
`load_section` does the same for files with a schema of their own.

Order: read the YAML, put the overrides in, validate types (pydantic), check what pydantic cannot see (checks.py). Each
stage adds its problems to one list, so nobody mends a file one error at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import ValidationError

from rlft.config.base import Section
from rlft.config.checks import Purpose, find_problems
from rlft.config.keys import expected, generic, is_list, is_tuple, schema_keys, suggest
from rlft.config.overrides import Origins, apply_overrides
from rlft.config.problems import Problem, near_files, show
from rlft.config.schema import Config
from rlft.config.yaml_text import Path, YamlError, dotted, read_yaml, write_yaml
from rlft.errors import UserError

Source = str | os.PathLike[str] | Mapping[str, Any] | Config
S = TypeVar("S", bound=Section)


def load_config(
    source: Source,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    purpose: Purpose = "train",
    need_data: bool = False,
    has_rewards: bool = False,
    has_dataset: bool = False,
) -> Config:
    """The configuration in a YAML file, a mapping or a Config, with overrides on top.

    Overrides are words as on the command line (`["--loop.steps", "3"]`, `["loop.steps=3"]`) or a mapping
    (`{"loop.steps": 3}`). `purpose` "evaluate" leaves out what only training cares about, "score" also what only
    samples and rewards need, "inspect" all but what data need; `need_data` makes an empty data.path an error;
    `has_rewards` and `has_dataset` say that the caller brings them from Python. Raises UserError with every problem at
    once.
    """
    tree, origins, problems, file = _read(source)
    if file and isinstance(tree.get("run", {}), dict | None):
        tree["run"] = {"name": FilePath(file).stem} | (tree.get("run") or {})
    return _checked(
        Config,
        (tree, origins, problems, file),
        overrides,
        lambda config: find_problems(config, purpose, need_data, has_rewards, has_dataset),
    )


def load_section(
    root: type[S],
    file: str | os.PathLike[str],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    check: Callable[[S], Iterable[Problem]],
) -> S:
    """What a YAML file with the keys of `root` says, with overrides on top. `check` finds what pydantic cannot see.
    Raises UserError with every problem at once."""
    return _checked(root, _read(file), overrides, check)


def read_section(root: type[S], tree: Mapping[str, Any], *, check: Callable[[S], Iterable[Problem]]) -> S:
    """The same for a mapping that stands inside another file: the args of a reward function."""
    return _checked(root, _read(tree), (), check)


def _checked(
    root: type[S],
    read: tuple[dict[str, Any], Origins, list[Problem], str],
    overrides: Sequence[str] | Mapping[str, Any],
    check: Callable[[S], Iterable[Problem]],
) -> S:
    tree, origins, problems, file = read
    problems += apply_overrides(tree, origins, overrides, root)
    section, found = _validate(root, tree)
    problems += found
    if section is not None:
        wrong = {problem.key for problem in problems} | {re.sub(r"\.\d+$", "", problem.key) for problem in problems}
        touched = {key for name in wrong for key in (name, suggest(name, root) or "") if key}
        problems += [problem for problem in check(section) if not _follows(problem, touched)]
    if problems or section is None:
        raise UserError(_message(problems, origins, file))
    return section


def _follows(problem: Problem, touched: set[str]) -> bool:
    """Whether the problem may only be there because a wrong key was left out: it speaks of one, or of what held it."""
    text = str(problem)
    return any(key.startswith(f"{problem.key}.") or re.search(rf"\b{re.escape(key)}\b", text) for key in touched)


def dump_config(config: Config) -> str:
    """The complete configuration as YAML that load_config reads back to the same Config."""
    return write_yaml(config.model_dump(mode="json"))


def describe_schema(root: type[Section] = Config) -> str:
    """Every key with its type, its default and its sentence, for people."""
    lines = []
    for key in schema_keys(root).values():
        required = key.field.is_required()
        default = None if required else key.field.get_default(call_default_factory=True)
        if isinstance(default, Section):
            lines.append(f"\n{' '.join((type(default).__doc__ or key.path).split())}\n")
            continue
        about = f"\n    {' '.join(key.field.description.split())}" if key.field.description else ""
        told = "required" if required else f"default {_as_yaml(default)}"
        lines.append(f"{key.path}: {expected(key.field)}; {told}{about}")
    return "\n".join(lines).strip() + "\n"


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else '""' if value == "" else str(value)


def _read(source: Source) -> tuple[dict[str, Any], Origins, list[Problem], str]:
    """The tree, where each key stands, problems so far, and the file's name ("" when there is none)."""
    if isinstance(source, Config):
        return source.model_dump(exclude_unset=True), {}, [], ""
    if isinstance(source, Mapping):
        return _plain(source), {}, [], ""
    path = FilePath(source).expanduser()
    text = _text_of(path)
    try:
        tree, lines, repeated = read_yaml(text)
    except YamlError as error:
        line = f":{error.line}" if error.line else ""
        raise UserError(f"{path}{line}: this is not YAML: {error}") from None
    problems = [problem._replace(where=f"{path}:{line}") for line, problem in repeated]
    origins: Origins = {key: f"{path}:{line}" for key, line in lines.items()}
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected sections (model:, data:, ...) with keys below them, found {show(tree)}")
    return tree, origins, problems, str(path)


def _text_of(path: FilePath) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = near_files(path, (".yaml", ".yml"), also=("configs",))
        raise UserError(f"{path}: there is no such configuration file{near}") from None
    except IsADirectoryError:
        near = near_files(path / "x.yaml", (".yaml", ".yml"))
        raise UserError(f"{path}: is a folder; expected a YAML file{near}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a UTF-8 text file (byte {error.start}); expected YAML") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _plain(value: Any) -> Any:
    """Mappings, sequences, sections and paths as plain dicts, lists and text, copied."""
    if isinstance(value, Section):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _prepare(root: type[Section], tree: Any, path: Path = ()) -> Any:
    """The tree as pydantic's strict mode wants it: an empty section (`generator:` with nothing below) is {}, and a
    list is a tuple where the schema has one."""
    key = schema_keys(root).get(generic(path)) if path else None
    if isinstance(tree, dict):
        return {name: _prepare(root, inner, (*path, name)) for name, inner in tree.items()}
    if isinstance(tree, list):
        items = [_prepare(root, item, (*path, index)) for index, item in enumerate(tree)]
        return tuple(items) if key and is_tuple(key.field.annotation) else items
    if tree is None and key and isinstance(key.field.default, Section):
        return {}
    return tree


def _validate(root: type[S], tree: dict[str, Any]) -> tuple[S | None, list[Problem]]:
    """The section and what is wrong with its keys. With the wrong keys left out there is mostly still one, so that
    the checks across keys can run too."""
    data = _prepare(root, _plain(tree))
    try:
        return root.model_validate(data, strict=True), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    problems: dict[str, Problem] = {}
    wrong: set[Path] = set()
    for item in errors:
        missing = item["type"] == "missing" and isinstance(item["loc"][-1], str)  # an index: the list is too short
        path = _real_path(item["loc"], data, missing)
        kind = "missing" if missing else "wrong" if item["type"] == "missing" else item["type"]
        problems.setdefault(dotted(path), _problem(root, path, kind, item["input"], str(item["msg"])))
        wrong.add(path[:-1] if missing else path)
    for path in sorted(
        wrong, key=lambda path: [str(part).zfill(6) for part in path], reverse=True
    ):  # lists from the end
        _remove(data, path)
    try:
        return root.model_validate(data, strict=True), list(problems.values())
    except ValidationError:
        return None, list(problems.values())


def _real_path(loc: Path, data: Any, missing: bool) -> Path:
    """Pydantic's loc without the names of union members, which are no keys."""
    path: list[str | int] = []
    for place, part in enumerate(loc):
        if _holds(data, part):
            data = data[part]
            path.append(part)
        elif missing and place == len(loc) - 1:
            path.append(part)
    return tuple(path)


def _remove(data: Any, path: Path) -> None:
    for depth, part in enumerate(path):
        if not _holds(data, part):
            return
        if depth == len(path) - 1 or isinstance(data[part], tuple):  # of a tuple all or nothing
            del data[part]
            return
        data = data[part]


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)


def _problem(root: type[Section], path: Path, kind: str, found: Any, message: str) -> Problem:
    name = dotted(path)
    key = schema_keys(root).get(generic(path))
    if kind == "extra_forbidden" or (key is None and kind != "missing" and not _inside_leaf(root, path)):
        return Problem(name, _unknown(root, path))
    if kind == "missing":
        return Problem(name, f"is required and not there; expected {expected(key.field) if key else 'a value'}")
    while key is None and path:  # an entry of a list or mapping: say what the whole key takes
        path = path[:-1]
        key = schema_keys(root).get(generic(path))
    if key is None:
        return Problem(name, message)
    hint = ""
    if isinstance(found, int | float) and not isinstance(found, bool) and "text" in expected(key.field):
        hint = f'; put quotes around it: "{found}"'
    elif found is None and key.section and not is_list(key.field.annotation):
        hint = "; leave the key out, or write keys below it"
    return Problem(name, f"found {show(found)}, expected {expected(key.field)}{hint}")


def _inside_leaf(root: type[Section], path: Path) -> bool:
    """Whether the path leads into a key of the schema that holds a list or a free mapping."""
    above = (schema_keys(root).get(generic(path[:length])) for length in range(1, len(path)))
    return any(key is not None and (key.section is None or is_list(key.field.annotation)) for key in above)


def _unknown(root: type[Section], path: Path) -> str:
    meant = suggest(dotted(path), root)
    if meant == dotted(path):
        meant = None
    if meant:
        nested = "" if len(path) > 1 or "." not in meant else _nested(meant)
        return f"unknown key; did you mean {meant}?{nested}"
    above = generic(path[:-1])
    prefix = f"{above}." if above else ""
    names = [key.removeprefix(prefix) for key in schema_keys(root) if key.startswith(prefix)]
    names = [name for name in names if "." not in name]
    return f"unknown key; {above or 'the top level'} has {', '.join(names)}"


def _nested(meant: str) -> str:
    section, _, key = meant.partition(".")
    return f" (in YAML, `{key}:` below `{section}:`)" if "." not in key else ""


def _message(problems: list[Problem], origins: Origins, file: str) -> str:
    lines = []
    for problem in sorted(problems, key=lambda problem: _line(problem.where or _where(problem.key, origins))):
        where = problem.where or _where(problem.key, origins) or file
        shown = problem.text if where == f"--{problem.key}" else str(problem)
        lines.append(f"{where}: {shown}" if where else shown)
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} problems in {file or 'the configuration'}:\n  " + "\n  ".join(lines)


def _line(where: str) -> float:
    """For the order of messages: the file's lines first, then the rest."""
    number = where.rpartition(":")[2]
    return int(number) if number.isdigit() else float("inf")


def _where(key: str, origins: Origins) -> str:
    """Where the key, or the nearest section around it, was written. A key that was never written has no place."""
    path: Path = tuple(int(part) if part.isdigit() else part for part in key.split(".")) if key else ()
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            return origins[path[:length]]
    return next((where for below, where in origins.items() if path and below[: len(path)] == path), "")
