"""What counts as the same answer under each policy, and answers that are more than one number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewards.load import resolve
from rewards.math import math_reward
from rewards.math.forms import Brackets, Leaf, Named, Several, read_form
from rewards.math.normalise import normalise
from rewards.math.quantity import Quantity, read_quantity
from rlft.config.roles import RewardFunction
from rlft.errors import UserError
from tests.math_cases import ours, read_rows, report

PAIRS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "math_answers.jsonl"


def value(answer: str, gold: Any, **args: Any) -> float | None:
    return math_reward([answer], answer=[gold], **args)[0].value


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("(1, 3)", "${1,3}$"),
        ("$\\pm 2$", "2, -2"),
        ("1, 2, 3", "\\boxed{3}, \\boxed{1} and \\boxed{2}"),
        ("$p=5,q=2;p=7,q=2$", "$(5,2),(7,2)$"),
        ("a_3 = 2, a_{37} = 19", "\\boxed{a_{37} = 19, \\quad a_3 = 2}"),
        ("x = -5, p = \\frac{14}{3}", "\\boxed{-5, \\frac{14}{3}}"),
        ("(-\\infty, 3)", "x < 3"),
        ("5 \\geq x", "x \\leq 5"),
        ("[-2, 7]", "$-2 \\le x \\le 7$"),
        ("(-\\infty,-1)\\cup(1,\\infty)", "x<-1 or x>1"),
        ("\\{x \\mid x > 3\\}", "(3, \\infty)"),
        ("\\begin{pmatrix}1 \\\\ 3\\end{pmatrix}", "\\left[\\begin{array}{c}1 \\\\3\\end{array}\\right]"),
        ("W(n)=1 \\text{ and } W(n)=-1", "W(x)=1orW(x)=-1"),
        ("72", "48+24 = 72"),
        ("\\frac13", "$x=1/3\\approx0.33$"),
        ("11", "$x \\approx 11$"),
        ("1,22", "1.22"),
        ("$x=3 \\lor x=2$", "2, 3"),
        ("1,000,000\\text{ ft}^2", "1000000"),
        ("\\mathbb{R}", "(-\\infty,\\infty)"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "(1,2)"),
        ("f^{-1}(x)=2x", "2x"),
        ("11\\,111\\,111", "11111111"),
        ("V_1:V_2 = 11:21", "11:21"),
        ("3:4", "\\frac34"),
        ("\\emptyset", "\\{\\}"),
        ("28\\%", "$28$ percent"),
        ("15\\mbox{ cm}^2", "15 square centimeters"),
        ("0.\\overline{3}", "\\frac13"),
        ("\\frac{19}{110}", "0.1\\overline{72}"),  # 1/10 + 72/990
        ("1{,}000{,}000", "1 000 000"),
        ("2\u00bd", "2.5"),
        ("100", "\uff11\uff10\uff10"),
        ("42", "42_{10}"),
        ("no solution", "\\text{No solution}"),
        ("B", "The answer is (B)."),
        ("\\\\frac{1}{2}", "1/2"),  # escaped twice, as data that went through JSON twice is
    ],
)
def test_same_without_sympy(gold: str, answer: str) -> None:
    assert value(answer, gold, symbolic=False) == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\sqrt{8}", "2\\sqrt2"),
        ("5\\pm2", "3 and 7"),
        ("x^2-1", "(x-1)(x+1)"),
        ("\\sin^2 x+\\cos^2 x", "1"),
        ("2x+4y-3=0", "y=-\\frac{1}{2}x+\\frac{3}{4}"),
        ("x <= 1", "-x >= -1"),
        ("i^2", "-1"),
        ("10^{10}", "10000000000"),
        ("\\frac{1+\\sqrt5}{2}", "\\boxed{\\frac{\\sqrt{5}}{2}+0.5}"),
        ("\\left(\\frac{1}{\\sqrt2}, 1\\right)", "(\\frac{\\sqrt{2}}{2}, 1)"),
        ("\\binom{10}{3}", "120"),
        ("\\frac{\\sqrt{3}}{2}", "\\sin 60^\\circ"),
        ("x+y=5", "5=x+y"),
        ("|x|<3", "-3<x<3"),
    ],
)
def test_same_by_sympy(gold: str, answer: str) -> None:
    assert value(answer, gold) == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\pi", "3.14159265"),
        ("\\sqrt2", "1.4142135623730950488"),
        ("2^{100}", "1267650600228229401496703205377"),
        ("x + y - z + 2 = 0", "5x - 7y + 11z + 4 = 0"),
        ("x^2-1", "(y-1)(y+1)"),
        ("|x|", "x"),
        ("x > 5", "x < 5"),
        ("[0,9)", "[0,1)"),
        ("[1,2]", "(1,2)"),
        ("(1,2)", "(2,1)"),
        ("\\{1,2\\}", "(1,2)"),
        ("7", "\\boxed{6}\\boxed{7}"),
        ("3", "\\boxed{1}, \\boxed{2}, \\boxed{3}"),
        ("1, 2", "1"),
        ("1, 2", "1, 1"),
        ("a + 3z = 0", "0"),
        ("|x|<3", "-3<x\\le 3"),
        ("\\sin 60", "\\frac{\\sqrt{3}}{2}"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "(1,2,3,4)"),
        ("f(x)", "f(y)"),
        ("12:00", "1:00"),
        ("1112112_3", "1112122_3"),
        ("42", "42_{8}"),
        ("0.\\overline{3}", "0.3333"),
        ("1", "1+10^{-110}"),
        ("AB", "BA"),
        ("\\infty", "-\\infty"),
        ("\\pm 2021", "2021"),
    ],
)
def test_not_the_same(gold: str, answer: str) -> None:
    assert value(answer, gold) == 0.0


def test_units() -> None:
    assert [value(answer, "12 cm") for answer in ("12 cm", "12 centimeters", "12", "12 m", "12 apples")] == [
        1,
        1,
        1,
        0,
        0,
    ]
    assert [value(answer, "12") for answer in ("12 cm", "12 apples", "\\boxed{12\\text{ m}^2}")] == [1, 1, 1]
    require = {"units": "require"}
    assert [value(answer, "12 cm", **require) for answer in ("12 cm", "12", "12 m")] == [1, 0, 0]
    assert [value(answer, "12 cm", units="ignore") for answer in ("12", "12 m", "13 cm")] == [1, 1, 0]
    assert value("25 mph", "25 miles per hour", **require) == 1.0
    answers = ("6\\pi\\text{ cm}", "\\frac{12}{2}\\pi", "6\\pi\\text{ m}", "6\\pi\\text{ cm}^2")
    assert [value(answer, "6\\pi\\text{ cm}") for answer in answers] == [1, 1, 0, 0]


def test_percent() -> None:
    assert [value(answer, "50%") for answer in ("50%", "0.5", "1/2", "50")] == [1, 1, 1, 0]
    assert [value(answer, "50%", percent="either") for answer in ("50%", "0.5", "50", "5")] == [1, 1, 1, 0]
    assert value("50%", "50") == 0.0 and value("50%", "50", percent="either") == 1.0


def test_tolerance_is_relative_to_the_right_answer() -> None:
    assert value("0.333", "1/3") == 0.0
    assert value("0.333", "1/3", tolerance=0.01) == 1.0  # off by 0.001 of 1/3
    assert value("0.32", "1/3", tolerance=0.01) == 0.0  # off by 0.04
    assert value("3.1416", "\\pi", tolerance=1e-4) == 1.0
    assert value("3.15", "\\pi", tolerance=1e-4) == 0.0


def test_order() -> None:
    assert value("3, 2, 1", "1, 2, 3") == 1.0 and value("3, 2, 1", "1, 2, 3", order="strict") == 0.0
    assert value("\\{3, 2\\}", "\\{2, 3\\}", order="strict") == 1.0  # a set has none


def test_choices() -> None:
    def say(answer: str, gold: str, options: Any) -> float | None:
        return math_reward([answer], answer=[gold], options=[options], choices="options")[0].value

    options = ["12", "15", "18", "twenty"]
    assert [say(answer, "B", options) for answer in ("B", "(B)", "the answer is B) 15", "15", "b")] == [1] * 5
    assert [say(answer, "B", options) for answer in ("A", "12", "16", "E")] == [0] * 4
    assert say("C", "18", options) == 1.0 and say("Twenty", "D", options) == 1.0
    assert say("B", "x", {"A": "y", "B": "x"}) == 1.0


def test_several_right_answers_and_details_for_people() -> None:
    assert value("the answer is 6", ["5", "6"]) == 1.0
    results = math_reward(["4", "12 m", "I do not know", "\\boxed{}"], answer=["5", "12 cm", "5", "5"])
    assert [result.status for result in results] == ["wrong", "wrong", "unparsed", "unparsed"]
    assert results[0].detail == "expected 5, found 4 (numbers)"
    assert results[1].detail == "expected 12 cm, found 12 m (units)"
    assert results[2].detail.startswith("no answer found")


def test_bad_args_are_refused_before_a_run() -> None:
    for args, said in (
        ({"units": "metric"}, "units is 'metric'; expected gold or ignore or require"),
        ({"tolerance": -1}, "tolerance is -1; expected 0 up to below 1"),
        ({"deadline_s": 0}, "deadline_s is 0; expected 0 to 60"),
        ({"symbolic": "no"}, "symbolic is 'no'"),
        ({"column": 3}, "column is 3; expected the name of a column"),
        ({"unit": "gold"}, "'unit', which it does not take. Did you mean 'units'"),
    ):
        with pytest.raises(UserError, match=said):
            resolve(RewardFunction(function="math", args=args))
    assert resolve(RewardFunction(function="math", args={"units": "require", "tolerance": 0.01})).name == "math"


def test_forms_by_hand() -> None:
    assert read_form("(1,2]") == Brackets("(1,2]", "(", "]", (Leaf("1"), Leaf("2")))
    interval = Brackets("x<3", "(", ")", (Leaf("-\\infty"), Leaf("3")))
    assert read_form("x<3") == Named("x<3", "x", interval)
    assert read_form(normalise("1, 2 and 3")) == Several("1,2 and 3", (Leaf("1"), Leaf("2"), Leaf("3")))
    assert read_form("1,234") == Leaf("1,234")
    assert read_form("(x-1)(x+1)") == Leaf("(x-1)(x+1)")
    assert read_form("(" * 3000) == Leaf("(" * 3000)


def test_quantities_by_hand() -> None:
    half = read_quantity("50%")
    assert half is not None and half.value * 2 == 1 and half.is_percent
    assert read_quantity("3 square meters") == Quantity(3, unit="m^2")  # type: ignore[arg-type]
    assert read_quantity("5x") is None and read_quantity("5 x") is None and read_quantity("5 million") is None
    assert read_quantity("the sum is 7") == Quantity(7)  # type: ignore[arg-type]
    assert read_quantity("the sum is 7", False) is None


def test_agreement_with_people() -> None:
    if not PAIRS.exists():
        pytest.skip(f"{PAIRS} is not here")
    counts = report(ours(read_rows(PAIRS, ("gold", "answer", "equal")), {}), late_s=12)
    assert counts["pairs"] == 182 and counts["agreement"] >= 0.95 and counts["hangs"] == 0
    assert counts["false_equal"] <= 4  # math-verify: see docs/math_rewards.md
