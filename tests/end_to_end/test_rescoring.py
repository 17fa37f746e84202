"""`rlft rewards`: the functions say of a file and of a run's rollouts what they say in training."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlft import cli
from rlft.runs.rollouts import read_rollouts
from tests.running import GRPO, train_here, write_config

LONGER = "def longer(completions):\n    return [len(c) if len(c) % 2 else None for c in completions]\n"


@pytest.fixture(scope="module")
def run(task: Path) -> Path:
    """Three steps of GRPO, rollouts kept of each."""
    changes = {"loop.steps": 3, "tracking.rollouts_every": 1}
    train_here(task, write_config(task, "scored", GRPO, changes))
    return task / "runs" / "scored"


def said(task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.chdir(task)
    monkeypatch.setenv("COLUMNS", "160")
    code = cli.main(["rewards", *words])
    out = capsys.readouterr()
    return out.out if code == 0 else f"{code} {out.err}"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_runs_samples_get_the_same_rewards_again(task, run, monkeypatch, capsys):
    out = said(task, monkeypatch, capsys, "replay", str(run), "--out", "again.jsonl")
    assert "0 of 48 rewards differ; 0 had one and have none now, 0 have one now" in out and "correlation: 1.000" in out
    then = [row for step in (1, 2, 3) for row in read_rollouts(run / f"rollouts/step-00000{step}.parquet")]
    again = lines_of(task / "again.jsonl")
    assert [row["reward"] for row in again] == [row["reward"] for row in then]
    assert [(row["prompt_id"], row["sample"]) for row in again] == [(row["prompt_id"], row["sample"]) for row in then]
    assert len({row["reward"] for row in again}) > 1


def test_a_run_is_scored_again_without_its_data(task, run, tmp_path, monkeypatch, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    text = (moved / "config.yaml").read_text()
    changed = re.sub(r"(?m)^  path: .*\.jsonl$", "  path: gone.jsonl", text)
    assert changed != text
    (moved / "config.yaml").write_text(changed)
    assert "0 of 48 rewards differ" in said(task, monkeypatch, capsys, "replay", str(moved))


def test_others_say_something_else_of_them(task, run, monkeypatch, capsys):
    (task / "longer.py").write_text(LONGER)
    words = ["--rewards.functions", "[{function: longer.py:longer}]", "--rows", "2", "--out", "other.jsonl"]
    out = said(task, monkeypatch, capsys, "replay", str(run), "--steps", "2-3", *words)
    rows = [row for step in (2, 3) for row in read_rollouts(run / f"rollouts/step-00000{step}.parquet")]
    wanted = [len(row["completion"]) if len(row["completion"]) % 2 else None for row in rows]
    assert [row["reward"] for row in lines_of(task / "other.jsonl")] == wanted
    lost = wanted.count(None)
    both = [(row["reward"], new) for row, new in zip(rows, wanted, strict=True) if new is not None]
    assert f"{sum(a != b for a, b in both)} of {32 - lost} rewards differ; {lost} had one and have none now" in out
    assert lost and "none none" in out


def test_completions_of_a_file(task, monkeypatch, capsys):
    """A text or a list of texts a row; functions get the row's other columns, and tokens."""
    rows = [
        {"prompt": "3=", "answer": "3", "drafts": ["3", "4\n"], "kind": "a"},
        {"prompt": "5=", "answer": "5", "drafts": "5", "kind": "b"},
    ]
    (task / "drafts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task / "mine.py").write_text(
        "from rlft.samples import RewardResult\n\n\n"
        "def mine(prompts, completions, completion_ids, answer, kind):\n"
        "    assert len(set(kind)) == 1 and all(map(len, completion_ids))\n"
        "    def one(c, a): return RewardResult(1.0, 'ok') if c == a else RewardResult(0.0, 'wrong', f'not {a}')\n"
        "    return [one(c, a) for c, a in zip(completions, answer)]\n"
    )
    config = write_config(task, "try", GRPO, {"rewards.functions": [{"function": "mine.py:mine", "weight": 2.0}]})
    out = said(task, monkeypatch, capsys, "test", config, "drafts.jsonl", "--completions", "drafts", "--out", "x.jsonl")
    assert [(row["reward"], row["parts"]["mine"]["status"]) for row in lines_of(task / "x.jsonl")] == [
        (2.0, "ok"), (0.0, "wrong"), (2.0, "ok"),
    ]  # fmt: skip
    assert "3 samples of 2 prompts, 0 without a reward" in out and "ok 2, wrong 1" in out
    assert "4\\n" in out and "0 wrong not 3" in out and "drafts.jsonl:2 0" in out


def test_bad_input(task, run, tmp_path, monkeypatch, capsys):
    def refused(*words: str) -> str:
        return said(task, monkeypatch, capsys, *words)

    config = write_config(task, "plain", GRPO)
    (task / "none.jsonl").write_text('{"prompt": "3=", "answer": "3"}\n')
    assert "2 error: none.jsonl: no column 'completions' or" in refused("test", config, "none.jsonl")
    assert "--completions COLUMN" in refused("test", config, "none.jsonl")
    assert "no column 'drafts'" in refused("test", config, "none.jsonl", "--completions", "drafts")
    (task / "empty.jsonl").write_text('{"prompt": "3=", "completion": ["a"]}\n{"prompt": "3=", "completion": []}\n')
    assert "empty.jsonl:2: column 'completion' is '[]'" in refused("test", config, "empty.jsonl")
    (task / "half.jsonl").write_text('{"prompt": "3=", "completion": "\\ud800"}\n')
    assert "half.jsonl:1: column 'completion'" in refused("test", config, "half.jsonl")
    assert "steps 7; there are those of steps 1 to 3" in refused("replay", str(run), "--steps", "7")
    assert "expected a step (12) or a range (10-20)" in refused("replay", str(run), "--steps", "x")
    assert "expected a run's folder" in refused("replay", str(tmp_path))
    assert "2 error: --out nowhere/x.jsonl: expected the" in refused("replay", str(run), "--out", "nowhere/x.jsonl")
    wrong = ["--rewards.functions", "[{function: mine.py:mine, args: {odd: 1}}]"]
    assert refused("replay", str(run), *wrong).startswith("2 error: rewards: args of 'mine' sets 'odd'")
