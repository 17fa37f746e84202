"""`ray job submit` to a cluster with token authentication: there is no rlft there but the files that it is sent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import GRPO, ROOT, environment, free_port, metrics_of, write_config, write_files

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """Address of the dashboard of a one-node cluster of its own, from which everything is removed at the end."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: Ray puts sockets there
    ports = {name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port")}
    words = [f"--{name}={port}" for name, port in ports.items()]
    env = environment(**TOKEN)
    del env["PYTHONPATH"]  # the job brings its own rlft
    with (Path(folder) / "head.log").open("w") as log:
        process = subprocess.Popen(
            [*RAY, "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={folder}", *words],
            env=env, cwd=folder, start_new_session=True, stdout=log, stderr=log,
        )  # fmt: skip
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        _wait_for(address, process, Path(folder) / "head.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(
        f"{address}/api/version", headers={"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"}
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def submit(folder: Path, address: str, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "-m", "rlft", *words],
        cwd=folder, env=env, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What somebody has in the folder that goes along: this repository, data, a configuration."""
    for package in ("rlft", "actors", "rewards", "configs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    write_files(tmp_path)
    write_config(tmp_path, "job", GRPO, {"cluster.mode": "local", "loop.steps": 3, "run.dir": str(tmp_path / "runs")})
    return tmp_path


def test_a_job_trains(project: Path, head: str) -> None:
    done = submit(project, head, environment(**TOKEN), "train", "job.yaml", "--cluster.mode", "ray")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for step in (1, 2, 3):
        assert f"step={step}/3 reward=" in said, said
    assert "succeeded" in said
    run = project / "runs" / "job"
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3]
    assert (run / "checkpoints" / "step-000003" / "model.safetensors").exists()
    places = (run / "logs" / "actors.json").read_text()
    assert all(name in places for name in ("generator-0", "learner-0", "scorer-0", "reward_worker-0"))


def test_without_the_token_nothing_runs(project: Path, head: str) -> None:
    env = {key: value for key, value in environment().items() if not key.startswith("RAY_AUTH")}
    done = submit(project, head, env, "train", "job.yaml", "--cluster.mode", "ray")
    assert done.returncode != 0
    assert "401" in done.stdout + done.stderr or "oken" in done.stdout + done.stderr, done.stdout + done.stderr
    assert not (project / "runs").exists()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head}/api/jobs/", timeout=10)
