"""What is said of data before a run."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlft.config.data import DataConfig
from rlft.data.examples import load_examples
from rlft.data.inspect import Inspection, inspect_rows, lengths_of
from rlft.data.inspect_rows import ModelLimits, Problem, Segment
from rlft.data.inspect_text import print_inspection
from rlft.data.lenient import BadLine, read_leniently
from rlft.data.pairs import load_labels, load_pairs
from rlft.data.prompts import load_prompts
from rlft.data.reading import rows_in_memory
from rlft.errors import UserError
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}
TEN = "10 tokens, and there is room for"
END = Segment("<|im_end|>", learned=True, special=True)


def inspect(rows: list[dict[str, Any]], tokenizer: Any = None, window: int = 99, **more: Any) -> Inspection:
    keys = {key: more.pop(key) for key in ("purpose", "num_examples") if key in more}
    model = ModelLimits(tokenizer, window, more.pop("max_new_tokens", 0)) if tokenizer else None
    return inspect_rows(rows_in_memory(rows), (), DataConfig.model_validate(more), model=model, **keys)


def texts(inspection: Inspection) -> list[tuple[str, bool]]:
    """The first part of the first example, without what is no token."""
    return [(segment.text, segment.learned) for segment in inspection.examples[0].parts[0].segments]


@pytest.mark.parametrize(
    ("row", "purpose", "layout", "roles"),
    [
        ({"prompt": "a", "answer": "b"}, "sft", "prompt and completion", ["prompt", "completion"]),
        ({"prompt": "a", "level": 3}, "prompts", "prompts", ["prompt", "for reward functions"]),
        ({"messages": [USER, ANSWER]}, "sft", "messages (role, content)", ["prompt and completion"]),
        ({"messages": [USER]}, "prompts", "messages (role, content)", ["prompt"]),
        ({"conversations": [HUMAN, GPT]}, "sft", "ShareGPT conversations (from, value)", ["prompt and completion"]),
        (
            {"instruction": "a", "input": "b", "output": "c", "id": 1},
            "sft", "Alpaca (instruction, input, output)",
            ["prompt", "put under the prompt", "completion", "not used"],
        ),
        ({"text": "a"}, "sft", "documents (continued pretraining)", ["document"]),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"}, "pairs", "pairs (chosen and rejected)",
            ["prompt", "learned", "learned to avoid"],
        ),
        (
            {"prompt": "a", "completion": "b", "label": True}, "labels", "labelled completions (good or bad)",
            ["prompt", "completion", "whether the completion is good"],
        ),
    ],
)  # fmt: skip
def test_shapes(row: dict[str, Any], purpose: str, layout: str, roles: list[str]) -> None:
    found = inspect([row])
    assert (found.purpose, found.layout, found.guessed, found.usable) == (purpose, layout, True, True)
    assert [column.role for column in found.columns] == roles
    assert found.unit == "characters" and "give --model" in found.missing[0]


def test_columns() -> None:
    found = inspect([{"prompt": "a", "n": 1}, {"prompt": "b", "n": None, "t": [USER]}, {"prompt": "c"}, {"prompt": ""}])
    assert [(name, dict(types), share) for name, types, share, _ in found.columns] == [
        ("prompt", {"text": 4}, 0.0), ("n", {"integer": 1}, 0.75), ("t", {"list of mapping": 1}, 0.75),
    ]  # fmt: skip


def test_masks_are_the_loaders(tokenizer: Any) -> None:
    assert texts(inspect([{"prompt": "1+1=", "answer": "2"}], tokenizer)) == [
        ("1+1=", False), ("2", True), ("<|im_end|>", True),
    ]  # fmt: skip
    found = inspect([{"messages": [USER, ANSWER, USER, ANSWER]}], tokenizer, train_on="last")
    assert [text for text, learned in texts(found) if learned] == ["yo", "<|im_end|>"]
    assert found.examples[0].parts[0].segments[-1] == END
    prompts = inspect([{"prompt": "a", "answer": "b"}], tokenizer, purpose="prompts")
    assert texts(prompts) == [("a", False)] and list(prompts.lengths) == ["prompt"]
    document = inspect([{"text": "ab"}], tokenizer)
    assert texts(document) == [("a", False), ("b", True), ("<|im_end|>", True)]
    assert document.lengths["document"].most == 3


def test_without_a_tokenizer_texts_are_shown() -> None:
    found = inspect([{"messages": [USER, ANSWER]}])
    assert texts(found) == [("user: ", False), ("hi", False), ("\n", False), ("assistant: ", False), ("yo", True)]
    assert found.lengths["completion"].most == 2


def test_lengths() -> None:
    # 1 to 20: the median lies between 10 and 11, 19 of 20 are at most 19; 8 bins of ceil(20 / 8) = 3, the last of 2
    found = lengths_of(range(1, 21))
    assert (found.least, found.median, found.p95, found.most) == (1, 10.5, 19, 20)
    assert found.bins == ((1, 3, 3), (4, 6, 3), (7, 9, 3), (10, 12, 3), (13, 15, 3), (16, 18, 3), (19, 20, 2))
    assert lengths_of([4, 4]).bins == ((4, 4, 2),)


def test_prompt_and_completion_apart(tokenizer: Any) -> None:
    # a|b and end, abc|de and end: prompts of 1 and 3 tokens, completions of 2 and 3
    found = inspect([{"prompt": "a", "answer": "b"}, {"prompt": "abc", "answer": "de"}], tokenizer)
    assert [(name, x.least, x.median, x.most) for name, x in found.lengths.items()] == [
        ("prompt", 1, 2.0, 3), ("completion", 2, 2.5, 3),
    ]  # fmt: skip


def test_repeated() -> None:
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "1"}, {"prompt": "a", "answer": "2"}]
    found = inspect([*rows, {"answer": "1", "prompt": "b"}])
    assert found.same_rows == (1, (("dataset:4", "dataset:2"),))
    assert found.same_prompts == (2, (("dataset:3", "dataset:1"), ("dataset:4", "dataset:2")))


def test_all_problems_are_found(tokenizer: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "ab", "answer": "c"}, {"prompt": "", "answer": "c"}, {"prompt": "a", "answer": ""},
        {"prompt": "a", "answer": None}, {"prompt": 3, "answer": "c"}, {"prompt": "a" * 6, "answer": "bbb"},
    ]  # fmt: skip
    expected = [
        ("empty prompt", "dataset:2"), ("empty completion", "dataset:3"), ("missing value", "dataset:4"),
        ("wrong type", "dataset:5"),
    ]  # fmt: skip
    blind = inspect(rows)
    assert [(p.reason, p.place) for p in blind.problems] == expected and blind.num_usable == 2
    found = inspect(rows, tokenizer, window=9)
    assert [(p.reason, p.place) for p in found.problems] == [*expected, ("too long", "dataset:6")]
    assert found.problems[-1].text == "10 tokens, and there is room for 9 (the window)"
    assert (found.num_rows, found.num_usable, found.usable) == (6, 1, False)
    assert found.problems[3].text == "column 'prompt' is a int. Expected text, as in the other rows."
    assert "in column 'answer' is empty" in found.problems[1].text and "Mend or delete" in found.problems[1].text


@pytest.mark.parametrize(
    ("too_long", "window", "problem", "usable"),
    [
        ("drop", 9, Problem("too long", "dataset:2", f"{TEN} 9 (the window)", "dropped"), True),
        ("truncate", 9, Problem("too long", "dataset:2", f"{TEN} 9 (the window)", "cut"), True),
        (
            "truncate", 6,
            Problem("prompt too long", "dataset:2", f"the prompt alone has 6 tokens; {TEN} 6 (the window)"), False,
        ),
    ],
)  # fmt: skip
def test_too_long(tokenizer: Any, too_long: str, window: int, problem: Problem, usable: bool) -> None:
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "a" * 6, "answer": "bbb"}]
    found = inspect(rows, tokenizer, window=window, too_long=too_long)
    assert found.problems == (problem,) and found.usable is usable


def test_prompts_need_room_for_new_tokens(tokenizer: Any) -> None:
    found = inspect([{"prompt": "a" * 6}], tokenizer, window=9, max_new_tokens=4, purpose="prompts", too_long="drop")
    assert found.problems[0].text == "6 tokens, and there is room for 5 (window 9 - max_new_tokens 4)"
    assert found.problems[0].effect == "dropped"
    assert found.problems[1] == (
        "nothing left",
        "dataset",
        "all rows would be dropped, so none would be left",
        "refused",
    )


@pytest.mark.parametrize(
    ("rows", "config", "words"),
    [
        ([{"a": "b"}], {}, "no column looks like a prompt"),
        ([{"prompt": "a"}], {"purpose": "sft"}, "no column looks like a completion"),
        ([{"prompt": "a", "b": "c"}], {"purpose": "sft", "completion_column": "d"}, "data.completion_column"),
        ([{"messages": [USER, ANSWER]}], {"apply_chat_template": False}, "apply_chat_template is false"),
        ([{"text": "a"}], {"train_on": "last"}, "data.train_on has no effect"),
    ],
)
def test_what_refuses_all_rows(rows: list[dict[str, Any]], config: dict[str, Any], words: str) -> None:
    found = inspect(rows, **config)
    assert not found.usable and found.problems[0].reason == "not understood" and words in found.problems[0].text
    assert found.columns and not found.examples


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen == rejected"),
        ({"prompt": "a", "chosen": "b"}, "not a pair"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "empty completion"),
        ({"prompt": "a", "chosen": "b", "rejected": [ANSWER]}, "not a pair"),
        ({"chosen": "b", "rejected": "c"}, "missing value"),
    ],
)
def test_bad_pairs(row: dict[str, Any], reason: str) -> None:
    found = inspect([{"prompt": "1+1=", "chosen": "2", "rejected": "3"}, row])
    assert [(problem.reason, problem.place) for problem in found.problems] == [(reason, "dataset:2")], found.problems
    assert found.num_usable == 1 and texts(found) == [("1+1=", False), ("2", True)]


def test_pairs_that_may_be_dropped() -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    found = inspect(rows, unusable="drop")
    assert found.usable and [problem.effect for problem in found.problems] == ["dropped"]
    other = inspect([{"ask": "a", "good": "b", "bad": "c"}], prompt_column="ask", chosen_column="good",
                    rejected_column="bad")  # fmt: skip
    assert [column.role for column in other.columns] == ["prompt", "learned", "learned to avoid"]


def test_pairs_have_two_masks(tokenizer: Any) -> None:
    no = {"role": "assistant", "content": "no"}
    for row in (
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [no]},
        {"chosen": [USER, ANSWER], "rejected": [USER, no]},
    ):
        found = inspect([row], tokenizer)
        assert [next(s.text for s in p.segments if s.learned) for p in found.examples[0].parts] == ["yo", "no"]
    found = inspect([{"prompt": "1+1=", "chosen": "2", "rejected": "33"}], tokenizer)
    assert [part.label for part in found.examples[0].parts] == ["chosen", "rejected"]
    assert found.examples[0].parts[1].segments == (Segment("1+1=", False), Segment("33", True), END)
    assert {name: x.most for name, x in found.lengths.items()} == {"prompt": 4, "rejected": 3, "chosen": 2}
    bad = inspect([{"prompt": "a", "completion": "b", "label": False}, {"prompt": "a", "completion": "b", "label": 2}])
    assert bad.examples[0].parts[0].label == "bad" and bad.problems[0].reason == "wrong label"
    assert bad.problems[0].text.startswith("column 'label' is 2. Expected")


def test_bad_lines_do_not_stop_reading(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"prompt": "a"}\n\nno\n[1]\n{"prompt": "\xff"}\n{"prompt": "b"}\n'
    for name, data in (("a.jsonl", content), ("b.jsonl.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        read, bad = read_leniently(str(tmp_path / name))
        assert read.places == [f"{name}:1", f"{name}:6"] and [line.place for line in bad] == [
            f"{name}:3", f"{name}:4", f"{name}:5",
        ]  # fmt: skip
        assert bad[0].text.startswith("is not valid JSON: Expecting value at column 1. Found: no. Expected one JSON")
        assert "is a list" in bad[1].text and "is not UTF-8" in bad[2].text
    assert not inspect_rows(*read_leniently(str(tmp_path / "a.jsonl"))).usable
    (tmp_path / "c.json").write_text('[{"prompt": "a"}, 7]')
    read, bad = read_leniently(str(tmp_path / "c.json"))
    assert bad == [BadLine("c.json:2", "is '7'. Expected a JSON object with named columns.")]
    (tmp_path / "d.json").write_text('[{"prompt"}]')
    (tmp_path / "e.jsonl.gz").write_text("no gzip")
    for name, words in (("d.json", "not valid JSON"), ("e.jsonl.gz", "cannot be read"), ("f.jsonl", "does not exist")):
        with pytest.raises(UserError, match=words):
            read_leniently(str(tmp_path / name))


def test_nothing_but_bad_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("no\n")
    found = inspect_rows(*read_leniently(str(tmp_path / "a.jsonl")))
    assert [problem.reason for problem in found.problems] == ["not a row", "not understood"]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_what_is_printed(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "1+1=", "answer": "2"}, *({"prompt": str(i), "answer": ""} for i in range(5))]
    found = inspect(rows, tokenizer)
    stream = io.StringIO()
    print_inspection(found, stream)
    printed = stream.getvalue()
    for line in (
        "dataset: 6 rows", "  prompt  text  0.0%  prompt", "  | 1+1=[[2<|im_end|>]]",
        "Prompt, tokens: min 4, median 4, p95 4, max 4", f"  4  1  {'#' * 40}",
        "5 rows, empty completion, would stop a run:", "  ... and 2 more",
        "Not usable as it is: 5 problems would stop a run.",
    ):  # fmt: skip
        assert line in printed.splitlines(), (line, printed)
    assert "\x1b" not in printed
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    print_inspection(found, terminal)
    assert "\x1b[32m2\x1b[0m\x1b[1;32m<|im_end|>\x1b[0m" in terminal.getvalue(), terminal.getvalue()
    assert "[[" not in terminal.getvalue()


def test_data_do_not_steer_the_terminal() -> None:
    stream = io.StringIO()
    print_inspection(inspect([{"prompt": "a\x1b[2Jb\u2028é\tc", "answer": "\x07"}, {"prompt": "\ud800"}]), stream)
    assert "  | a\\x1b[2Jb\\u2028é\\tc[[\\x07]]" in stream.getvalue().splitlines()
    found = inspect([{"prompt": "a\ud800", "answer": "b"}])
    assert found.problems[0].reason == "not text" and "half of a surrogate pair" in found.problems[0].text
    print_inspection(found, stream)


def test_prompts_with_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The prompt of a run with an environment, tools and all."""
    from rlft.cli import main

    file, template, config = tmp_path / "a.jsonl", tmp_path / "t.jinja", tmp_path / "x.yaml"
    file.write_text(json.dumps({"prompt": [USER]}) + "\n")
    template.write_text("{% for t in tools %}<{{ t['function']['name'] }}>{% endfor %}{{ messages[0]['content'] }}")
    config.write_text(
        f"model: {{tiny: {{}}, chat_template: {template}}}\nenvironment: {{function: calculator}}\n"
        f"data: {{path: {file}}}\n"
    )
    assert main(["data", "inspect", "--model", str(config)]) == 0
    assert "  | <calculate>hi" in capsys.readouterr().out.splitlines()


