"""metrics.jsonl: kills, resumes, and numbers that JSON cannot hold."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlft.errors import UserError
from rlft.runs.metrics import MetricsWriter, read_metrics

ROOT = Path(__file__).parents[2]


def test_lines_are_exact_and_at_once_on_the_disk(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.log(1, {"reward/mean": 0.1 + 0.2, "step": 9.0, "n": np.int64(3), "f": np.float32(0.5), "name": "x"})
        assert path.read_text() == '{"step": 1, "reward/mean": 0.30000000000000004, "n": 3, "f": 0.5, "name": "x"}\n'


def test_nonfinite_numbers_stay_valid_json_and_come_back(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.log(1, {"loss": float("nan"), "norm": np.float32("inf"), "kl": None})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "norm": None,
        "kl": None,
        "nonfinite": {"loss": "nan", "norm": "inf"},
    }
    (row,) = read_metrics(path)
    assert math.isnan(row["loss"]) and row["norm"] == math.inf and row["kl"] is None and "nonfinite" not in row


def test_resume_moves_later_lines_aside(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    for n, first in ((1, None), (2, 2), (3, 3)):
        with MetricsWriter(path, first) as writer:
            assert writer.set_aside == (None if n == 1 else tmp_path / f"metrics.before-resume-{n - 1}.jsonl")
            for step in range(first or 1, 5):
                writer.log(step, {"try": n})
    assert [(r["step"], r["try"]) for r in read_metrics(path)] == [(1, 1), (2, 2), (3, 3), (4, 3)]
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.before-resume-1.jsonl")] == [2, 3, 4]
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.before-resume-2.jsonl")] == [3, 4]


def test_a_run_killed_in_the_middle_of_a_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    code = """
import os, signal, sys
from pathlib import Path
from rlft.runs.metrics import MetricsWriter
writer = MetricsWriter(Path(sys.argv[1]))
for step in (1, 2, 3):
    writer.log(step, {"reward/mean": 0.5})
writer._file.write(b'{"step": 4, "rewa')
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]
    with MetricsWriter(path, from_step=3) as writer:
        writer.log(3, {"reward/mean": 0.75})
    assert [(r["step"], r["reward/mean"]) for r in read_metrics(path)] == [(1, 0.5), (2, 0.5), (3, 0.75)]
    aside = (tmp_path / "metrics.before-resume-1.jsonl").read_text()
    assert aside == '{"step": 3, "reward/mean": 0.5}\n{"step": 4, "rewa\n'


def test_a_half_line_goes_aside_without_a_resume_too(tmp_path: Path):
    path = tmp_path / "eval.jsonl"
    path.write_text('{"step": 1}\n{"st')
    with MetricsWriter(path) as writer:
        writer.log(2, {})
    assert [r["step"] for r in read_metrics(path)] == [1, 2]


def test_reading_what_is_not_there_or_not_metrics(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="there is no such file"):
        read_metrics(path)
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: expected a JSON object with a step, found 'nonsense'"):
        read_metrics(path)


def test_a_full_disk_names_the_file_and_costs_one_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    code = """
import resource, signal, sys
from pathlib import Path
from rlft.runs.metrics import MetricsWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))  # one line of 27 bytes and a part of the next
writer = MetricsWriter(Path(sys.argv[1]))
writer.log(1, {"kl": 0.12345})
writer.log(2, {"kl": 0.12345})
"""
    full = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert f"RunError: {path}: cannot be written, the disk" in full.stderr and "--resume auto" in full.stderr
    assert read_metrics(path) == [{"step": 1, "kl": 0.12345}] and path.stat().st_size == 40
