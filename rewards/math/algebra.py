"""Whether two pieces of LaTeX are the same mathematics, by sympy. Only ever runs in a process that may be killed (see
rewards/killable/child.py): what a model wrote can keep sympy busy for ever or fill the memory.

Reading is latex2sympy2_extended's LaTeX grammar, which builds objects node by node. Of math-verify only the comparison
of objects is used, and only for sets and the like. Nothing here hands text to parse_expr, sympify or eval. Left to
themselves math-verify would (its ExprExtractionConfig, which is not used) and the grammar would (each number, as
sympy.Number(text)); the grammar's numbers are made here instead. They are exact, a decimal is a fraction, so pi is not
3.14159265. What has the same value is found by evaluation to many digits at several points, before anything is
simplified.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy, latex2sympy2, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.logic.boolalg import And

DIGITS = 120  # more than any number that is let in here has, so that a decimal is never taken for pi
_TOLERANCE = sympy.Float(10, DIGITS) ** -105
_POINTS = ((7, 3), (-11, 13), (5, 17))  # where variables are tried: (first, step) of numerators over 19
_READING = NormalizationConfig(
    basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
)
_DIGITS = re.compile(r"[0-9]{0,200}(?:\.[0-9]{0,200})?")
_FLIPPED = {sympy.Gt: sympy.Lt, sympy.Ge: sympy.Le}


def _exact_number(text: str) -> Any:
    """The number that digits mean, thousands' commas and spaces in it or not."""
    plain = text.replace(",", "").replace(" ", "")
    if not _DIGITS.fullmatch(plain) or plain in ("", "."):
        raise ValueError("not a number")
    number = Fraction(plain)
    return sympy.Rational(number.numerator, number.denominator)


latex2sympy2._Latex2Sympy.parse_number = lambda self, text: _exact_number(text)
latex2sympy2.convert_number = _exact_number


