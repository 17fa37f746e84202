"""A folder with a small task for each test module."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import write_files


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl, eval.jsonl and my_rewards.py, in which commands are run."""
    folder = tmp_path_factory.mktemp("task")
    write_files(folder)
    return folder