def test_columns_for_reward_functions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rlft.cli import main

    (tmp_path / "mine.py").write_text(
        "def right(completions, truth, **columns):\n    return [1.0] * len(completions)\n"
    )
    config = tmp_path / "x.yaml"
    config.write_text(f"rewards: {{functions: [{{function: '{tmp_path}/mine.py:right'}}]}}\n")
    for row, code in (({"prompt": "a", "truth": "b"}, 0), ({"prompt": "a", "answer": "b"}, 2)):
        (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
        assert main(["data", "inspect", str(tmp_path / "a.jsonl"), "--model", str(config)]) == code
    assert "reward functions, would stop a run:" in (printed := capsys.readouterr().out) and "truth" in printed


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rlft.cli import main

    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"prompt": "1+1=", "answer": "2"}) + "\n")
    assert main(["data", "inspect", str(file)]) == 0
    assert "Usable: 1 of 1 rows." in capsys.readouterr().out
    config = tmp_path / "x.yaml"
    config.write_text(
        f"model: {{tiny: {{max_length: 16}}}}\nalgorithm: {{type: sft}}\ndata: {{path: {file}, train_on: everything}}\n"
    )
    assert main(["data", "inspect", "--model", str(config), "--model.tiny.vocabulary", "digits"]) == 0
    printed = capsys.readouterr().out
    assert "Completion, tokens" in printed and "guessed" not in printed
    file.write_text(file.read_text() + json.dumps({"prompt": "1" * 20, "answer": "2"}) + "\n")
    assert main(["data", "inspect", str(file), "--model", str(config)]) == 2
    assert "a.jsonl:2: 22 tokens, and there is room for 16 (the window)" in capsys.readouterr().out
    assert main(["data", "inspect", str(file), "--model", str(config), "--data.too_long=drop"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "inspect"], "no data file: give one"),
        (["data", "inspect", "nothing.jsonl"], '"nothing.jsonl" does not exist'),
        (["data", "inspect", "x", "--rows", "-1"], "--rows: found -1, expected at least 0"),
        (["data", "inspect", "x", "--data.train_onn", "last"], "did you mean data.train_on?"),
        (["data", "inspect", "x", "--modl", "y"], "did you mean --model?"),
        (["data", "inspect", __file__], "has a format that is not known by its name"),
    ],
)
def test_bad_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rlft.cli import main

    assert main(words) == 2
    assert message in capsys.readouterr().err


