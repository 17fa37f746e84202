"""Weights that are broadcast from the learner instead of carried by the object store: the same runs, and a hand-over
whose other end has died ends at once."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ray.test_vllm import VLLM, assert_sampler_agrees
from tests.running import GRPO, fails, finish, metrics_of, start, train_here, wait_until, weights_of, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SHORT = {"loop.steps": 3, "loop.save_every": 0, "cluster.mode": "local", "algorithm.kl_coef": 0.0}


def run_with(task: Path, transport: str, name: str, changes: dict[str, Any]) -> Path:
    """The run folder of a configuration with this transport."""
    settings = {**SHORT, **changes, "cluster.weight_transport": transport}
    return task / train_here(task, write_config(task, f"{name}-{transport}", GRPO, settings)).folder


@pytest.mark.parametrize("stage", [0, 3])
def test_a_broadcast_run_is_the_same_run(
    task: Path, joined_ray: None, stage: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rank and two generators; two ranks that gather their shards bucket by bucket."""
    changes = {"generator.num_actors": 2} if stage == 0 else {"learner.num_ranks": 2, "learner.zero_stage": 3}
    runs = [run_with(task, transport, f"stage-{stage}", changes) for transport in ("memory", "collective")]
    assert metrics_of(runs[0]) == metrics_of(runs[1])
    assert weights_of(runs[0], 3) == weights_of(runs[1], 3)
    told = capsys.readouterr().err
    assert "weights reach the generators by broadcast from the learner" in told and "through shared memory" in told


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (make vllm)")
def test_vllm_receives_a_broadcast(task: Path, joined_ray: None) -> None:
    run = run_with(task, "collective", "vllm", {**VLLM, **SHORT})
    assert_sampler_agrees(run)
    assert [line["sync/version"] for line in metrics_of(run)] == [1, 2, 3]


LONG = {**SHORT, "loop.steps": 100_000, "cluster.weight_transport": "collective"}


@pytest.mark.parametrize("dies", ["learner-0", "generator-0"])
def test_an_end_that_dies_is_named_at_once(task: Path, dies: str) -> None:
    """With the generator stopped the learner waits in a broadcast and the driver for both; then one is killed."""
    run, hold = task / "runs" / f"dies-{dies}", task / "hold"
    metrics = run / "metrics.jsonl"
    hold.write_text(f"{metrics} 2")  # there the rewards wait: everything is drawn, nothing is learned
    process = start(task, "train", write_config(task, f"dies-{dies}", GRPO, LONG))
    wait_until(lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) == 2, process)
    time.sleep(2)
    places = json.loads((run / "logs" / "actors.json").read_text())
    pids = {name: int(place.split()[-1]) for name, place in places.items()}
    psutil.Process(pids["generator-0"]).suspend()
    hold.unlink()
    time.sleep(2)
    os.kill(pids[dies], signal.SIGKILL)
    begin = time.monotonic()
    err = fails(1, finish(process, 60))
    assert time.monotonic() - begin < 45  # of it 20 for the stopped one, which is asked to close
    stage = "learner send" if dies == "learner-0" else "(loading weight version 3|looking for what caused an error)"
    assert re.search(rf"error: {stage}: {dies} died \(because its worker process has died\.", err), err
