"""reasoning-gym's tasks as rows, and its scorers where they can do no harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewards.load import resolve
from rewards.procedural import find_answer, reasoning_gym_reward
from rewards.procedural.expressions import formula, plain_value
from rlft.config.roles import RewardFunction
from rlft.data.procedural import make_rows, parse_path
from rlft.data.reading import read_rows
from rlft.data.streaming import index_rows
from rlft.errors import UserError
from rlft.samples import RewardResult

PATH = "reasoning_gym:countdown?size=6&seed=7&max_numbers=4"


def needs_the_library() -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed (pip install 'rlft[reasoning-gym]')")


def score(answer: str, row: dict[str, Any], **args: Any) -> RewardResult:
    return reasoning_gym_reward([answer], [row["reasoning_gym"]], [row["task_row"]], **args)[0]


def test_paths_by_hand() -> None:
    assert parse_path("reasoning_gym:chain_sum") == ("chain_sum", {})
    settings = {"size": 10, "name": "a b", "on": True, "levels": [1, 2]}
    assert parse_path("reasoning_gym:x?size=10&name=a+b&on=true&levels=[1,2]") == ("x", settings)
    for bad in ("reasoning_gym:x?size", "reasoning_gym:x?size=1&size=2"):
        with pytest.raises(UserError, match="behind the question mark"):
            parse_path(bad)


def test_rows_are_the_same_each_time_and_say_how_to_make_them_again() -> None:
    needs_the_library()
    read = read_rows(PATH, max_rows=4)
    assert len(read.rows) == 4 and read.places[0] == f"{PATH}#1"
    assert read.rows == make_rows(PATH, 4)
    assert read.rows != make_rows(PATH.replace("seed=7", "seed=8"), 4)
    assert set(read.rows[0]) == {"prompt", "answer", "reasoning_gym", "task_row"}
    assert [row["task_row"] for row in read.rows] == [0, 1, 2, 3]


def test_what_cannot_be_made_is_refused() -> None:
    needs_the_library()
    with pytest.raises(UserError, match="no task 'countdwn'. Did you mean countdown"):
        read_rows("reasoning_gym:countdwn")
    with pytest.raises(UserError, match="does not take these settings.*'many'"):
        read_rows("reasoning_gym:countdown?many=3")
    with pytest.raises(UserError, match="size is 'abc'; expected a whole number"):
        read_rows("reasoning_gym:countdown?size=abc")
    with pytest.raises(UserError, match="Leave data.streaming out"):
        index_rows(PATH, split="train", max_rows=None)
    with pytest.raises(UserError, match="deadline_s is 0; expected 0 to 60"):
        resolve(RewardFunction(function="reasoning_gym", args={"deadline_s": 0}))


def test_scores_of_answers_and_of_what_is_none(tmp_path: Path) -> None:
    needs_the_library()
    canary = tmp_path / "canary"
    row = make_rows(PATH, 1)[0]
    for form in ("{}", "<answer> {} </answer>", "I think \\boxed{{{}}}"):
        assert score(form.format(row["answer"]), row) == RewardResult(1.0, "ok")
    wrong = score(f"<answer>{row['answer']} + 1</answer>", row)
    assert wrong.status == "wrong" and wrong.value is not None and wrong.value < 0.1
    for attack in (f"__import__('os').system('touch {canary}')", f"open('{canary}', 'w')", "9**9**9**9", "(" * 5000):
        result = score(attack, row, deadline_s=2)
        assert result.value is not None and result.value < 0.1, result
    assert score("", row).status == "unparsed"
    assert not canary.exists()
    assert score(row["answer"], row).value == 1.0  # it goes on


def test_scorers_that_call_eval_get_plain_values_only(tmp_path: Path) -> None:
    needs_the_library()
    canary = tmp_path / "canary"
    row = make_rows("reasoning_gym:spiral_matrix?size=1&seed=1", None)[0]
    assert score(row["answer"], row).value == 1.0
    as_list = str([int(piece) for piece in row["answer"].split()])
    assert score(as_list, row).value == 0.1  # read, without eval, and the library's price for another form
    assert score(f"[open('{canary}', 'w')]", row).value == 0.0 and not canary.exists()
    primes = make_rows("reasoning_gym:prime_factorization?size=1&seed=1", None)[0]
    assert (score(primes["answer"], primes).value, score("seven", primes).status) == (1.0, "unparsed")


def test_a_row_that_cannot_be_made_is_an_error_of_the_row() -> None:
    needs_the_library()
    result = score("5", {"reasoning_gym": "reasoning_gym:nothing", "task_row": 0})
    assert (result.value, result.status) == (None, "error") and "no task 'nothing'" in result.detail


def test_answers_in_completions() -> None:
    assert find_answer("<answer>1</answer> no, <answer>\n2 </answer>") == "2"
    assert find_answer("so \\boxed{3}") == "3" and find_answer(" 4\n") == "4"


def test_plain_values_and_formulas_by_hand() -> None:
    assert plain_value("[[1, 2], ['a', -3]]") == [[1, 2], ["a", -3]]
    assert plain_value("(0x10 + 2) * 3") == 54
    assert str(formula("2*x**2 + sin(x)/4")) == "2*x**2 + sin(x)/4"
    assert formula("(3 + 4) * 5") == 35
    for hostile in (
        "__import__('os')", "x.__class__", "[1 for i in y]", "lambda: 1", "9**9**9", "1 << 99999", "'a' * 99999", "f()",
        "open('x')", "(" * 400, "1;2", "x := 3", "",
    ):  # fmt: skip
        for read in (plain_value, formula):
            with pytest.raises((ValueError, TypeError)):
                read(hostile)
