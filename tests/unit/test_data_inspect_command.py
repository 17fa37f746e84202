"""`rlft data inspect` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer
from tests.unit.inspecting import USER


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


def test_steps_and_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the configuration of a run says of its data, whatever it learns from."""
    from rlft.cli import main

    config, steps, mood = tmp_path / "x.yaml", tmp_path / "steps.jsonl", tmp_path / "mood.jsonl"
    steps.write_text(json.dumps({"prompt": "1", "completions": ["2", "3"], "labels": [True, False]}) + "\n")
    config.write_text("model: {tiny: {}}\nalgorithm: {type: process_reward}\n")
    assert main(["data", "inspect", str(steps), "--model", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "for a process reward model" in printed and "(what is in ⟦ ⟧ has a label)" in printed
    mood.write_text("".join(json.dumps({"text": t, "label": t}) + "\n" for t in ("good", "bad")))
    tasks = f"tasks: [{{name: mood, kind: sequence_classification, path: {mood}}}]\n"
    config.write_text(f"model: {{tiny: {{}}}}\nalgorithm: {{type: tasks}}\n{tasks}")
    assert main(["data", "inspect", "--model", str(config)]) == 0
    assert "text, label; 2 rows; labels: bad, good" in capsys.readouterr().out
    assert main(["data", "inspect", str(mood), "--model", str(config)]) == 2
    assert "each task reads rows of its own (tasks.N.path). Leave FILE out" in capsys.readouterr().err
    mood.write_text(json.dumps({"text": "", "label": "good"}) + "\n")
    assert main(["data", "inspect", "--model", str(config)]) == 2
    assert "task mood: mood.jsonl:1: column 'text' is empty" in capsys.readouterr().err
