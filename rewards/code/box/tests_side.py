"""The tests' side: runs the data's tests against functions that live in the solution's process. The verdict is made
here, in a process that the solution never shares and from plain data only."""

from __future__ import annotations

import socket
import sys
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

from rewards.code.box import frames
from rewards.code.box.plain import NotPlain, read, write
from rewards.code.box.references import Kept, read_reference
from rewards.code.box.solution import describe, exception_of, raised
from rewards.code.box.units import Unit, plan_tests

_SHOWN = 120  # characters of a value in the verdict's detail


class SolutionGone(BaseException):
    """There is nothing to call: the program did not load, has ended, or says what no answer is. Not an Exception, so
    that no test takes it for one that it expects."""


class StaysHere(BaseException):
    """The tests hand the solution an object of their own, which cannot be had over there. Not an Exception either."""


class Solution:
    """The other side of the socket. Lives as long as the tests."""

    def __init__(self, peer: socket.socket, on_first_call: Callable[[], None]) -> None:
        self.num_calls = 0
        self.last_call, self.gone = "", ""  # for people; `gone`: why nothing can be called any more
        self.fault = ""  # why the tests cannot be run, whatever the solution is
        self._peer, self._on_first_call = peer, on_first_call
        self._kept = Kept()  # functions of the tests that the solution was given
        self._known: dict[tuple[int, str], Remote] = {}  # objects of the solution: the same one is the same here
        self._lock = threading.RLock()

    def call(self, target: list[Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What the function at `target` returns; raises what it raises. Arguments that it worked on in place and
        returned None are changed here too."""
        shown = f"{target[1]}({', '.join(map(_shown, arguments))})"
        packed = [self._write(argument) for argument in arguments]
        request = ["call", target, packed, {name: self._write(value) for name, value in named.items()}]
        value, changed = self._ask(request, shown)
        # With any other value too it would be a way to make what is expected fit: f(xs) == sorted(xs), with xs emptied
        if value is None and type(changed) is list and len(changed) == len(arguments):
            for argument, now in zip(arguments, changed, strict=True):
                _change(argument, self._read(now))
        return value

    def get(self, target: list[Any], name: str) -> Any:
        """An attribute of an object over there."""
        return self._ask(["get", target, name], f".{name}")[0]

    def set(self, target: list[Any], name: str, value: Any) -> None:
        """Set an attribute over there."""
        self._ask(["set", target, name, self._write(value)], f".{name} = {_shown(value)}")

    def next(self, target: list[Any]) -> Any:
        """The next item of an iterator over there, one at a time: it may have no end. Raises StopIteration."""
        return self._ask(["next", target], "next()")[0]

    def _ask(self, request: list[Any], shown: str) -> tuple[Any, Any]:
        with self._lock:
            try:
                answer = self._exchange(request, shown)
            except (frames.FrameError, OSError) as error:
                self.gone = f"{self.last_call or 'the program ended while it was loaded'} ({error})"
                raise SolutionGone(self.gone) from None
        if answer[0] == "raise":
            self.last_call = f"{shown} raised {str(answer[2])[:_SHOWN]}"
            if request[0] == "next" and answer[1] == "StopIteration":
                raise StopIteration
            raise exception_of(answer[1], answer[2])
        try:
            value = self._read(answer[1])
        except NotPlain as error:
            self.gone = f"{shown} gave {error}"
            raise SolutionGone(self.gone) from None
        self.last_call = f"{shown} gave {_shown(value)}"
        return value, answer[2]

    def _exchange(self, request: list[Any], shown: str) -> list[Any]:
        """Send and wait for the answer; meanwhile run what the solution calls of the tests."""
        if not self.num_calls:
            self._on_first_call()
            self._answer_of(frames.receive(self._peer))  # whether the program has loaded
        self.num_calls += 1
        self.last_call = f"{shown} did not answer"
        frames.send(self._peer, request)
        answer = self._answer_of(frames.receive(self._peer))
        while answer[0] == "back":
            frames.send(self._peer, self._call_back(answer))
            answer = self._answer_of(frames.receive(self._peer))
        return answer

    def _answer_of(self, answer: Any) -> list[Any]:
        """A well-formed answer. Raises SolutionGone for one that says that nothing can be called."""
        if type(answer) is not list or not answer or answer[0] not in _LENGTHS or len(answer) != _LENGTHS[answer[0]]:
            raise frames.FrameError("the program's side says what no answer is")
        if answer[0] == "fatal":
            self.gone = str(answer[1])
            raise SolutionGone(self.gone)
        return answer

    def _call_back(self, answer: list[Any]) -> list[Any]:
        try:
            arguments = [self._read(item) for item in answer[2]]
            return ["ok", write(self._kept[answer[1]](*arguments), self._refer)]
        except (Exception, StaysHere) as error:
            return raised(error)

    def _write(self, value: Any) -> Any:
        try:
            return write(value, self._refer)
        except StaysHere as error:
            self.fault = str(error)
            raise

    def _refer(self, value: Any) -> list[Any]:
        if isinstance(value, Remote):
            return ["K", *value._target]
        if not callable(value):
            raise StaysHere(
                f"{type(value).__name__} objects of the tests cannot cross to the program. Expected plain data and "
                "functions; a class that the tests do not define is the program's own, and its objects can"
            )
        return self._kept.refer(value)

    def _read(self, data: Any) -> Any:
        return read(data, self._dereference)

    def _dereference(self, data: list[Any]) -> Any:
        number, how, name = read_reference(data)
        if (number, how) not in self._known:
            kind = {"iterator": RemoteIterator, "callable": RemoteCallable}.get(how, Remote)
            self._known[number, how] = kind(self, ["kept", number], name)
        return self._known[number, how]


_LENGTHS = {"ready": 1, "ok": 3, "raise": 3, "fatal": 2, "back": 3}


class Remote:
    """An object that lives in the solution's process: its attributes can be read and set, its methods called, and it
    can be handed back. It equals nothing but itself, whatever its class says over there."""

    _solution: Solution
    _target: list[Any]
    _name: str

    def __init__(self, solution: Solution, target: list[Any], name: str) -> None:
        self.__dict__.update(_solution=solution, _target=target, _name=name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._solution.get(self._target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._solution.set(self._target, name, value)

    def __repr__(self) -> str:
        return f"<an object of the solution: {self._name}>"


class RemoteCallable(Remote):
    """A function or class over there."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._solution.call(self._target, arguments, named)


class RemoteIterator(Remote):
    """A generator over there."""

    def __iter__(self) -> RemoteIterator:
        return self

    def __next__(self) -> Any:
        return self._solution.next(self._target)


def judge(job: Mapping[str, Any], peer: socket.socket, verdict: socket.socket) -> None:
    """Run the tests of `job` (setup, tests, entry, names, stop_at_first) and send the verdict: {"passed", "total",
    "detail", "fault"}; fault is "tests" when they cannot be run whatever the solution is."""
    solution = Solution(peer, lambda: frames.send(verdict, {"started": True}))
    try:
        units = _prepare(job, solution)
    except Exception as error:
        frames.send(verdict, _fault(f"the tests cannot be read: {describe(error)}"))
        return
    total, passed, detail = max(sum(unit.counts for unit in units), 1), 0, ""
    for unit in units:
        try:
            unit.run()
            passed += unit.counts and not solution.gone
        except BaseException as error:
            if not solution.num_calls and not solution.gone and not solution.fault:
                frames.send(verdict, _fault(f"{unit.source[:_SHOWN]}: {describe(error)}"))
                return
            detail = detail or solution.gone or _failure(unit, error, solution)
            if job["stop_at_first"] or not unit.counts:
                break
        if solution.gone or solution.fault:  # also when the test has caught everything
            detail = solution.gone
            break
    if solution.fault or (not solution.num_calls and not detail):
        frames.send(verdict, _fault(solution.fault or "no test called the solution"))
        return
    frames.send(verdict, {"passed": passed, "total": total, "detail": detail, "fault": ""})


def _prepare(job: Mapping[str, Any], solution: Solution) -> list[Unit]:
    """The tests, ready to run in one namespace where names that nobody defines are the solution's."""
    entry = job["entry"]
    candidate = RemoteCallable(solution, ["name", entry], entry) if entry else None
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(job["setup"], "setup.py", "exec"), names)

    def of_solution(name: str) -> Any:
        return RemoteCallable(solution, ["name", name], name)

    module = types.ModuleType("solution")
    module.__getattr__ = of_solution  # type: ignore[method-assign]  # `from solution import f`
    sys.modules["solution"] = module
    names |= {name: of_solution(name) for name in job["names"]}
    return plan_tests(job["tests"], names, entry, candidate, of_solution)


def _change(argument: Any, now: Any) -> None:
    if type(argument) is not type(now):
        return
    if isinstance(argument, list | bytearray):
        argument[:] = now
    elif isinstance(argument, dict | set):
        argument.clear()
        argument.update(now)


def _failure(unit: Unit, error: BaseException, solution: Solution) -> str:
    said = "" if isinstance(error, AssertionError) and not str(error) else f": {describe(error)[:_SHOWN]}"
    return f"{unit.source[:_SHOWN]}{said}; {solution.last_call}"


def _fault(detail: str) -> dict[str, Any]:
    return {"passed": 0, "total": 1, "detail": detail, "fault": "tests"}


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # an int with more digits than Python writes
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
