"""The built-in rewards: pure functions of texts."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rewards.builtin import BUILTIN
from rewards.exact import exact_match
from rewards.format import boxed_format, finished, format_regex, has_answer
from rewards.math import gold_answers, math_reward
from rewards.math.compare import same_answer
from rewards.math.extract import final_answer, last_boxed
from rewards.math.quantity import parse_number
from rlft.errors import UserError

GSM8K = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "gsm8k_train_300.jsonl"


def test_exact_match_needs_the_text_and_the_end() -> None:
    completions = ["012", "012", "012 ", "12"]
    reasons = ["stop", "length", "stop", "stop"]
    assert exact_match(completions, answer=["012"] * 4, finish_reasons=reasons) == [1, 0, 0, 0]
    assert exact_match([[{"role": "assistant", "content": "7"}]], answer=[7], finish_reasons=["stop"]) == [1]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{3} and then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{4} but \boxed{5", "4"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\fbox{8}", "8"),
        ("work 1 + 2\n#### 1,234\n", "1,234"),
        ("The answer is 7. I hope so", "7"),
        ("Final Answer: the sum is 3.5", "3.5"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        (r"\boxed{255} is one part. Final Answer: The final answer is $10,455$. I hope", "10,455"),
        (r"\boxed{255}. This answer is right.", "255"),
        (r"\boxed{1} and \boxed{2}", "1;2"),
        (r"\(y_1 = \boxed{3} \) and \( y_2 = \boxed{4}\)", "3;4"),
        (r"\boxed{5}, that is, \boxed{6}", "6"),
        (r"$\boxed{28}$ percent", r"28\%"),
        (r"so $x = 3$ and $y = 4$.", "x = 3;y = 4"),
        (r"We find that $x \neq 3$.", r"x \neq 3"),
        ("**Answer:** **11**", "11"),
        ("$x+1$", "$x+1$"),
        ("12 cm", "12 cm"),
        (r"(x-1)(x+1)", r"(x-1)(x+1)"),
        ("the answer is 1. No, the answer is\n 2", "2"),
        ("first 3, then 4 apples", "4"),
        ("it costs $-5", "-5"),
        ("it costs -$5", "-$5"),
        ("it is 5-3", "3"),
        ("about 1/2", "1/2"),
        (r"<think>\boxed{1}, no</think>It is 2.", "2"),
        (r"<think>\boxed{1}</think>", None),
        (r"<answer>41</answer>, or is it \boxed{42}?", "41"),
        (r"<answer>3</answer> and <answer>So \boxed{4}</answer>", "4"),
        ("x2", None),
        ("so 1+1", None),
        ("no idea", None),
        ("", None),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        *[
            ("990", a)
            for a in ("990", "990.0", "$990", "990 dollars", "the sum is 990", r"\$990.00", "x = 990", "+990")
        ],
        *[("1/2", a) for a in ("0.5", ".5", "50%", r"\frac{1}{2}", r"\dfrac12", "2/4", r"50\%")],
        *[("-1/2", a) for a in (r"-\frac{1}{2}", r"\frac{-1}{2}", "-.5", "\u22120.5")],
        ("40000", "40,000"),
        ("9,450", "9450"),
        ("2.5", "2 1/2"),
        ("2.5", r"2\frac{1}{2}"),
        ("(1, 2)", r"\left(1,2\right)"),
        ("A", "(A)"),
        ("Yes", r"\text{yes}"),
        (r"\sqrt{2}", r"$\sqrt{2}$"),
        ("90", r"90^\circ"),
    ],
)
def test_same(gold: str, answer: str) -> None:
    assert same_answer(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("990", "991"),
        ("990", "-990"),
        ("50", "50%"),
        ("1/3", "0.3333333333"),
        ("12 cm", "12 m"),
        ("2", "x^2"),
        ("2", r"\sqrt{2}"),
        ("2", "2x"),
        ("5", "5 million"),
        ("5", "not 5"),
        ("5", "5 or 6"),
        ("5", "y = 6"),
        ("x = 5", "y = 5"),
        ("1", "1/0"),
        ("nan", "nan"),
        ("12", "1 2"),
        ("32349", "32, 349"),
        ("12", "1,2"),
        ("(1,2)", "(2,1)"),
        ("", ""),
        ("42", "__import__('os').getpid()"),
        ("1024", "2**10"),
        ("x", "X"),
    ],
)
def test_not_the_same(gold: str, answer: str) -> None:
    assert not same_answer(gold, answer)


def test_parse_number_by_hand() -> None:
    assert parse_number("-1,234.5") == Fraction(-2469, 2)
    assert parse_number("25%") == Fraction(1, 4)
    assert parse_number("1 3/4") == Fraction(7, 4)
    assert parse_number("-1 3/4") == Fraction(-7, 4)
    assert parse_number("12,34") is None
    assert parse_number("9" * 101) is None


def test_gold_answers() -> None:
    assert gold_answers("6 * 165 = 990\n#### 990") == ["990"]
    assert gold_answers(r"so \boxed{x}") == ["x"]
    assert gold_answers(["1", 2]) == ["1", "2"]
    for nothing in (None, "", [], "####  "):
        with pytest.raises(ValueError, match="no right answer"):
            gold_answers(nothing)


def values(*args: Any, **columns: Any) -> list[float | None]:
    return [result.value for result in math_reward(*args, **columns)]


def test_math_reward_columns() -> None:
    assert values(["the answer is 5"], solution=["#### 5"], prompts=["?"]) == [1]
    assert values(["5"], answer=["4"], final=["5"], column="final") == [1]
    assert values([[{"role": "assistant", "content": "so 5"}]], answer=[5]) == [1]
    with pytest.raises(UserError, match=r"no column with the right answer\. Columns there: prompts; tried answer"):
        math_reward(["5"], prompts=["?"])
    with pytest.raises(UserError, match="no column 'gold'"):
        math_reward(["5"], answer=["5"], column="gold")


def gsm8k() -> list[dict[str, Any]]:
    if not GSM8K.exists():
        pytest.skip(f"{GSM8K} is not here")
    return [json.loads(line) for line in GSM8K.read_text().splitlines()]


def test_every_gsm8k_solution_is_right_and_wrong_with_another_number() -> None:
    rows = gsm8k()
    golds = [row["answer"] for row in rows]
    assert len(rows) == 300
    assert values(golds, answer=golds) == [1] * 300
    solutions, numbers = zip(*(gold.rsplit("#### ", 1) for gold in golds), strict=True)
    for form in ("#### {}", "The answer is {}.", r"\boxed{{{}}}", "which is {}"):
        right = [s.replace("####", "") + form.format(n) for s, n in zip(solutions, numbers, strict=True)]
        assert values(right, answer=golds) == [1] * 300
        changed = [str(int(n.replace(",", "")) + 1) for n in numbers]
        wrong = [s + form.format(n) for s, n in zip(solutions, changed, strict=True)]
        assert values(wrong, answer=golds) == [0] * 300


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "1,", "answer is ", "-", "9", "{", "\\boxed{1}", " ", "1/", "\\frac", "$", "1 "]
)
def test_hostile_lengths_take_no_time(piece: str) -> None:
    text = piece * 300_000
    begin = time.process_time()
    math_reward([text, text + "#### 5", "5"], answer=["5", "5", text + "#### 6"])
    boxed_format([text])
    has_answer([text])
    assert time.process_time() - begin < 2  # milliseconds when linear; minutes when not


def test_format_rewards() -> None:
    texts = [r"\boxed{1}", "the answer is 3", "3", r"\boxed{}"]
    assert has_answer(texts) == [1, 1, 0, 0]
    assert boxed_format(texts) == [1, 0, 0, 0]
    assert last_boxed("none") is None
    assert format_regex(["<think>a\nb</think>c", "c"], pattern="^<think>.*</think>") == [1, 0]
    with pytest.raises(UserError, match="not a regular expression"):
        format_regex(["a"], pattern="(")
    assert finished(["a", "b"], finish_reasons=["stop", "length"]) == [1, 0]


def test_every_builtin_says_what_it_is() -> None:
    assert {"exact_match", "math"} <= set(BUILTIN)
    assert all(builtin.description and builtin.function.__doc__ for builtin in BUILTIN.values())
