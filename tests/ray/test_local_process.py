"""Local mode from the command line and from a driver script: each starts a Ray of its own."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from rlft import cli
from tests.running import (
    GRPO,
    changed,
    children,
    fails,
    finish,
    metrics_of,
    rollouts_of,
    start,
    still_alive,
    wait_until,
    write_config,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LONG = {  # seconds of decoding in each step
    "model.tiny.max_length": 4096, "generator.max_new_tokens": 4000, "generator.ignore_eos": True,
    "algorithm.kl_coef": 0.0, "cluster.mode": "local",
}  # fmt: skip


def test_a_killed_generator_ends_the_run(task: Path) -> None:
    process = start(task, "train", write_config(task, "killed", GRPO, LONG))
    places = task / "runs" / "killed" / "logs" / "actors.json"
    wait_until(places.exists, process)
    time.sleep(2)  # first weights go over in a tenth of that
    mine = children(process)
    os.kill(int(json.loads(places.read_text())["generator-0"].split()[-1]), signal.SIGKILL)
    begin = time.monotonic()
    err = fails(1, finish(process, 60))
    assert time.monotonic() - begin < 15
    assert "error: generate: generator-0 died (because its worker process has died. " in err
    assert "namespace" not in err and len(err.splitlines()[-1]) < 600, "Ray's own page of text is left out"
    assert "--resume auto" in err and "logs" in err
    assert still_alive(mine, 10) == []


def test_a_schedulers_stop_ends_the_run_in_order(task: Path) -> None:
    """Without the stack traces and the abort of Ray's own handler."""
    process = start(task, "train", write_config(task, "stopped", GRPO, LONG))
    wait_until((task / "runs" / "stopped" / "logs" / "actors.json").exists, process)
    time.sleep(2)
    process.terminate()
    done = finish(process, 60)
    assert done.returncode == 143, done.stderr
    assert "terminated (SIGTERM). The same command with --resume auto" in done.stderr
    assert "SIGTERM received at time" not in done.stderr and "Traceback" not in done.stderr


SCRIPT = """
import json

import rlft

WORDS = {"even": "02468"}  # what a function refers to travels with it


def share_of_even(completions, **columns):
    return [sum(c in WORDS["even"] for c in text) / 8 for text in completions]


def length(completions, bonus, **columns):
    return [len(text) * b for text, b in zip(completions, bonus)]


async def later(completions, **columns):
    return [0.25] * len(completions)


with open("config.json") as file:
    config = json.load(file)
rows = [{"prompt": f"{i}=", "bonus": i / 10} for i in range(10)]
result = rlft.train(config, rewards=[share_of_even, length, later], dataset=rows)
print("RESULT", result.folder, result.steps, result.checkpoint, result.metrics["reward/length/mean"])
"""


def test_functions_of_a_driver_script(task: Path) -> None:
    config = changed(GRPO, {"cluster.mode": "local", "algorithm.kl_coef": 0.0, "loop.steps": 2, "run.name": "script"})
    del config["rewards"], config["data"]
    (task / "config.json").write_text(json.dumps(config))
    (task / "script.py").write_text(SCRIPT)
    done = finish(start(task, python=("script.py",)))
    assert done.returncode == 0, done.stderr
    run = task / "runs" / "script"
    assert done.stdout.startswith(f"RESULT {run} 2 {run}/checkpoints/step-000002 ")
    rows = rollouts_of(task / "runs" / "script")
    assert len(rows) == 2 * 4 * 4
    for row in rows:
        assert row["reward/share_of_even"] == sum(c in "02468" for c in row["completion"]) / 8
        assert row["reward/length"] == len(row["completion"]) * row["columns"]["bonus"]
        assert row["reward"] == pytest.approx(row["reward/share_of_even"] + row["reward/length"] + 0.25)
    assert all(line["samples/failed"] == 0 for line in metrics_of(task / "runs" / "script"))


def test_no_cluster_to_join_is_bad_input(
    task: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task)
    config = write_config(task, "nowhere", GRPO, {"cluster.mode": "ray", "cluster.address": "127.0.0.1:1"})
    begin = time.monotonic()
    assert cli.main(["train", config]) == 2
    err = capsys.readouterr().err
    assert "no cluster answers at 127.0.0.1:1" in err and "--cluster.mode local" in err
    assert time.monotonic() - begin < 15, "Ray alone would try for minutes"
