"""One thing that is wrong with a configuration, and how people are told. Knows nothing of the schema."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """Something that must be mended before a run can start."""

    key: str  # dotted, e.g. "algorithm.group_size"; empty when it is about the whole file
    text: str  # what was found, what was expected, how to mend it
    where: str = ""  # "file:line" or "--override"; filled in by load_config

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


def show(value: Any, limit: int = 60) -> str:
    """A value as one would write it in YAML, and its kind: `"many" (text)`."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text, kind = f'"{value}"', "text"
    elif isinstance(value, int | float):
        text, kind = str(value), "a number"
    elif isinstance(value, dict):
        text, kind = str(value), "a mapping"
    elif isinstance(value, list | tuple):
        text, kind = str(list(value)), "a list"
    else:
        text, kind = repr(value), type(value).__name__
    return f"{text if len(text) <= limit else text[: limit - 3] + '...'} ({kind})"


def near_files(path: Path, suffixes: tuple[str, ...] = (), also: tuple[str, ...] = ()) -> str:
    """What lies where `path` should have been, as the end of a sentence: similar names first, at most five. `suffixes`
    limits the names, `also` names further folders to look in."""
    folder = path.parent
    if not folder.is_dir():
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return f"; the folder {path.parent} does not exist, only {folder}{'' if str(folder) == '/' else '/'}"
    names = [file for place in (folder, *map(Path, also)) for file in _listing(place, suffixes)]
    by_name = {file.name: str(file) for file in reversed(names)}
    close = difflib.get_close_matches(path.name, by_name, n=5, cutoff=0.5) or sorted(by_name)[:5]
    if not close:
        return f"; {folder.resolve()} holds nothing of the kind"
    return f". Near it: {', '.join(by_name[name] for name in close)}"


def _listing(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    except OSError:
        return []
    return [file for file in files if not suffixes or file.name.endswith(suffixes)]
