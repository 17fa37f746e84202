"""Extensions are compiled once, by one process at a time, and a build that was killed holds nobody up."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from rlft.engines.extensions import built, extensions_folder
from rlft.errors import RunError, UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("RLFT_EXTENSIONS_DIR", str(tmp_path))
    return tmp_path


def test_it_says_that_it_builds_and_then_no_more(folder, capsys):
    def build() -> int:
        (folder / "op" / "op.so").touch()
        return 7

    assert built("op", build) == 7
    assert f"building op in {folder / 'op'}: once, some minutes" in capsys.readouterr().err
    assert built("op", build) == 7
    assert capsys.readouterr().err == ""


def test_torch_is_told_the_folder_and_this_pythons_ninja_while_it_builds(folder):
    before = dict(os.environ)
    assert built("op", lambda: os.environ["TORCH_EXTENSIONS_DIR"]) == str(folder)
    if (Path(sys.executable).parent / "ninja").exists():
        assert built("op", lambda: os.environ["PATH"]).startswith(str(Path(sys.executable).parent))
    assert dict(os.environ) == before


def test_a_lock_that_was_left_is_taken_away(folder, capsys):
    (folder / "op").mkdir()
    (folder / "op" / "lock").touch()
    assert built("op", lambda: (folder / "op" / "lock").exists()) is False
    assert "left by a build of op that was killed, taken away" in capsys.readouterr().err


def test_what_cannot_be_compiled_is_said(folder):
    def build() -> None:
        raise RuntimeError("Error building extension 'op':\n no g++")

    with pytest.raises(UserError, match="op cannot be compiled here: Error building extension 'op': no g++"):
        built("op", build)


def test_without_a_folder_it_is_one_of_our_own(monkeypatch, tmp_path):
    monkeypatch.delenv("RLFT_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert extensions_folder().parent == tmp_path / "rlft" / "extensions"


def _hold(begun: Path, seconds: float) -> None:
    def build() -> None:
        begun.touch()
        time.sleep(seconds)

    built("op", build)


def _other(begun: Path, seconds: float) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(begun, seconds))
    process.start()
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def test_who_waits_too_long_is_told_for_what(folder, tmp_path):
    other = _other(tmp_path / "begun", 60)
    try:
        with pytest.raises(RunError, match=r"op: another process has been building for 0.3 s and holds .*/turn"):
            built("op", lambda: None, limit_s=0.3)
    finally:
        other.kill()
        other.join()
    assert built("op", lambda: 3, limit_s=0.3) == 3, "the system has lifted the lock of the one that was killed"


def test_the_second_waits_for_the_first(folder, tmp_path):
    other, began = _other(tmp_path / "begun", 1.0), time.monotonic()
    assert built("op", lambda: 3) == 3
    assert time.monotonic() - began > 0.5
    other.join()
    assert other.exitcode == 0
