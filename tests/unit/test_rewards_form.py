"""Rewards for tags, JSON, length and script: examples by hand, and what models write to get around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.format import json_schema, tags
from rewards.shape import group_length, language, length
from rlft.errors import UserError
from tests.unit.rewarding import group, rewards_of, spec

POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        (" <think>\na < b </think>\n\n<answer>b</answer>\n", 1),
        ("<think>a</think>so<answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer> more", 0),
        ("<answer>b</answer><think>a</think>", 0),
        ("<think>a<think>b</think></think><answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
        ("<think> </think><answer>b</answer>", 0),
        ("<think>a</think><answer>b", 0),
        ("<think>a<answer>b</answer></think>", 0),
        ("a</think><answer>b</answer>", 0),
        ("", 0),
    ],
)
def test_tags(text: str, score: float) -> None:
    assert tags([text, [{"role": "assistant", "content": text}]]) == [score, score]


def test_tags_that_the_prompt_has_opened() -> None:
    assert tags(["a</think><answer>b</answer>", "<think>a</think><answer>b</answer>"], opened=True) == [1, 0]
    assert tags(["<final>b</final>"], tags=["final"]) == [1]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"x": 3}', 1),
        (' \n```json\n{"x": 3}\n```\n', 1),
        ("```\n{\"x\": 3}```", 1),
        ('{"x": 3.5}', 0),
        ('{"x": 3, "y": 1}', 0),
        ('{"x": "a", "x": 3}', 0),
        ('{"x": NaN}', 0),
        ('Here it is: {"x": 3}', 0),
        ('{"x": 3} {"x": 3}', 0),
        ("[" * 100_000, 0),
        ('{"x": ' + "9" * 5000 + "}", 0),
        ("", 0),
    ],
)  # fmt: skip
def test_json_schema(text: str, score: float) -> None:
    assert json_schema([text], POINT) == [score]


def test_json_in_a_tag_and_a_schema_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "point.json").write_text(json.dumps(POINT))
    texts = ['<answer>{"x": 1}</answer>', '{"x": 1}', '<answer>{"x": 1}', '<answer>{"x": 1}</answer><answer></answer>']
    assert json_schema(texts, str(tmp_path / "point.json"), tag="answer") == [1, 0, 0, 0]


def test_a_reference_is_never_fetched() -> None:
    with pytest.raises(UserError, match=r"a \$ref that leads nowhere"):
        json_schema(['{"x": 1}'], {"properties": {"x": {"$ref": "http://127.0.0.1:9/x.json"}}})


def test_length_by_hand() -> None:
    """Target 4, tolerance 1: 3 to 5 are right, 1 short of that costs a quarter."""
    ids = [[7] * n for n in (4, 3, 5, 2, 7, 9, 20, 0)]
    assert length(["" for _ in ids], ids, 4, tolerance=1) == [1, 1, 1, 0.75, 0.5, 0, 0, 0.25]
    assert length(["two words", "x"], [[], []], [2, 2], unit="words") == [1, 0.5]
    assert length(["four"], [[]], 4, unit="characters") == [1]


@pytest.mark.parametrize(
    ("text", "scripts", "share"),
    [
        ("hello", ["latin"], 1),
        ("héllo ÀÉ ﬁ", ["latin"], 1),
        ("ab中文", ["latin"], 0.5),
        ("中文 with $x+y$ and `code` \\(z\\) \\frac", ["han"], 2 / 9),
        ("ひらカタ漢", ["han", "hiragana", "katakana"], 1),
        ("<think>да</think>", ["cyrillic"], 1),
        ("한국어 ok", ["hangul"], 0.6),
        ("12 + 3 = 15 !", ["latin"], 1),
        ("", ["han"], 1),
    ],
)
def test_language(text: str, scripts: list[str], share: float) -> None:
    assert language([text], scripts) == [pytest.approx(share)]


def test_group_length_by_hand() -> None:
    """Lengths 10, 20, 30: shares 0.5, 0, -0.5. A wrong short answer gains nothing, a wrong long one loses."""
    ids = [[0] * n for n in (10, 20, 30, 10, 30)]
    said = {"math": [1.0, 1.0, 1.0, 0.0, None]}
    assert group_length(ids, said, "math") == [0.5, 0, -0.5, 0, -0.5]
    assert group_length([[0], [1]], {"math": [1.0, 0.0]}, "math") == [0, 0]


def test_group_length_behind_another_function() -> None:
    def right(completions: Any, right: Any) -> list[float]:
        return right[0]

    made = group(3, right=[1, 0, 1])
    samples = rewards_of(right).score_group(made).samples
    assert [s.reward for s in samples] == [1, 0, 1]
    with pytest.raises(UserError, match=r"right 'mth', and no function of that name .* is math\. Name one"):
        rewards_of(spec("math"), spec("group_length", args={"right": "mth"}))
    with pytest.raises(UserError, match="there is none"):
        rewards_of(spec("group_length", args={"right": "math"}), spec("math"))
    samples = rewards_of(spec("finished"), spec("group_length", args={"right": "finished"})).score_group(made).samples
    assert [s.reward_parts["group_length"].value for s in samples] == [0, 0, 0], "all have 2 tokens"


def test_columns_are_looked_for_before_a_run() -> None:
    for function, args, words in (
        ("math", {}, "no column with the right answer. Columns there: question; tried answer, solution"),
        ("math", {"column": "gold"}, "no column 'gold'"),
        ("math", {"column": "question", "choices": "options"}, "no column 'options'"),
        ("code", {}, "no column with tests; looked for test_list, test"),
        ("code", {"tests_column": "checks"}, "tests_column is 'checks', and the data has no such column"),
    ):
        with pytest.raises(UserError, match=words):
            rewards_of(spec(function, args=args)).check_columns(["question"])


@pytest.mark.parametrize(
    ("function", "args", "words"),
    [
        ("tags", {"tags": []}, r"has tags \[\]; expected a list"),
        ("tags", {"tags": ["a", "a"]}, "different names"),
        ("tags", {"tags": ["<a>"]}, "without <>"),
        ("tags", {"opened": "yes"}, "expected true or false"),
        ("json_schema", {}, "needs args.schema"),
        ("json_schema", {"schema": {"type": "objct"}}, "is no JSON schema: at type: 'objct'"),
        ("json_schema", {"schema": "missing.json"}, "the file missing.json cannot be read"),
        ("length", {"target": 0}, "has target 0; expected a number above 0"),
        ("length", {"target": 5, "unit": "pages"}, "has unit 'pages'; expected tokens, words, characters"),
        ("length", {"target": 5, "tolerance": -1}, "expected 0 or more"),
        ("language", {"scripts": ["english"]}, "expected a list of latin, han"),
        ("language", {}, "has scripts None"),
        ("length", {"target": 5, "tolerence": 2}, "sets 'tolerence', which it does not take. Did you mean 'tolerance'"),
        ("finished", {"pattern": "x"}, "sets 'pattern', which it does not take. It takes none"),
        ("reasoning_gym", {"deadline": 1}, "Did you mean 'deadline_s'"),
        ("overlong", {"max_length": "9", "buffer": 5}, "max_length is '9'"),
        ("overlong", {"max_length": 9, "buffer": 10}, "buffer is 10; expected above 0 and at most max_length, 9"),
        ("repetition", {"size": 0}, "size is 0"),
        ("format_regex", {"pattern": "("}, r"pattern '\(' is not a regular expression"),
        ("group_length", {}, "needs args.right"),
        ("group_length", {"right": "math", "right_value": "x"}, "expected a number"),
    ],
)
def test_args_that_mean_nothing(function: str, args: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rewards_of(spec("math"), spec(function, args=args))
