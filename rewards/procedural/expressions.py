"""Stand-ins for eval and for sympy's parse_expr, which is eval too: they read the syntax tree and build only what is
named here. For libraries that hand them what a model wrote.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy

MAX_LENGTH = 5_000
MAX_POWER = 1_000  # of an exponent, and of a shift

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
    ast.BitXor: operator.xor, ast.Pow: operator.pow, ast.LShift: operator.lshift, ast.RShift: operator.rshift,
}  # fmt: skip
_UNARY: dict[type, Callable[[Any], Any]] = {
    ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Invert: operator.invert, ast.Not: operator.not_,
}  # fmt: skip
_NAMES = {
    name: getattr(sympy, name)
    for name in (
        *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh"),
        *("exp", "log", "ln", "sqrt", "Abs", "pi", "E", "I", "oo"),
    )
}
_FUNCTIONS = frozenset(name for name, value in _NAMES.items() if callable(value))


def plain_value(text: str, *_: Any) -> Any:
    """The value of literals, lists of them and arithmetic, in Python's syntax. Raises ValueError for all else."""
    return _built(_tree(text), {}, False)


def formula(text: str, local_dict: Mapping[str, Any] | None = None, **_: Any) -> Any:
    """The sympy object that arithmetic of names, numbers and elementary functions means. Raises ValueError for all
    else; other arguments of parse_expr's have no effect."""
    return sympy.sympify(_built(_tree(text), local_dict or {}, True))


def _tree(text: Any) -> ast.expr:
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise ValueError("not a text, or a very long one")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not an expression: {error}") from None


def _built(node: ast.expr, names: Mapping[str, Any], symbolic: bool) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | type(None)):
        is_number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
        return sympy.Number(node.value) if symbolic and is_number else node.value
    if isinstance(node, ast.List | ast.Tuple):
        return (list if isinstance(node, ast.List) else tuple)(_built(one, names, symbolic) for one in node.elts)
    if isinstance(node, ast.Dict) and not symbolic:
        keys = [_built(key, names, symbolic) for key in node.keys if key is not None]
        return dict(zip(keys, (_built(value, names, symbolic) for value in node.values), strict=True))
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_built(node.operand, names, symbolic))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _built(node.left, names, symbolic), _built(node.right, names, symbolic)
        is_power = isinstance(node.op, ast.Pow | ast.LShift | ast.RShift)
        if is_power and not (hasattr(right, "free_symbols") and right.free_symbols) and abs(right) > MAX_POWER:
            raise ValueError(f"a power above {MAX_POWER}")
        if isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple):
            raise ValueError("arithmetic of things that are no numbers")
        return _BINARY[type(node.op)](left, right)
    if symbolic and isinstance(node, ast.Name):
        return names[node.id] if node.id in names else _NAMES.get(node.id) or sympy.Symbol(node.id)
    if symbolic and isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        return _NAMES[node.func.id](*(_built(one, names, symbolic) for one in node.args))
    raise ValueError(f"{type(node).__name__} is not allowed here")
