"""What stands around vLLM and can be tested without it: its version, its errors, what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlft.engines import build
from rlft.engines.vllm import handover
from rlft.engines.vllm.own_log import OwnLog
from rlft.errors import UserError
from tests.helpers import make_config


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("_version.py", "__version__ = version = '0.11.2'\n", "vLLM 0.11 is installed; rlft drives 0.26 to below 0.33"),
        ("_version.py", "__version__ = version = '0.33.0'\n", "vLLM 0.33 is installed"),
        ("_version.py", "__version__ = version = '0.32.1'\n__version_tuple__ = (0, 32, 1)\n", ""),
        ("__init__.py", '__version__ = "0.9.1"\n', "vLLM 0.9 is installed"),
        ("__init__.py", "", ""),  # it does not say
    ],
)
def test_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, said: str):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("")
    (tmp_path / "vllm" / file).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    config = make_config(tmp_path, {"generator.engine": "vllm"})
    if said:
        with pytest.raises(UserError, match=said):
            build.check_engine(config)
    else:
        build.check_engine(config)


PRINTS = """
import os, sys
from rlft.engines.vllm.own_log import OwnLog
print("RuntimeError: an old one", file=sys.stderr, flush=True)
log = OwnLog()
if len(sys.argv) > 1:
    os.write(2, b"(EngineCore pid=7) ERROR ValueError: No room for the cache.\\n")
    os.write(2, b"RuntimeError: Engine core initialization failed. See root cause above.\\n")
print(log.last_error())
"""


@pytest.mark.parametrize("fails", [True, False])
def test_vllms_own_error_is_found_where_people_do_not_look(tmp_path: Path, fails: bool):
    with open(tmp_path / "worker.err", "w") as file:
        words = [sys.executable, "-c", PRINTS, *(["fail"] if fails else [])]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=file, text=True, timeout=120, cwd=Path.cwd())
    said = "its own last error was ValueError: No room for the cache.; " if fails else ""
    assert done.stdout.strip() == f"({said}its output is in {tmp_path / 'worker.err'})"


def test_on_a_terminal_there_is_nothing_to_look_for():
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, timeout=120, cwd=Path.cwd())
    assert done.stdout.strip() == ""
    assert isinstance(OwnLog(), OwnLog)


def test_what_killed_processes_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(handover, "_SHARED_MEMORY", tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, alive, other = (
        tmp_path / name for name in (f"rlft-weights-{dead.pid}-x", f"rlft-weights-{os.getpid()}-y", "z")
    )
    for folder in (left, alive, other):
        folder.mkdir()
        (folder / "0.bin").write_bytes(b"1")
    with handover.shared_folder(1) as mine:
        assert mine.parent == tmp_path and mine.name.startswith(f"rlft-weights-{os.getpid()}-")
        assert not left.exists() and alive.exists() and other.exists()