def prepare() -> None:
    """Use each part once, so that no fork has to build its tables again."""
    logging.disable(logging.CRITICAL)  # math-verify logs what it cannot compare
    for gold, answer in (
        (r"\frac{x^{2}-1}{2}=0", r"(x-1)(x+1)=0"),
        (r"\sin^2 x+\sqrt{2}\pi", "1"),
        (r"[1,2)\cup\{3\}", r"\{3\}\cup[1,2)"),
        (r"1 \le x < 2", "[1,2)"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
        (r"\sum_{k=1}^{3} k", r"|\log_2 8|+3i"),
    ):
        judge(gold, answer, 0.0)


def reply(request: dict[str, Any]) -> dict[str, Any]:
    """What `judge` says of a request with gold, answer and tolerance."""
    try:
        verdict, detail = judge(request["gold"], request["answer"], request["tolerance"])
    except MemoryError:
        raise
    except RecursionError:
        verdict, detail = "unread", "it is nested too deeply"
    except Exception as error:  # sympy raises all there is on what it cannot compare
        verdict, detail = "different", f"sympy could not compare them: {type(error).__name__}"
    return {"verdict": verdict, "detail": detail}


def judge(gold: str, answer: str, tolerance: float) -> tuple[str, str]:
    """(equal, different, unread or gold_unread; what was found). Raises whatever sympy raises in comparing."""
    real = not (should_treat_as_complex(gold) or should_treat_as_complex(answer))
    try:
        right = read(gold, real)
    except MemoryError:
        raise
    except Exception as error:  # the grammar's many ways to refuse
        return "gold_unread", f"{type(error).__name__} in reading the right answer"
    try:
        found = read(answer, real)
    except MemoryError:
        raise
    except Exception as error:
        return "unread", f"{type(error).__name__} in reading the answer"
    return ("equal" if same(right, found, tolerance) else "different"), ""


def read(text: str, real: bool) -> Any:
    """The object that a piece of LaTeX means. Variables are real; or complex, and then i is the imaginary unit unless
    it counts the terms of a sum."""
    made: Any = latex2sympy(
        normalize_latex(text, config=_READING),
        is_real=real,
        convert_degrees=False,
        normalization_config=None,
        conversion_config=latex2sympy2.ConversionConfig(lowercase_symbols=False),
    )
    if not real and hasattr(made, "subs") and not (isinstance(made, sympy.Basic) and made.has(ExprWithLimits)):
        made = made.subs(sympy.Symbol("i", real=False), sympy.I).subs(sympy.Symbol("i"), sympy.I)
    return made


def same(gold: Any, answer: Any, tolerance: float = 0.0) -> bool:
    """Whether two objects are equal. Things of different kinds are not, but a relation is the set that it means."""
    for one in (gold, answer):
        if getattr(one, "has", None) and one.has(sympy.nan, sympy.zoo):
            return False
    if gold == answer:
        return True
    if isinstance(gold, sympy.MatrixBase | sympy.MatrixExpr) or isinstance(answer, sympy.MatrixBase | sympy.MatrixExpr):
        return _same_matrices(gold, answer, tolerance)
    relations = [_relations(one) for one in (gold, answer)]
    if all(relations):
        return _same_relations(relations[0], relations[1])
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return same_value(gold, answer, tolerance)
    if isinstance(gold, sympy.Expr) or isinstance(answer, sympy.Expr):
        return False
    return verify(gold, answer, float_rounding=15, allow_set_relation_comp=True, timeout_seconds=None)


def same_value(gold: Any, answer: Any, tolerance: float = 0.0) -> bool:
    """Whether two expressions have the same value wherever they were tried; with a tolerance, two constants that
    differ by at most so much of `gold`. Sums with a variable in their bounds are only compared in form: evaluating
    those between whole numbers takes minutes."""
    gold, answer = (_plain(expr) for expr in (gold, answer))
    if gold == answer:
        return True
    if gold.is_Rational and answer.is_Rational and not tolerance:
        return False  # exactly, however close they are
    if any(_has_open_bounds(expr) for expr in (gold, answer)):
        return False
    variables = sorted(gold.free_symbols | answer.free_symbols, key=str)
    tried = 0
    for point in _points(variables):
        one, other = (_value(expr, point) for expr in (gold, answer))
        if one is None or other is None:
            continue
        tried += 1
        scale = abs(one) if tolerance and not variables else max(abs(one), abs(other))
        allowed = tolerance if tolerance and not variables else _TOLERANCE
        if abs(one - other) > allowed * scale:
            return False
    if tried:
        return True
    difference = sympy.simplify(gold - answer)
    return difference == 0 or difference.is_zero is True


def _same_matrices(gold: Any, answer: Any, tolerance: float) -> bool:
    made = [one.doit() if hasattr(one, "doit") else one for one in (gold, answer)]
    if not all(isinstance(one, sympy.MatrixBase) for one in made) or made[0].shape != made[1].shape:
        return False
    return all(same(one, other, tolerance) for one, other in zip(made[0], made[1], strict=True))


def _relations(thing: Any) -> list[Any]:
    """The relations of a chain such as a < b < c; empty for what is none."""
    parts = getattr(thing, "_unsorted_args", thing.args) if isinstance(thing, And) else [thing]
    return list(parts) if all(isinstance(part, Relational) for part in parts) else []


def _same_relations(gold: Sequence[Any], answer: Sequence[Any]) -> bool:
    """Each relation of one is one of the other: the same sign, and sides that differ in a fixed proportion."""
    left = list(answer)
    for one in gold:
        match = next((other for other in left if _same_relation(one, other)), None)
        if match is None:
            return _same_solutions(gold, answer)
        left.remove(match)
    return not left or _same_solutions(gold, answer)


def _same_solutions(gold: Sequence[Any], answer: Sequence[Any]) -> bool:
    """Whether inequalities in one variable leave it the same numbers: |x| < 3 is -3 < x < 3."""
    variables = set().union(*(relation.free_symbols for relation in (*gold, *answer)))
    if len(variables) != 1 or any(isinstance(relation, sympy.Eq) for relation in (*gold, *answer)):
        return False
    return sympy.And(*gold).as_set() == sympy.And(*answer).as_set()


def _same_relation(one: Any, other: Any) -> bool:
    (kind, first), (other_kind, second) = _difference(one), _difference(other)
    if kind is not other_kind or not isinstance(first, sympy.Expr) or not isinstance(second, sympy.Expr):
        return False
    first, second = _plain(first), _plain(second)
    if first == second or any(_has_open_bounds(expr) for expr in (first, second)):
        return first == second
    ratios = []
    variables = sorted(first.free_symbols | second.free_symbols, key=str)
    for point in _points(variables):
        values = [_value(expr, point) for expr in (first, second)]
        if values[0] is None or values[1] is None or values[0] == 0 or values[1] == 0:
            continue
        ratios.append(values[0] / values[1])
    if not ratios or any(abs(ratio - ratios[0]) > _TOLERANCE * abs(ratio) for ratio in ratios):
        return False
    return kind in (sympy.Eq, sympy.Ne) or bool(sympy.re(ratios[0]) > 0)


def _difference(relation: Any) -> tuple[Any, Any]:
    kind, left, right = relation.func, relation.lhs, relation.rhs
    if kind in _FLIPPED:
        kind, left, right = _FLIPPED[kind], right, left
    try:
        return kind, left - right
    except TypeError:  # of sets
        return kind, None


def _plain(expr: Any) -> Any:
    """The expression in sympy's own order of factors and terms, with a variable in place of each f(x)."""
    if isinstance(expr, AppliedUndef):
        return sympy.Symbol(str(expr.func(*map(_plain, expr.args))), real=True)
    return expr.func(*map(_plain, expr.args)) if expr.args else expr


def _has_open_bounds(expr: Any) -> bool:
    return any(bool(one.free_symbols) for one in expr.atoms(ExprWithLimits))


def _points(variables: Sequence[Any]) -> list[dict[Any, Any]]:
    """Where to try: no two variables have the same value, and none has one that makes denominators vanish by chance."""
    points = _POINTS if variables else _POINTS[:1]
    return [
        {variable: sympy.Rational(first + step * place, 19) for place, variable in enumerate(variables)}
        for first, step in points
    ]


def _value(expr: Any, point: dict[Any, Any]) -> Any:
    """The number that an expression is at a point, to DIGITS digits; None where it is none, or infinite."""
    value = sympy.N(expr.subs(point), DIGITS)
    if not value.is_number or not value.is_finite or value.has(sympy.nan, sympy.zoo, sympy.oo):
        return None
    return value
