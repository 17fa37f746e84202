"""Source of tests -> what is run and counted one by one. Reads the shapes of the ecosystem: asserts, HumanEval's check
functions, test_* functions, unittest classes."""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
import typing
import unittest
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_BUILT_IN = frozenset(dir(builtins))


@dataclass(frozen=True)
class Unit:
    """One piece of the tests. `counts`: whether it is a test; otherwise it prepares the ones behind it."""

    run: Callable[[], Any]
    source: str
    counts: bool


def plan_tests(
    sources: Sequence[str],
    names: dict[str, Any],
    entry: str | None,
    candidate: Any,
    of_solution: Callable[[str], Any],
) -> list[Unit]:
    """The units of `sources`, which share the namespace `names`. `candidate` is what `entry` means, and what its last
    name (f, of "Solution().f") and "candidate" mean where nobody defines them; any other such name is asked of
    `of_solution`. Of several sources each is a test; of one, each assert at the top. Raises
    SyntaxError."""
    trees = [_without_runners(ast.parse(source)) for source in sources]
    defined = {*names, *(name for tree in trees for name in _bound(tree))}
    for name in {node.id for tree in trees for node in ast.walk(tree) if _is_load(node)}:  # type: ignore[attr-defined]
        if name not in defined and name not in _BUILT_IN:
            names[name] = _trusted(name) or of_solution(name)
    if entry:
        usual = {"candidate", entry.rpartition(".")[2]} - defined - _BUILT_IN
        names |= {name: candidate for name in {entry, *usual} if name.isidentifier()}
    if len(sources) > 1:
        return [_unit(tree.body, source, names, True) for tree, source in zip(trees, sources)]
    units = []
    for tree, source in zip(trees, sources):
        lines = source.splitlines()
        for node in tree.body:
            text = " ".join(lines[node.lineno - 1 : node.end_lineno])
            units.append(_unit([node], text, names, isinstance(node, ast.Assert)))
        units += _called(tree, names, candidate)
    if not any(unit.counts for unit in units):
        body = [node for tree in trees for node in tree.body]
        return [_unit(body, "the tests", names, True)]
    return units


def _without_runners(tree: ast.Module) -> ast.Module:
    """Without unittest.main() and pytest.main(), bare or behind `if __name__ ...`: what they would run is run here."""
    tree.body = [node for node in tree.body if not _is_runner(node)]
    return tree


def _is_runner(node: ast.stmt) -> bool:
    if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
        return any(map(_is_runner, node.body))
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith(("unittest.main(", "pytest.main("))


def _trusted(name: str) -> Any:
    """What tests often use without an import. It must not be the solution's: math.isclose may be anything there."""
    if name in sys.stdlib_module_names:
        return importlib.import_module(name)
    if name in ("np", "numpy") and "numpy" in sys.modules:
        return sys.modules["numpy"]
    return getattr(typing, name, None) if name in typing.__all__ else None


def _unit(body: list[ast.stmt], source: str, names: dict[str, Any], counts: bool) -> Unit:
    code = compile(ast.Module(body, []), "tests.py", "exec")
    return Unit(lambda: exec(code, names), " ".join(source.split()), counts)


def _called(tree: ast.Module, names: dict[str, Any], candidate: Any) -> list[Unit]:
    """Functions that the tests define for others to call."""
    called = {
        node.func.id
        for statement in tree.body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    units = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name not in called:
            if node.name == "check" and node.args.args:
                units.append(Unit(lambda: names["check"](candidate), "check(candidate)", True))
            elif node.name.startswith("test") and not node.args.args:
                units.append(Unit(lambda name=node.name: names[name](), f"{node.name}()", True))
        if isinstance(node, ast.ClassDef) and _is_case(node) and not any(map(_does_something, tree.body)):
            units.append(Unit(lambda name=node.name: _run_case(names[name]), node.name, True))
    return units


def _is_case(node: ast.ClassDef) -> bool:
    return any("TestCase" in ast.unparse(base) for base in node.bases)


def _does_something(statement: ast.stmt) -> bool:
    """More than a definition: it may run the cases itself. A docstring does nothing."""
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Assert | ast.If)


def _run_case(case: type[unittest.TestCase]) -> None:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    problems = [*result.errors, *result.failures]
    if problems or not result.testsRun or result.skipped or result.unexpectedSuccesses:
        last = problems[0][1].strip().splitlines()[-1] if problems else "not all were run"
        raise AssertionError(last)


def _is_load(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def _bound(tree: ast.Module) -> set[str]:
    """Every name that the source binds anywhere: variables, functions, classes, parameters, imports, exceptions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found
