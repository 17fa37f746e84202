"""Golden sets: what a file may say, what holds of a completion, what got better or worse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlft.config.data import DataConfig
from rlft.errors import UserError
from rlft.evaluation import golden_report
from rlft.evaluation.golden import GoldenSet, Outcome, change, golden_prompts, judge, load_golden
from rlft.samples import Group
from tests.helpers import make_prompt, make_sample
from tests.unit.byte_model import folder, tokenizer

__all__ = ["folder", "tokenizer"]  # fixtures

GOOD = """\
threshold: 0.75
groups:
  facts: {must_pass: true}
  form: {threshold: 0.5}
cases:
  - name: capital
    group: facts
    prompt: "The capital of France is"
    contains: [Paris, France]
    not_contains: Lyon
  - prompt: "1+1="
    group: form
    equals: ["2", two]
    max_tokens: 3
  - messages: [{role: user, content: "Say 4"}]
    regex: "^[0-9]$"
    reward: {function: math, min: 1}
    columns: {answer: "4"}
  - prompt: x
    group: facts
    must_pass: false
    regex: [a, b]
"""


def written(folder: Path, text: str, name: str = "golden.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def loaded(tmp_path: Path, text: str = GOOD) -> GoldenSet:
    return load_golden(written(tmp_path, text), max_new_tokens=8)


def said(golden: GoldenSet, *texts: str, **values: Any) -> list[Outcome]:
    """What became of the cases with these completions."""
    groups = []
    for case, text in zip(golden.cases, texts, strict=True):
        prompt = make_prompt([1], case.place, **case.given.columns)
        groups.append(Group(prompt, (replace(make_sample(prompt, [5, 6, 7]), text=text, **values),)))
    return judge(golden, groups)


def test_a_file(tmp_path: Path) -> None:
    golden = loaded(tmp_path)
    assert [case.name for case in golden.cases] == ["capital", "case 2", "case 3", "case 4"]
    assert [case.place for case in golden.cases] == [f"golden.yaml:{line}" for line in (6, 11, 15, 19)]
    assert [case.must_pass for case in golden.cases] == [True, False, False, False], "a case's own word wins"
    assert [[e.text for e in case.expectations] for case in golden.cases] == [
        ['contains "Paris"', 'contains "France"', 'not_contains "Lyon"'],
        ['equals "2" or "two"', "max_tokens 3"],
        ['regex "^[0-9]$"', "reward math at least 1"],
        ['regex "a"', 'regex "b"'],
    ]


def test_json_lines_say_the_same(tmp_path: Path) -> None:
    lines = '{"threshold": 0.5, "groups": {"a": {}}}\n\n{"prompt": "x", "group": "a", "contains": "y"}\n'
    golden = load_golden(written(tmp_path, lines, "golden.jsonl"), 8)
    assert golden.file.threshold == 0.5
    assert [(case.name, case.place) for case in golden.cases] == [("case 1", "golden.jsonl:3")]


def test_what_holds(tmp_path: Path) -> None:
    golden = loaded(tmp_path)
    outcomes = said(golden, "Paris, in France", " two\n", "4", "ab")
    assert all(outcome.passed for outcome in outcomes)
    outcomes = said(golden, "Lyon, in France", "2!", "5", "b")
    assert [outcome.fails for outcome in outcomes] == [
        ('contains "Paris"', "", 'not_contains "Lyon"'),
        ('equals "2" or "two"', ""),
        ("", "reward math at least 1: 0"),
        ('regex "a"', ""),
    ]
    cut = said(golden, "", "2", "", "", finish_reason="length")
    assert cut[1].fails == ("", "max_tokens 3: cut off at 3"), "a completion must end by itself"
    long = load_golden(written(tmp_path, "cases: [{prompt: x, max_tokens: 2}]"), 8)
    assert said(long, "")[0].fails == ("max_tokens 2: has 3",)


def test_a_reward_that_fails_has_not_given_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def mine(completions, **columns):\n    raise ValueError('no')\n")
    monkeypatch.chdir(tmp_path)
    golden = loaded(tmp_path, "cases: [{prompt: x, reward: {function: 'mine.py:mine', min: -1}}]")
    (fails,) = said(golden, "")[0].fails
    assert fails.startswith("reward mine at least -1: error (ValueError: no")


def outcome(*fails: str) -> Outcome:
    return Outcome(fails, "")


@pytest.mark.parametrize(
    ("base", "now", "expected"),
    [
        (("", ""), ("", ""), "same"),
        (("x", "y"), ("x", "y"), "same"),
        (("x", "y"), ("", "y"), "better"),
        (("", "y"), ("x", "y"), "worse"),
        (("", "y"), ("x", ""), "worse"),  # something that held is lost, whatever else holds now
    ],
)
def test_changes(base: tuple[str, ...], now: tuple[str, ...], expected: str) -> None:
    assert change(outcome(*base), outcome(*now)) == expected


def test_the_report_by_hand(tmp_path: Path) -> None:
    golden = loaded(tmp_path)
    base = said(golden, "Paris, France", "2!", "4", "b")
    now = said(golden, "France", "2", "5", "b")
    assert golden_report.table(golden, base, now).splitlines() == [
        "case                 base      now       change",
        "capital (must pass)  pass      fail 2/3  worse   contains \"Paris\"; said 'France'",
        "case 2               fail 1/2  pass      better",
        "case 3               pass      fail 1/2  worse   reward math at least 1: 0; said '5'",
        "case 4               fail 1/2  fail 1/2  same    regex \"a\"; said 'b'",
        "passed               2/4       1/4",
        "  facts              1/2       0/2",
        "  form               0/1       1/1",
    ]
    assert golden_report.reasons(golden, base, now) == [
        "worse than the base: capital, case 3",
        "must pass and does not: capital",
        "all: 1 of 4 cases pass (0.25), threshold 0.75",
    ]


def test_all_fine(tmp_path: Path) -> None:
    golden = loaded(tmp_path)
    base = said(golden, "", "", "", "")
    now = said(golden, "Paris, France", "2", "4", "")  # 3 of 4 is the threshold itself
    assert golden_report.reasons(golden, base, now) == []


def test_a_missed_threshold_of_a_group(tmp_path: Path) -> None:
    golden = loaded(tmp_path)
    now = said(golden, "Paris, France", "3", "4", "ab")
    assert golden_report.reasons(golden, now, now) == ["group form: 0 of 1 cases pass (0), threshold 0.5"]


def test_prompts_are_rendered_as_the_runs_own_are(tmp_path: Path, tokenizer: Any) -> None:
    golden = loaded(tmp_path)
    prompts = golden_prompts(golden, DataConfig(prompt_column="q"), tokenizer, window=100, max_new_tokens=8)
    chat = "<|im_start|>user\nSay 4<|im_end|>\n<|im_start|>assistant\n"
    assert [prompt.text for prompt in prompts] == ["The capital of France is", "1+1=", chat, "x"]
    assert prompts[2].id == "golden.yaml:15 (case 3)"
    assert prompts[2].columns["answer"] == "4"
    asked = golden_prompts(golden, DataConfig(system_prompt="S"), tokenizer, window=100, max_new_tokens=8)
    assert asked[1].text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_that_does_not_fit_is_named(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"too long: golden.yaml:6 \(capital\) \(24 tokens\)"):
        golden_prompts(loaded(tmp_path), DataConfig(), tokenizer, window=30, max_new_tokens=8)


BAD = """\
treshold: 0.5
groups:
  shape: {must_pass: yes}
