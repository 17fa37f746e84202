"""GRPO with the code reward: a model writes code, the sandbox runs it, the reward teaches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rewards.code.example import make_rows, write_files
from rlft.errors import UserError
from tests.leaks import LEAKS, leaky_python
from tests.running import GRPO, TINY, metrics_of, rollouts_of, train_here, write_config

CODE = {
    "model.tiny": {**TINY, "vocabulary": "bytes", "max_length": 128},
    "algorithm.group_size": 2,
    "generator.max_new_tokens": 4,
    "rewards.functions": [{"function": "code", "args": {"parallel": 2}}],
    "rewards.max_failed_fraction": 0,
    "loop.steps": 2,
    "loop.prompts_per_step": 4,
}


def test_rows_of_the_example_are_right(tmp_path: Path) -> None:
    rows = make_rows()
    assert len(rows) == len({row["prompt"] for row in rows}) == 160
    train, held_out = ([json.loads(line) for line in path.read_text().splitlines()] for path in write_files(tmp_path))
    assert len(held_out) == 32 and sorted(map(str, train + held_out)) == sorted(map(str, rows))
    (row,) = [row for row in rows if row["prompt"].startswith("# twice a minus b squared, plus 4\n")]
    assert row["canonical_solution"] == "2 * a - b * b + 4"
    assert "assert candidate(-4, 7) == -53" in row["test"]  # 2 * -4 - 7 * 7 + 4


@pytest.mark.parametrize("mode", ["inline", pytest.param("local", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_every_part_runs(tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    train, _ = write_files(tmp_path / "data")
    changes = {**CODE, "data.path": str(train), "cluster.mode": mode, "run.name": "code"}
    result = train_here(tmp_path, write_config(tmp_path, "code", GRPO, changes))
    rows = rollouts_of(result.folder)
    assert len(rows) == 2 * 4 * 2
    for row in rows:  # a fresh model writes nonsense, and that is what the sandbox must say of it
        assert row["status/code"] in ("wrong", "unparsed"), row
        assert row["reward"] == 0
    assert [line["samples/failed"] for line in metrics_of(result.folder)] == [0, 0]
    told = json.loads((result.folder / "logs" / "rewards.json").read_text())
    (facts,) = told.values()
    assert facts["code"]["tier"] in ("namespaces", "landlock") and facts["code"]["unsandboxed"] is False
    assert f"reward code: tier {facts['code']['tier']}" in capsys.readouterr().err


def test_a_run_without_a_sandbox_does_not_start_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, _ = write_files(tmp_path / "data")
    monkeypatch.setattr(sys, "executable", leaky_python(tmp_path, next(iter(LEAKS))))
    args = {"tier": "landlock", "parallel": 1}  # in the other tier this leak shows nothing but what there is anyway
    changes = {**CODE, "data.path": str(train), "loop.steps": 1, "run.name": "no"}
    changes["rewards.functions"] = [{"function": "code", "args": args}]
    with pytest.raises(UserError, match="no sandbox holds on this machine"):
        train_here(tmp_path, write_config(tmp_path, "no", GRPO, changes))
    changes["rewards.functions"] = [{"function": "code", "args": {**args, "allow_unsandboxed": True}}]
    result = train_here(tmp_path, write_config(tmp_path, "yes", GRPO, {**changes, "run.name": "yes"}))
    (facts,) = json.loads((result.folder / "logs" / "rewards.json").read_text()).values()
    assert facts["code"]["tier"] == "none" and facts["code"]["unsandboxed"] is True
    assert "warning: reward code: model-written code runs WITHOUT a sandbox" in capsys.readouterr().err
