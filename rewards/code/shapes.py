"""A row of data -> what is to be run. The shapes of the ecosystem as they are: HumanEval, MBPP, lists of input and
output, the inputs/outputs dictionaries of APPS, TACO, verl and prime. Knows nothing about how it is run."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

TEST_COLUMNS = (
    "test_list", "test", "tests", "test_cases", "input_output", "ground_truth", "reward_model", "private_tests",
)  # fmt: skip
_ENTRY_COLUMNS = ("entry_point", "fn_name", "function_name", "entry")
_INPUTS, _OUTPUTS = ("stdin", "input", "inputs"), ("stdout", "output", "outputs")
_WRAPPERS = ("ground_truth", "test_cases", "tests")  # dictionaries that hold the tests one level down
_SAME = """
def _same(got, expected):
    def plain(value):
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return {str(key): plain(item) for key, item in value.items()} if isinstance(value, dict) else value
    got, expected = plain(got), plain(expected)
    return got == expected or (isinstance(expected, list) and len(expected) == 1 and got == expected[0])
"""


@dataclass(frozen=True)
class Task:
    """What one row asks for. `tests` for functions, `cases` for whole programs; one of them is empty."""

    tests: tuple[str, ...] = ()
    cases: tuple[Mapping[str, str], ...] = ()
    entry: str | None = None  # the function that is tested; without one the tests' own names say
    setup: str = ""  # runs on the tests' side before them
    names: tuple[str, ...] = ()  # of the solution even where Python has them: the reference defines them
    prompt: str = ""  # code that a completion may go on from: HumanEval's


def task_of(row: Mapping[str, Any], tests: str | None, entry: str | None, setup: str | None, mode: str) -> Task:
    """The task of `row`, from the columns of these names, or from the usual ones. Raises ValueError for a row without
    usable tests: what was found, what was expected."""
    name = tests or next((name for name in TEST_COLUMNS if row.get(name) not in (None, "", [])), None)
    if name is None and row.get("inputs") is not None and row.get("outputs") is not None:
        found: Any = {key: row[key] for key in ("inputs", "outputs")}
    elif name is None or row.get(name) is None:
        raise ValueError(
            f"no tests: {f'column {tests!r} is empty' if tests else 'looked in ' + ', '.join(TEST_COLUMNS)}"
        )
    else:
        found = row[name]
    function = _text(row, (entry,) if entry else _ENTRY_COLUMNS)
    before = _setup(row, setup)
    task = _read(_decoded(found), function, before, str(row.get("prompt") or ""), name == "test")
    task = replace(task, names=_defined(row.get("code")) if name == "test_list" else ())
    if (mode == "call" and not task.tests) or (mode == "stdio" and not task.cases):
        raise ValueError(f"mode is {mode}, and the tests are for {'whole programs' if task.cases else 'functions'}")
    return task


def _read(found: Any, entry: str | None, setup: str, prompt: str, human_eval: bool) -> Task:
    if isinstance(found, str):
        if not found.strip():
            raise ValueError("the tests are empty")
        code = prompt if human_eval and entry and re.search(rf"^def {re.escape(entry)}\b", prompt, re.M) else ""
        return Task(tests=(found,), entry=entry, setup=f"{_helpers(code)}{setup}", prompt=code)
    if isinstance(found, list | tuple) and found:
        if all(isinstance(one, str) for one in found):
            return Task(tests=tuple(found), entry=entry, setup=setup)
        if all(isinstance(one, Mapping) for one in found):
            pairs = [(_first(one, _INPUTS), _first(one, _OUTPUTS)) for one in found]
            return _of_pairs(pairs, entry, setup)
    if isinstance(found, Mapping):
        inputs, outputs = _first(found, _INPUTS), _first(found, _OUTPUTS)
        if isinstance(inputs, list | tuple) and isinstance(outputs, list | tuple) and len(inputs) == len(outputs) > 0:
            return _of_pairs(list(zip(inputs, outputs)), found.get("fn_name") or entry, setup)
        inner = next((found[name] for name in _WRAPPERS if found.get(name)), None)
        if inner is not None:
            return _read(_decoded(inner), found.get("fn_name") or entry, setup, "", False)
    raise ValueError(
        f"tests of a shape that is not known: {str(found)[:80]!r}. Expected code, a list of asserts, a list of "
        "{stdin, stdout}, or {inputs, outputs} of the same length, not empty"
    )


def _of_pairs(pairs: list[tuple[Any, Any]], entry: str | None, setup: str) -> Task:
    if any(one is None or other is None for one, other in pairs):
        raise ValueError("a test without an input or an output")
    if entry:
        asserts = [f"assert _same({_callee(entry)}(*{_arguments(one)!r}), {_value(other)!r})" for one, other in pairs]
        return Task(tests=tuple(asserts), entry=entry, setup=_SAME + setup)
    return Task(cases=tuple({"stdin": _lines(one), "stdout": _lines(other)} for one, other in pairs))


def _callee(entry: str) -> str:
    """What the tests call: a method may have the name of something that Python has, such as `sum`."""
    return entry if entry.isidentifier() and not hasattr(builtins, entry) else "candidate"


def _arguments(given: Any) -> list[Any]:
    """Of a call: a list, or a text with one JSON value a line."""
    if isinstance(given, str):
        return [json.loads(line) for line in given.splitlines() if line.strip()]
    return list(given) if isinstance(given, list | tuple) else [given]


def _value(given: Any) -> Any:
    if isinstance(given, str):
        try:
            return json.loads(given)
        except ValueError:
            return given
    return given


def _lines(given: Any) -> str:
    return "\n".join(map(str, given)) if isinstance(given, list | tuple) else str(given)


def _decoded(found: Any) -> Any:
    """JSON in a text, which is how Parquet files keep nested tests."""
    if isinstance(found, str) and found.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(found)
        except ValueError:
            return found
    return found


def _setup(row: Mapping[str, Any], column: str | None) -> str:
    parts = [row.get(column)] if column else [row.get("test_imports"), row.get("test_setup_code")]
    lines = [part if isinstance(part, str) else "\n".join(part) for part in parts if part]
    return "".join(f"{line}\n" for line in lines)


def _helpers(prompt: str) -> str:
    return f"{prompt}\n" if prompt else ""


def _defined(reference: Any) -> tuple[str, ...]:
    """Functions of MBPP's reference, which is data: one of them is called `sum`. A completion has no say in this."""
    return tuple(re.findall(r"^def (\w+)", reference, re.MULTILINE)) if isinstance(reference, str) else ()


def _text(row: Mapping[str, Any], names: tuple[str | None, ...]) -> str | None:
    return next((str(row[name]) for name in names if name and row.get(name)), None)


def _first(found: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((found[name] for name in names if found.get(name) is not None), None)
