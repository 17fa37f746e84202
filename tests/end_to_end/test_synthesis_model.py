"""`rlft synth` with a real model at the other end: a teacher that rlft has trained, and a student that learns from
it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.test_synthesis import LAWS, made, summary
from tests.model_server import model_server
from tests.running import metrics_of, succeeds

MODEL = {
    "vocabulary": "bytes", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 128, "max_length": 2048,
}  # fmt: skip
SFT: dict[str, Any] = {
    "model": {"tiny": MODEL}, "data": {"path": "digits.jsonl"}, "algorithm": {"type": "sft"},
    "learner": {"lr": 3e-3}, "loop": {"steps": 150, "prompts_per_step": 20}, "tracking": {"tensorboard": False},
    "cluster": {"mode": "inline", "threads": 1},
}  # fmt: skip


def train(folder: Path, name: str, **changes: Any) -> Path:
    """SFT as a run of its own; gives its last checkpoint."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(SFT | changes))
    succeeds(folder, "train", f"{name}.yaml")
    return max((folder / "runs" / name / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_student_learns_from_what_a_real_model_answers(tmp_path: Path) -> None:
    """The task: say the digit again. The teacher is right most of the time; the verifier keeps what is right."""
    rows = [{"prompt": [{"role": "user", "content": f"Say {i}"}], "answer": str(i)} for i in range(10)]
    (tmp_path / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    (tmp_path / "laws.yaml").write_text(yaml.safe_dump(LAWS))
    teacher = train(tmp_path, "teacher")
    job: dict[str, Any] = {
        "run": {"out": "made.jsonl"},
        "endpoint": {"model": "teacher", "max_tokens": 16, "max_concurrent": 4},
        "data": {"path": "digits.jsonl"},
        "distill": {"num_answers": 4},
        "rewards": {"functions": [{"function": "exact_match"}]},
    }
    with model_server(teacher) as server:
        job["endpoint"]["base_url"] = server.url
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        succeeds(tmp_path, "synth", "distill", "job.yaml", "--endpoint.temperature", "1.3")
        first = made(tmp_path)
        for file in tmp_path.glob("made.jsonl*"):
            os.remove(file)
        succeeds(tmp_path, "synth", "distill", "job.yaml", "--endpoint.temperature", "1.3")
        assert made(tmp_path) == first, "seeds follow from run and row: the same data again"
        said = summary(tmp_path)

        del job["distill"], job["rewards"]
        job["data"]["max_rows"] = 4
        for command in ("revise", "prefer"):
            job[command] = {"constitution": "laws.yaml"}
            (tmp_path / f"{command}.yaml").write_text(yaml.safe_dump(job))
            succeeds(tmp_path, "synth", command, f"{command}.yaml", "--out", f"{command}.jsonl")
            del job[command]
    assert said["requests"] == 80 and said["completion_tokens"] > 80
    assert sum(said["left_out"].values()) + said["rows_made"] == 80
    assert 5 <= len(first) <= 10, "each right answer once"
    assert all(row["completion"] == row["answer"] == row["messages"][1]["content"] for row in first)
    for command in ("revise", "prefer"):  # it judges nothing, so nothing is labelled
        done = json.loads((tmp_path / f"{command}.jsonl.summary.json").read_text())
        assert done["rows_made"] + sum(done["left_out"].values()) == 4 and not done["failed_rows"]
    assert not (tmp_path / "prefer.jsonl").read_text()

    train(tmp_path, "student", data={"path": "made.jsonl"}, loop={"steps": 40, "prompts_per_step": 5})
    losses = [line["policy/loss"] for line in metrics_of(tmp_path / "runs" / "student")]
    assert losses[-1] < 0.5 * losses[0]
