"""One Ray for all tests of a module that train from this process, and a folder with a small task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import ROOT, write_files


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl, eval.jsonl and my_rewards.py, in which commands are run."""
    folder = tmp_path_factory.mktemp("task")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def joined_ray() -> Iterator[None]:
    """A Ray that this process has joined: rlft uses it as it is, which saves starting one for each run."""
    import ray

    ray.init(
        address="local", num_cpus=9, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )  # fmt: skip
    yield
    ray.shutdown()
