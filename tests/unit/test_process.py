"""What a process that plays a role sets for itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.process import prepare
from tests.helpers import make_config


@pytest.mark.parametrize(("gpus", "expected"), [(0, "cpu"), (0.5, "cuda")])
def test_deepspeed_goes_where_the_role_is(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: float, expected: str
) -> None:
    """Whatever the process has inherited: a driver without a GPU starts Ray, whose learners then have its variables."""
    for inherited in ("cpu", "cuda"):
        monkeypatch.setenv("DS_ACCELERATOR", inherited)
        prepare(make_config(tiny_folder), gpus)
        assert os.environ["DS_ACCELERATOR"] == expected