VALUES = st.sampled_from(
    [None, "", " ", "ab", "a" * 9, 3, [], [USER], [ANSWER], [USER, ANSWER], [HUMAN, GPT], "\ud800"]
)


@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["prompt", "answer", "messages", "text"]), VALUES), min_size=1, max_size=3
    ),
    sft=st.booleans(),
    train_on=st.sampled_from(["assistant", "last", "everything"]),
    too_long=st.sampled_from(["error", "drop", "truncate"]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_refuses_what_a_run_refuses(
    tokenizer: Any, rows: list[dict[str, Any]], sft: bool, train_on: Any, too_long: Any
) -> None:
    data = DataConfig(train_on=train_on, too_long=too_long if sft or too_long != "truncate" else "drop")
    model = ModelLimits(tokenizer, 12 if sft else 20, 0 if sft else 8)
    read = rows_in_memory(rows)
    found = inspect_rows(read, (), data, purpose="sft" if sft else "prompts", model=model)
    try:
        if sft:
            load_examples(data, tokenizer, window=12, seed=0, rows=rows)
        else:
            load_prompts(data, tokenizer, window=20, max_new_tokens=8, seed=0, rows=rows)
    except UserError as error:
        assert not found.usable, error
    else:
        assert found.usable, found.problems


ANSWERS = st.sampled_from([None, "", "ab", "a c", "a" * 9, 3, [USER, ANSWER], [ANSWER], [USER]])


@given(
    rows=st.lists(
        st.fixed_dictionaries({}, optional={
            "prompt": ANSWERS, "chosen": ANSWERS, "rejected": ANSWERS, "completion": ANSWERS,
            "label": st.sampled_from([True, False, 0, 1, 2, None]),
        }),
        min_size=1, max_size=3,
    ),
    purpose=st.sampled_from(["pairs", "labels"]),
    too_long=st.sampled_from(["error", "drop"]),
    unusable=st.sampled_from(["error", "drop"]),
)  # fmt: skip
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_refuses_the_pairs_that_a_run_refuses(
    tokenizer: Any, rows: list[dict[str, Any]], purpose: Any, too_long: Any, unusable: Any
) -> None:
    data = DataConfig(too_long=too_long, unusable=unusable)
    found = inspect_rows(rows_in_memory(rows), (), data, purpose=purpose, model=ModelLimits(tokenizer, 12))
    try:
        if purpose == "pairs":
            load_pairs(data, tokenizer, window=12, seed=0, rows=rows)
        else:
            load_labels(data, tokenizer, window=12, seed=0, rows=rows, with_others=False)
    except UserError as error:
        assert not found.usable, error
    else:
        assert found.usable, found.problems
