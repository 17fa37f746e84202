"""The YAML files of rlft synth, and its command line: strict, with file, line and a suggestion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlft import cli
from rlft.errors import UserError
from rlft.synthesis.config import COMMANDS, NOT_CONTENT, DistillJob, PreferJob, ReviseJob, content_settings, load_job
from rlft.synthesis.constitution import load_constitution
from rlft.synthesis.rows import load_source, made_row

ROOT = Path(__file__).resolve().parents[2]
SYNTH = ROOT / "configs" / "synthesis"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    Path("x.jsonl").write_text('{"prompt": "Why?", "answer": "4"}\n')
    Path("c.yaml").write_text("principles:\n- {name: p, critique: c, revision: r, prefer: q}\n")


def job(command: str = "revise", **changes: Any) -> str:
    tree: dict[str, Any] = {
        "run": {"out": "o.jsonl"},
        "endpoint": {"base_url": "http://localhost:1/v1", "model": "m"},
        "data": {"path": "x.jsonl"},
    }
    if command != "distill":
        tree[command] = {"constitution": "c.yaml"}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    Path("job.yaml").write_text(yaml.safe_dump(tree))
    return "job.yaml"


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_right_and_say_how_to_start_them(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = f"configs/synthesis/{command}.yaml"
    overrides = ["--data.path", "README.md"]
    loaded = load_job(COMMANDS[command], file, overrides)
    assert loaded.run.out
    assert f"rlft synth {command} {file}" in Path(file).read_text().partition("\nrun:")[0]


@pytest.mark.parametrize("use", ["revise", "prefer"])
def test_the_example_constitution(use):
    laws = load_constitution(str(SYNTH / "constitution.yaml"), use, 2)
    assert len(laws.principles) >= 3


@pytest.mark.parametrize(
    ("command", "changes", "said"),
    [
        ("revise", {"endpoint__temprature": 1}, "unknown key; did you mean endpoint.temperature?"),
        ("revise", {"revise__num_principle": 1}, "did you mean revise.num_principles?"),
        ("revise", {"distill__num_answers": 1}, "distill: unknown key"),
        ("revise", {"revise__num_principles": 0}, "found 0 (a number), expected an integer, at least 1"),
        ("revise", {"endpoint__base_url": "localhost:8000/v1"}, "expected http:// or https:// and a host"),
        ("revise", {"endpoint__base_url": "http://x/v1/chat/completions"}, "only what comes before /chat/completions"),
        ("revise", {"endpoint__base_url": "http://me:secret@x/v1"}, "name it with api_key_env"),
        ("revise", {"endpoint__base_url": "http://x:99999/v1"}, "port is no number"),
        ("revise", {"endpoint__api_key_env": "sk-abc"}, "api_key_env: is not the name of an environment variable"),
        ("revise", {"endpoint__api_key_env": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is not set"),
        (
            "revise",
            {"endpoint__prompt_price": 1.0},
            "endpoint.completion_price: is empty, and the other price is given",
        ),
        ("revise", {"endpoint__extra_body": {"n": 2}}, "sets n, which rlft sets itself"),
        ("revise", {"run__max_cost": 1.0}, "needs endpoint.prompt_price"),
        ("revise", {"run__out": None}, "give --out FILE"),
        ("revise", {"run__out": "x.json"}, "expected a name that ends in .jsonl"),
        ("revise", {"data__path": "y.jsonl"}, '"y.jsonl" does not exist. Near it: x.jsonl'),
        ("prefer", {"prefer__first_column": "a"}, "prefer.second_column: is empty"),
        ("prefer", {"prefer__first_column": "a", "prefer__second_column": "a"}, "expected another column"),
        (
            "prefer",
            {"prefer__first_column": "a", "prefer__second_column": "b", "endpoint__temperature": 1.0},
            "endpoint.temperature: has no effect where answers come from columns",
        ),
        ("distill", {"distill__accept_reward": 1.0}, "has no effect without rewards.functions"),
        ("distill", {"rewards__functions": [{"functon": "math"}]}, "did you mean rewards.functions.0.function?"),
    ],
)
def test_mistakes(command, changes, said):
    file = job(command, **changes)
    with pytest.raises(UserError) as error:
        load_job(COMMANDS[command], file)
    assert said in str(error.value) and "job.yaml" in str(error.value)


def test_all_mistakes_at_once_with_their_lines():
    Path("job.yaml").write_text("endpoint:\n  model: m\n  timeout: 3\nrevise:\n  constitution: 3\n")
    with pytest.raises(UserError) as error:
        load_job(ReviseJob, "job.yaml", ["--endpoint.max_tokens", "0"])
    message = str(error.value)
    assert "job.yaml:1: endpoint.base_url: is required and not there" in message
    assert "job.yaml:3: endpoint.timeout: unknown key; did you mean endpoint.timeout_s?" in message
    assert "job.yaml:5: revise.constitution: found 3" in message
    assert "--endpoint.max_tokens: found 0" in message
    assert "data: is required" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {name: p}", "c.yaml:2: principles.0.critique: is required by rlft synth revise"),
        ("- {name: p, critique: c, revsion: r}", "c.yaml:2: principles.0.revsion: unknown key; did you mean"),
        ("- {name: p, critique: '  ', revision: r}", "principles.0.critique: is required"),
        ("- {name: p, critique: c, revision: r, weight: 0}", "found 0 (a number), expected a number, above 0"),
        ("- {name: p, critique: c, revision: r}\n" * 2, 'principles.1.name: "p" is there twice'),
        ("[]", "c.yaml:1: principles: found 0, expected at least 2 (revise.num_principles)"),
        (" 3", "c.yaml:1: principles: found 3"),
    ],
)
def test_mistakes_in_a_constitution(text, said):
    Path("c.yaml").write_text(f"principles:\n{text}" if text != "[]" else "principles: []")
    with pytest.raises(UserError) as error:
        load_constitution("c.yaml", "revise", 2)
    assert said in str(error.value)


def test_what_may_change_when_a_job_goes_on():
    settings = content_settings(load_job(DistillJob, job("distill")))
    assert not NOT_CONTENT & settings.keys()
    assert {"endpoint.model", "endpoint.temperature", "run.seed", "distill.num_answers"} <= settings.keys()
    everything = {f"{section}.{key}" for section, keys in load_job(DistillJob, "job.yaml") for key, _ in keys}
    assert everything == NOT_CONTENT | settings.keys()
    json.dumps(settings)


def test_overrides_and_text_that_looks_like_a_number():
    loaded = load_job(PreferJob, job("prefer"), ["--endpoint.model", "4", "--endpoint.extra_body.seed", "null"])
    assert loaded.endpoint.model == "4" and loaded.endpoint.extra_body == {"seed": None}


def test_source_rows_keep_their_columns(monkeypatch):
    import datetime

    import pyarrow
    import pyarrow.parquet

    rows = [{"question": "Why?", "answer": 4, "id": "a", "day": datetime.date(2020, 1, 1), "note": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "x.parquet")
    source = load_source(load_job(DistillJob, job("distill", data__path="x.parquet")).data)
    assert source.dropped_columns == ["day"]
    assert made_row(source.rows[0], {"completion": "4"}) == {
        "prompt": "Why?", "completion": "4", "id": "x.parquet:1", "answer": 4, "source_id": "a", "note": None,
    }  # fmt: skip


# ---------------------------------------------------------------- the command line


def test_help():
    done = subprocess.run([sys.executable, "-m", "rlft", "synth", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "revise" in done.stdout and "distill" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_lists_its_keys(command, capsys):
    with pytest.raises(SystemExit):
        cli.main(["synth", command, "--help"])
    assert f"usage: rlft synth {command} CONFIG" in capsys.readouterr().out
    assert cli.main(["synth", command, "--all-keys"]) == 0
    said = capsys.readouterr().out
    assert "endpoint.timeout_s: a number, above 0; default 120.0\n    Seconds" in said
    assert f"\n{command}." in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["revise"], "name a YAML file"),
        (["revise", "jb.yaml"], "jb.yaml: there is no such configuration file. Near it: "),
        (["revise", "job.yaml", "--temperature", "1"], "did you mean --endpoint.temperature?"),
        (["revise", "job.yaml", "--ot", "1"], "did you mean --out?"),
        (["revise", "job.yaml", "--endpoint.modle", "1"], "did you mean endpoint.model?"),
        (["revise", "job.yaml", "--out", "x.txt"], "--run.out: found"),
        (
            ["revise", "job.yaml", "--revise.constitution", "e.yaml"],
            '--revise.constitution: "e.yaml" does not exist. Near it: ',
        ),
        (["prefer", "p.yaml", "--prefer.second_column", "aswer"], "x.jsonl:1: column 'aswer' (prefer.second_column)"),
        (
            ["distill", "d.yaml", "--rewards.functions", "[{function: mth}]"],
            "unknown reward 'mth': did you mean 'math'?",
        ),
    ],
)
def test_mistakes_on_the_command_line(words, said, capsys):
    os.replace(job("distill"), "d.yaml")
    os.replace(job("prefer", prefer__first_column="answer", prefer__second_column="b"), "p.yaml")
    job("revise")
    assert cli.main(["synth", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(Path().glob("*o.jsonl*")), "nothing was begun"
