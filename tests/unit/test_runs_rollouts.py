"""Rollouts as Parquet: one row a sample, and what comes back is what was there."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from rlft.errors import RunError, UserError
from rlft.runs.rollouts import read_rollouts, set_aside_rollouts, write_rollouts
from rlft.samples import Group, Prompt, RewardResult, Sample


def sample(**changes: object) -> Sample:
    """Prompt of 2 tokens, completion of 3; the last is not trained on."""
    made = Sample(
        token_ids=np.array([5, 6, 7, 8, 9], np.int32),
        loss_mask=np.array([False, False, True, True, False]),
        logprobs=np.array([0, 0, -0.5, -0.25, 0], np.float32),
        weight_versions=np.array([-1, -1, 3, 4, -1], np.int32),
        finish_reason="stop",
        seed=2**63 - 1,
        text="= 4",
        reward=np.float32(0.5),  # type: ignore[arg-type]
        reward_parts={"math": RewardResult(0.5, "ok")},
        advantages=np.array([0, 0, 1.5, 1.5, 0], np.float32),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def group(*samples: Sample) -> Group:
    columns = {"answer": "4", "n": np.int64(4), "odd": "\ud800", "xs": np.array([1, 2])}
    return Group(Prompt("t.jsonl:1", np.array([5, 6], np.int32), "2+2 \ud800é", None, columns), samples)


def test_round_trip(tmp_path: Path):
    failed = {"format": RewardResult(None, "error", "KeyError: 'x'"), "math": RewardResult(1.0, "ok")}
    path = write_rollouts(tmp_path, 12, [group(sample(), sample(reward=None, reward_parts=failed, advantages=None))])
    assert path == tmp_path / "step-000012.parquet" and list(tmp_path.iterdir()) == [path]
    first, second = read_rollouts(path)
    assert first == {
        "step": 12,
        "prompt_id": "t.jsonl:1",
        "source": "",
        "sample": 0,
        "prompt": "2+2 ?é",
        "completion": "= 4",
        "reward": 0.5,
        "advantage": 1.5,
        "advantages": None,
        "weight_version_min": 3,
        "weight_version_max": 4,
        "num_tokens": 3,
        "num_turns": 1,
        "finish_reason": "stop",
        "seed": 2**63 - 1,
        "token_ids": [7, 8, 9],
        "loss_mask": [True, True, False],
        "sampler_logprobs": [-0.5, -0.25, 0.0],
        "columns": {"answer": "4", "n": 4, "odd": "\ud800", "xs": [1, 2]},
        "messages": None,
        "turns": None,
        "reward/format": None,
        "counted/format": None,
        "status/format": None,
        "detail/format": None,
        "reward/math": 0.5,
        "counted/math": 0.5,
        "status/math": "ok",
        "detail/math": None,
    }
    assert (second["sample"], second["reward"], second["advantage"]) == (1, None, None)
    assert (second["reward/format"], second["status/format"]) == (None, "error")
    assert second["detail/format"] == "KeyError: 'x'"


def test_nothing_trained_nothing_sampled_and_no_groups(tmp_path: Path):
    bare = sample(loss_mask=np.zeros(5, bool), weight_versions=np.full(5, -1, np.int32), reward=math.inf)
    (row,) = read_rollouts(write_rollouts(tmp_path / "new", 1, [group(bare)]))
    assert row["advantage"] is None and row["weight_version_min"] is None and row["reward"] == math.inf
    assert read_rollouts(write_rollouts(tmp_path, 2, [])) == []


def test_resume_moves_later_steps_aside(tmp_path: Path):
    for step in (1, 2, 3):
        write_rollouts(tmp_path, step, [group(sample())])
    assert [path.name for path in set_aside_rollouts(tmp_path, 3)] == ["step-000003.before-resume-1.parquet"]
    assert [path.name for path in set_aside_rollouts(tmp_path, 2)] == ["step-000002.before-resume-1.parquet"]
    assert (tmp_path / "step-000001.parquet").exists()


def test_reading_what_is_not_there_or_not_rollouts(tmp_path: Path):
    with pytest.raises(UserError, match="there is no such file"):
        read_rollouts(tmp_path / "step-000001.parquet")
    (tmp_path / "step-000001.parquet").write_text("no")
    with pytest.raises(UserError, match=r"step-000001\.parquet: expected a Parquet file"):
        read_rollouts(tmp_path / "step-000001.parquet")
    parquet.write_table(pyarrow.table({"prompt_id": ["a"]}), tmp_path / "step-000001.parquet")
    with pytest.raises(UserError, match="expected a file of rollouts, which has a column 'sample'"):
        read_rollouts(tmp_path / "step-000001.parquet")


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pyarrow.parquet

    path = write_rollouts(tmp_path, 1, [group(sample())])

    def full(table: object, where: Path, **options: object) -> None:
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(RunError, match=r"step-000001.parquet: cannot be written"):
        write_rollouts(tmp_path, 1, [])
    assert len(read_rollouts(path)) == 1 and list(tmp_path.iterdir()) == [path]