cases:
  - prompt: "1"
    contians: 4
  - name: sorted
    prompt: 5
    messages: [{role: user}]
    reward: math
    max_tokens: 0
  - hello
"""
CROSSED = """\
groups:
  shape: {must_pass: true, threshold: 0.3}
cases:
  - prompt: "1"
    group: shap
    contains: ""
  - name: case 1
    prompt: "5"
    messages: [{role: user, content: a}]
    regex: "("
    columns: {prompt: 3}
  - prompt: a
  - prompt: b
    equals: []
"""


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            BAD,
            [
                "1: treshold: unknown key; did you mean threshold?",
                '3: groups.shape.must_pass: found "yes" (text), expected true or false',
                "6: cases.0.contians (case 1): unknown key; did you mean contains?",
                "8: cases.1.prompt (sorted): found 5 (a number), expected text or nothing (null); put quotes around it",
                "9: cases.1.messages.0.content (sorted): is required and not there; expected text",
                '10: cases.1.reward (sorted): found "math" (text), expected a mapping with some of function, min, args',
                "11: cases.1.max_tokens (sorted): found 0 (a number), expected an integer or nothing (null), at",
                '12: cases.2 (case 3): found "hello" (text), expected a mapping with some of name, group, prompt',
            ],
        ),
        (
            CROSSED,
            [
                "2: groups.shape.threshold: has no effect beside must_pass, which asks for all; keep one",
                "2: groups.shape: no case is in it; take it out",
                '4: cases.0.name (case 1): "case 1" names 2 cases; give each its own',
                '5: cases.0.group (case 1): "shap" is not among groups; did you mean shape?',
                "6: cases.0.contains (case 1): an empty text is in every completion",
                "7: cases.1 (case 1): expected either prompt (text) or messages (a conversation)",
                '7: cases.1.name (case 1): "case 1" names 2 cases',
                "10: cases.1.regex (case 1): '(' is not a regular expression: missing )",
                "11: cases.1.columns (case 1): has no effect without reward",
                "11: cases.1.columns.prompt (case 1): is a key of the case itself",
                "12: cases.2 (case 3): expects nothing of the completion; give at least one of equals, contains",
                "14: cases.3.equals (case 4): is an empty list; expected a text, or a list of texts",
            ],
        ),
    ],
)
def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path, text: str, lines: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_golden(path, 8)
    head, *told = str(error.value).splitlines()
    assert head == f"{len(lines)} problems in {path}:"
    for line, expected in zip(told, lines, strict=True):
        assert line.startswith(f"  {path}:{expected}"), line


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yaml", "cases: []", "cases: is empty; expected at least one"),
        ("a.yaml", "threshold: 0.5", "cases: is required and not there"),
        ("a.yaml", "- 1", "expected the key cases (and threshold, groups)"),
        ("a.yaml", "cases: {a: 1}", "cases: found {'a': 1} (a mapping), expected a list of sections"),
        ("a.yaml", "cases: [\n", "this is not YAML"),
        ("a.yaml", "cases: []\ncases: []", ":2: cases: is there twice, first in line 1"),
        ("a.txt", "cases: []", "expected a golden set as .yaml or .jsonl"),
        ("a.jsonl", '{"prompt": "x", "contains": "y"}\n{"prompt": ', ":2: this is not a JSON object on one line"),
        ("a.jsonl", "[1]", ":1: found [1] (a list), expected a JSON object"),
        ("a.jsonl", '{"prompt": "x", "prompt": "y"}', ":1: this is not a JSON object on one line: the key prompt is"),
        ("a.jsonl", '{"threshold": 1}\n{"threshold": 1}', ":2: threshold: is there twice; keep one"),
        ("a.yaml", "cases: [{prompt: x, max_tokens: 9}]", "max_tokens 9 is more than generator.max_new_tokens 8"),
        (
            "a.yaml",
            "cases: [{prompt: x, reward: {function: maths, min: 1}}]",
            "a.yaml:1: case 1: rewards: unknown reward 'maths': did you mean 'math'?",
        ),
        (
            "a.yaml",
            "cases: [{name: n, prompt: x, reward: {function: exact_match, min: 1}, columns: {anwser: a}}]",
            "a.yaml:1: n: reward 'exact_match' needs the parameter 'answer', and the data has no such column. Did you",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, text: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        load_golden(written(tmp_path, text, name), 8)
    assert expected in str(error.value)


def test_a_missing_file_is_told_with_near_ones(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"--golden: .*goldn.yaml does not exist. Near it: .*golden.yaml"):
        load_golden(str(tmp_path / "goldn.yaml"), 8)
