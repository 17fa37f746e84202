"""The solution's side: runs the program of a completion and answers calls of its functions, in its own sandbox.

Nothing here can be relied on once the program runs: it may change all of it. So this side knows no test and no verdict,
and what it says is read by the other side as data from anybody.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import os
import socket
import sys
import threading
import types
from typing import Any

from rewards.code.box import frames
from rewards.code.box.plain import read, write
from rewards.code.box.references import Kept, read_reference

MAX_MESSAGE = 2000  # characters of an exception's text
_MUTABLE = (list, dict, set, bytearray)


def serve_calls(job: dict[str, Any], peer: socket.socket) -> None:
    """Run job["program"] as a module, say whether that went well, and answer until the tests are done."""
    module = _new_module("solution")
    try:
        exec(compile(job["program"], "solution.py", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit too: a program that ends has no functions left to call
        frames.send(peer, ["fatal", f"the program does not load: {describe(error)}"])
        return
    frames.send(peer, ["ready"])
    served = _Served(module.__dict__, peer)
    while True:
        try:
            request = frames.receive(peer)
        except (frames.FrameError, OSError):
            return
        frames.send(peer, served.answer(request))


def run_program(job: dict[str, Any], report: socket.socket) -> None:
    """Run job["program"] as a script on the standard streams and end this process with its exit code."""
    module = _new_module("__main__")
    code = 0
    try:
        exec(compile(job["program"], "solution.py", "exec"), module.__dict__)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        code = 1
        with contextlib.suppress(BaseException):
            frames.send(report, describe(error))
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does at its end
        atexit._run_exitfuncs()  # fast output of contest programs is written there
        for stream in (sys.stdout, sys.__stdout__):  # the second: below what the program may have put in its place
            if not stream.closed:  # type: ignore[union-attr]
                stream.flush()  # type: ignore[union-attr]
    except BaseException:
        code = code or 1
    os._exit(code & 0xFF)


def _new_module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    return module


class _Served:
    """Answers one request after the other."""

    def __init__(self, names: dict[str, Any], peer: socket.socket) -> None:
        self._names, self._peer, self._kept = names, peer, Kept()

    def answer(self, request: list[Any]) -> list[Any]:
        """["ok", value, changed arguments or None], ["raise", type, message], or ["fatal", why]."""
        operation, target, *rest = request
        try:
            found = self._find(target)
        except Exception as error:
            return ["fatal", f"{target[1]!r} is not there: {describe(error)}"]
        try:
            return self._do(operation, found, rest)
        except BaseException as error:
            return raised(error)

    def _find(self, target: list[Any]) -> Any:
        kind, which = target
        if kind == "kept":
            return self._kept[which]
        return self._names[which] if which in self._names else eval(which, self._names)

    def _do(self, operation: str, found: Any, rest: list[Any]) -> list[Any]:
        if operation == "next":
            return ["ok", self._write(next(found)), None]
        if operation == "get":
            return ["ok", self._write(getattr(found, rest[0])), None]
        if operation == "set":
            setattr(found, rest[0], read(rest[1], self._dereference))
            return ["ok", None, None]
        before = rest[0]
        arguments = [read(item, self._dereference) for item in before]
        named = {name: read(item, self._dereference) for name, item in rest[1].items()}
        result = found(*arguments, **named)
        changed = None
        if result is None and any(type(argument) in _MUTABLE for argument in arguments):
            after = [self._write(argument) for argument in arguments]  # the convention for working in place
            changed = after if after != before else None
        return ["ok", self._write(result), changed]

    def _write(self, value: Any) -> Any:
        return write(value, self._kept.refer)

    def _dereference(self, data: list[Any]) -> Any:
        if data[0] == "K":  # our own, handed back
            return self._find(data[1:])
        number, _, _ = read_reference(data)
        return lambda *arguments: self._call_back(number, arguments)

    def _call_back(self, number: int, arguments: tuple[Any, ...]) -> Any:
        """A function of the tests, which runs over there."""
        frames.send(self._peer, ["back", number, [self._write(argument) for argument in arguments]])
        kind, *rest = frames.receive(self._peer)
        if kind == "ok":
            return read(rest[0], self._dereference)
        raise exception_of(rest[0], rest[1])


def raised(error: BaseException) -> list[Any]:
    """An exception as plain data: the nearest built-in class it is of, and its text."""
    names = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    return ["raise", names[0] if names else "Exception", describe(error)]


def describe(error: BaseException) -> str:
    """Type and text; never raises."""
    try:
        text = str(error)
    except BaseException:
        text = "(an exception whose text cannot be had)"
    return f"{type(error).__name__}: {text}"[:MAX_MESSAGE]


_NEVER_ACROSS = (StopIteration, StopAsyncIteration)
"""They would end a loop of the tests, as if all had been seen."""


def exception_of(name: Any, text: Any) -> BaseException:
    """A built-in exception of that name with that text; a RuntimeError for any other name and for _NEVER_ACROSS."""
    kind = getattr(builtins, name, None) if type(name) is str else None
    if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, _NEVER_ACROSS):
        return RuntimeError(str(text))
    try:
        return kind(str(text).partition(": ")[2])
    except TypeError:  # UnicodeDecodeError and the like, which need more
        return RuntimeError(str(text))
