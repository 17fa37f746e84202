"""Finding what a configuration names: a built-in name, or something in a user's file or module.

Knows nothing about what is found. Serves rewards, environments and losses. Functions from files and modules travel to
other processes by name and are found again there.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from rlft.errors import UserError


class Kind(NamedTuple):
    """What is looked for, for messages."""

    section: str  # of the configuration
    thing: str  # what a name without a place means
    member: str  # what a file is asked for
    builtin: Mapping[str, Any]
    """The things that have a name of their own."""


def find(text: str, folder: str, kind: Kind) -> Any:
    """What `text` names: a built-in name, or a name in a file (relative to `folder`) or module. Raises UserError that
    says what is there instead."""
    section, member = kind.section, kind.member
    place, colon, name = text.rpartition(":")
    if not colon:
        if text in kind.builtin:
            return kind.builtin[text]
        if text.endswith(".py") or "/" in text:
            raise UserError(f"{section}: {text!r} names a file without a {member}. Expected {text}:{member}_name.")
        near = difflib.get_close_matches(text, kind.builtin, n=1, cutoff=0.5)
        raise UserError(
            f"{section}: unknown {kind.thing} {text!r}{f': did you mean {near[0]!r}?' if near else '.'} Built-in: "
            f"{', '.join(kind.builtin)}. Your own: path/to/file.py:{member} or package.module:{member}."
        )
    is_file = place.endswith(".py") or "/" in place
    module = _load_file(place, folder, section) if is_file else _load_module(place, text, kind)
    if not hasattr(module, name):
        there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
        raise UserError(
            f"{section}: {place} has no {member} {name!r}.{f' Did you mean {near[0]!r}?' if near else ''} "
            f"{'Classes' if member == 'class' else 'Functions'} there: {', '.join(there) or 'none'}."
        )
    return getattr(module, name)


def _load_file(place: str, folder: str, section: str) -> ModuleType:
    """Run a Python file as a module of its own; the same file with the same content only once per process."""
    file = Path(folder, Path(place).expanduser())
    if not file.is_file():  # on another machine: from where that process works, or imports
        file = next((p for p in (Path(f, place) for f in (".", *sys.path)) if p.is_file()), Path(place).expanduser())
    if not file.is_file():
        beside = Path(folder, place).parent
        near = difflib.get_close_matches(file.name, [p.name for p in beside.glob("*.py")], n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]}, in the same folder?" if near else ""
        raise UserError(f"{section}: the file {place} does not exist (looked in {folder}).{hint}")
    file = file.resolve()
    digest = hashlib.blake2b(str(file).encode() + b"\0" + file.read_bytes(), digest_size=8).hexdigest()
    name = f"rlft_user_file_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{section}: {place} is not a Python file (expected a name that ends in .py).")
    module = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # its helpers lie beside it; last, so that they hide nothing of ours
    sys.modules[name] = module  # dataclasses and pickle look modules up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code
        del sys.modules[name]
        raise UserError(f"{section}: {place} cannot be imported: {_where(error, str(file))}") from error
    return module


def _load_module(name: str, text: str, kind: Kind) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # the user's code, or no such module
        raise UserError(
            f"{kind.section}: the module {name!r} of {text!r} cannot be imported: {type(error).__name__}: {error}. For "
            f"a file, write its path with .py, like my_{kind.section}.py:{kind.member}."
        ) from error


def _where(error: Exception, file: str) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = f"line {lines[-1]}: " if lines else ""
    return f"{line}{type(error).__name__}: {error}"
