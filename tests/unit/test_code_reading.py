"""The reward `code` before anything runs: the program in a completion, the tests in a row, the args, the results."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rewards.builtin import BUILTIN
from rewards.code.extract import fenced_blocks, find_program
from rewards.code.reward import Options, code_reward, make_job, make_options, result_of
from rewards.code.shapes import task_of
from rewards.load import resolve
from rlft.config.roles import RewardFunction
from rlft.errors import UserError
from rlft.samples import RewardResult

ONE, TWO = "def f(x):\n    return 1\n", "def g(x):\n    return 2\n"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (f"So:\n```python\n{ONE}```\nDone.", ONE),
        (f"```py\n{ONE}```\nand to try it\n```python\nprint(g(1))\n```", ONE),
        (f"```python\n{TWO}```\nbetter:\n```\n{ONE}```", ONE),
        (f"```python\n{ONE}```\n```bash\npip install f\n```", ONE),
        (f"~~~~python\n{ONE}~~~\n~~~~", ONE + "~~~\n"),
        (f"```python\n{ONE}", ONE),
        (f"<think>```python\n{TWO}```</think>\n```python\n{ONE}```", ONE),
        ("```python\nx = '''\n  ```inner\n'''\n", "x = '''\n  ```inner\n'''\n"),
        ("```bash\nls\n```", None),
        ("   \n", None),
        ("", None),
    ],
)
def test_the_program_in_a_completion(text: str, program: str | None) -> None:
    found = find_program(text, entry="f")
    assert (found and found[0]) == program


def test_the_class_of_a_method_before_an_example_of_its_use() -> None:
    method, use = "class Solution:\n    def f(self, x):\n        return x\n", "print(Solution().f(1))\n"
    text = f"```python\n{method}```\nFor example:\n```python\n{use}```"
    assert find_program(text, entry="f") == find_program(text, entry="Solution().f") == (method, True)
    assert find_program(text) == (use, True)


def test_text_without_a_fence_is_the_program() -> None:
    assert find_program("    return 1\n") == ("    return 1\n", False)
    assert find_program(f"\ufeff{ONE}") == (ONE, False)
    assert find_program(f"```python\n\ufeff{ONE}```") == (ONE, True)
    assert list(fenced_blocks("a `b` c\n``` x\n")) == [("x", "")]


HUMAN_EVAL = {
    "prompt": "import math\n\ndef half(x):\n    return x / 2\n\n\ndef f(x):\n    '''Doc.'''\n",
    "test": "def check(candidate):\n    assert candidate(2) == half(4)\n",
    "entry_point": "f",
}


def test_human_eval_goes_on_from_its_prompt_or_defines_the_function() -> None:
    body = make_job("    return x\n", HUMAN_EVAL, Options())
    whole = make_job("```python\ndef f(x):\n    return x\n```", HUMAN_EVAL, Options())
    assert isinstance(body, dict) and isinstance(whole, dict)
    assert body["program"] == HUMAN_EVAL["prompt"] + "    return x\n"
    assert whole["program"] == "import math\n\ndef half(x):\n    return x / 2\n\n\n\ndef f(x):\n    return x\n"
    assert body["setup"].startswith(HUMAN_EVAL["prompt"]), "half() of the tests is the data's, not the completion's"
    assert body["entry"] == "f" and body["tests"] == [HUMAN_EVAL["test"]]


def test_mbpp() -> None:
    row = {"test_list": ["assert sum(1, 2) == 3"], "test_imports": ["import math"], "code": "def sum(a, b):\n  ..."}
    task = task_of(row, None, None, None, "auto")
    assert task.tests == ("assert sum(1, 2) == 3",) and task.setup == "import math\n" and task.names == ("sum",)


PAIRS = [{"input": "1", "output": "2"}]


@pytest.mark.parametrize(
    "row",
    [
        {"tests": [{"stdin": "1", "stdout": "2"}]},
        {"test_cases": PAIRS},
        {"tests": json.dumps(PAIRS)},
        {"input_output": json.dumps({"inputs": ["1"], "outputs": ["2"]})},
        {"ground_truth": json.dumps({"inputs": [["1"]], "outputs": [["2"]]})},
        {"reward_model": {"style": "rule", "ground_truth": json.dumps({"inputs": ["1"], "outputs": ["2"]})}},
        {"private_tests": {"input": ["1"], "output": ["2"]}},
        {"inputs": ["1"], "outputs": ["2"]},
    ],
)
def test_shapes_of_input_and_output(row: dict[str, Any]) -> None:
    assert task_of(row, None, None, None, "auto").cases == ({"stdin": "1", "stdout": "2"},)


def test_calls_in_inputs_and_outputs() -> None:
    row = {"input_output": {"fn_name": "f", "inputs": [[1, [2]], "3\n[4]"], "outputs": [[5], "6"]}}
    task = task_of(row, None, None, None, "auto")
    assert task.tests == ("assert _same(f(*[1, [2]]), [5])", "assert _same(f(*[3, [4]]), 6)")
    job = make_job("class Solution:\n    def f(self, a, b):\n        return 5\n", row, Options())
    assert isinstance(job, dict) and job["entry"] == "Solution().f"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"question": "?"}, "no tests: looked in test_list, test, "),
        ({"tests": []}, "no tests"),
        ({"tests": [1]}, "tests of a shape that is not known"),
        ({"inputs": ["1"], "outputs": []}, "tests of a shape that is not known"),
        ({"tests": [{"stdin": "1"}]}, "a test without an input or an output"),
    ],
)
def test_a_row_without_tests_has_no_value(row: dict[str, Any], why: str) -> None:
    result = make_job("print(1)", row, Options())
    assert isinstance(result, RewardResult) and (result.value, result.status) == (None, "error")
    assert why in result.detail


def test_nothing_to_run_is_unparsed() -> None:
    for text in ("", "The answer is 42", "```bash\nls\n```"):
        result = make_job(text, HUMAN_EVAL | {"prompt": ""}, Options())
        assert isinstance(result, RewardResult) and (result.value, result.status) == (0.0, "unparsed")


class Noted:
    """An executor that notes its jobs and answers what it was told to."""

    def __init__(self, *outcomes: dict[str, Any]) -> None:
        self.outcomes, self.jobs = list(outcomes), []

    def run(self, jobs: Any) -> list[dict[str, Any]]:
        self.jobs += jobs
        return self.outcomes

    def facts(self) -> dict[str, Any]:
        return {}


def test_each_completion_has_its_own_result() -> None:
    half = {"status": "wrong", "passed": 1, "total": 2, "detail": "a\x1b[2J\nb", "seconds": 0.5}
    runner = Noted(half, half | {"status": "timeout", "passed": 0})
    completions = ["```python\nx = 1\n```", "no program at all!", [{"role": "assistant", "content": "y = 2"}]]
    columns = {"tests": ["assert f(1) == 1"] * 3, "entry": ["f"] * 3, "prompts": [""] * 3}
    results = code_reward(completions, Options(partial=True), runner, **columns)
    assert [(one.value, one.status) for one in results] == [(0.5, "wrong"), (0.0, "unparsed"), (0.0, "timeout")]
    assert results[0].detail == "a [2J b", "a program's words stay on one line and move no cursor"
    assert [job["program"] for job in runner.jobs] == ["x = 1\n", "y = 2"]
    assert [job["entry"] for job in runner.jobs] == ["f", "f"]


def test_failures_of_the_sandbox_have_no_value() -> None:
    for status in ("error", "refused"):
        outcome = {"status": status, "passed": 0, "total": 1, "detail": "x", "seconds": 0.0}
        assert result_of(outcome, False) == RewardResult(None, status, "x", 0.0)  # type: ignore[arg-type]
    assert result_of({"status": "perfect", "passed": 1, "total": 1, "detail": ""}, False).value is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"executor": "http://u:p@host:1"}, "has a name or password in it"),
        ({"executor": "http://host:1", "tier": "landlock"}, "tier has no effect with an executor"),
        ({"timeout": 3}, "sets 'timeout', which it does not take. Did you mean 'timeout_s'"),
        ({"timeout_s": 0}, "timeout_s is 0; expected a number from 0.1 to 300"),
        ({"memory_mb": 100.5}, "memory_mb is 100.5"),
        ({"partial": "yes"}, "partial is 'yes'; expected true or false"),
        ({"mode": "pytest"}, "mode is 'pytest'; expected auto, call, stdio"),
        ({"tier": "docker"}, "tier is 'docker'; expected auto, namespaces, landlock"),
        ({"language": "cobol"}, "language is 'cobol'; expected python, c, "),
        ({"language": "cpp", "mode": "call"}, "mode call needs Python"),
        ({"executor": "host:80"}, "executor is 'host:80'; expected http://host:port"),
        ({"modules": "numpy"}, "modules is 'numpy'; expected a list of names"),
        ({"tests_column": 3}, "tests_column is 3; expected a text"),
    ],
)
def test_wrong_args_are_refused_before_a_run(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="'code'") as error:
        resolve(RewardFunction.model_validate({"function": "code", "args": args}))
    assert message in str(error.value)


def test_columns_with_names_of_args_are_columns() -> None:
    runner = Noted({"status": "ok", "passed": 1, "total": 1, "detail": "", "seconds": 0.1})
    code_reward(["x = 1"], runner=runner, language=["en"], mode=["hard"], tests=["assert f() == 1"], timeout_s=7)
    assert runner.jobs[0]["timeout_s"] == 7.0 and runner.jobs[0]["mode"] == "call"
    assert make_options(modules=["numpy"]).modules == ("numpy",)
    assert BUILTIN["code"].function is code_reward
