"""No room for a checkpoint: the run stops and says so, the last good checkpoint stays, and the run goes on from it.

The limit on file sizes stands for the disk: it makes the same writes fail, in one process and not on the machine.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from tests.running import (
    GRPO,
    SFT,
    fails,
    finish,
    metrics_of,
    num_lines,
    start,
    succeeds,
    train_here,
    wait_until,
    weights_of,
    write_config,
)


def limit_files(pid: int, num_bytes: int) -> None:
    """From now on this process cannot write a file beyond so many bytes."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def check(task: Path, name: str, err: str, bad: int, good: int) -> None:
    """That the message says all there is to know about checkpoint `bad`, and that only `good` is there."""
    message = err[err.index("error: ") :]
    assert f"/runs/{name}/checkpoints/step-{bad:06d}: no room to write it" in message, err
    assert f"The last good checkpoint is {task}/runs/{name}/checkpoints/step-{good:06d}." in message
    assert "ulimit -f" in message and "--resume auto" in message
    checkpoints = task / "runs" / name / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == [f"step-{good:06d}"], "and nothing half written"


SIX = {"loop.steps": 6}


@pytest.fixture(scope="module")
def whole(task: Path) -> Path:
    train_here(task, write_config(task, "whole", GRPO, SIX))
    return task / "runs" / "whole"


def test_while_the_model_is_written(task: Path, whole: Path) -> None:
    config = write_config(task, "model", GRPO, SIX)
    run = task / "runs" / "model"
    (task / "hold").write_text(f"{run / 'metrics.jsonl'} 3")
    process = start(task, "train", config)
    wait_until(lambda: num_lines(run / "metrics.jsonl") >= 3, process)
    limit_files(process.pid, 60_000)  # model.safetensors has 83 kB
    (task / "hold").unlink()
    check(task, "model", fails(1, finish(process)), bad=4, good=2)
    succeeds(task, "train", config, "--resume", "auto")
    assert metrics_of(run) == metrics_of(whole)
    assert weights_of(run, 6) == weights_of(whole, 6)


@pytest.mark.ray
@pytest.mark.slow
def test_while_a_learner_actor_writes_its_state(task: Path) -> None:
    """The error crosses a process and is still told from others."""
    changes = {"loop.steps": 3000, "loop.save_every": 50, "loop.keep_checkpoints": 1, "cluster.mode": "local"}
    process = start(task, "train", write_config(task, "state", SFT, changes))
    run = task / "runs" / "state"
    wait_until((run / "checkpoints" / "step-000050").exists, process)
    place = json.loads((run / "logs" / "actors.json").read_text())["learner-0"]
    limit_files(int(place.split()[-1]), 120_000)  # the optimizer's state has 165 kB
    err = fails(1, finish(process))
    (good,) = (run / "checkpoints").iterdir()
    check(task, "state", err, bad=int(good.name.removeprefix("step-")) + 50, good=int(good.name.removeprefix("step-")))
