"""Progress for people: lines where output is piped, a panel in a terminal (here a real pseudo-terminal)."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlft.runs.console import Console, View, readable_seconds
from rlft.runs.panel import LivePanel, sparkline

ROOT = Path(__file__).parents[2]
METRICS = {"reward/mean": 0.41, "policy/kl": 0.00123, "completion/length_mean": np.float32(12.5), "time/step_s": 2.0}


def test_one_line_a_step_where_there_is_no_terminal():
    out = io.StringIO()
    with Console(150, stream=out) as console:
        console.stage("generate")
        console.log(3, {**METRICS, "samples/failed": 0, "policy/skipped_updates": 2, "unknown": 1})
        console.message("checkpoint [x] saved")
        console.log(150, {"eval/accuracy": 0.5})
    assert out.getvalue().splitlines() == [
        "step=3/150 reward=0.410 kl=0.0012 length=12.5 skipped=2 step_s=2.00 eta=4m54s",  # (150 - 3) * 2.0 = 294 s
        "checkpoint [x] saved",
        "step=150/150 eval_accuracy=0.500",
    ]


def test_missing_metrics_are_left_out():
    out = io.StringIO()
    with Console(5, stream=out) as console:
        console.log(1, {})
    assert out.getvalue() == "step=1/5\n"


def test_the_time_left_follows_the_steps_of_this_session(monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(0, 10_000, 10))  # every look at the clock is 10 s after the one before
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    console = Console(100, stream=io.StringIO())
    console.log(51, {})  # a resumed run: steps 1 to 50 say nothing about the speed now
    assert console.seconds_left() is None
    console.log(53, {})  # 10 s for 2 steps
    assert console.seconds_left() == (100 - 53) * 5.0


def test_seconds_for_people():
    assert [readable_seconds(s) for s in (0.2, 59.4, 80, 11_100)] == ["0s", "59s", "1m20s", "3h05m"]


def test_sparkline():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([1, 1, 1], 9) == "▁▁▁"
    assert sparkline([], 9) == sparkline([float("nan")], 9) == sparkline([1.0], 0) == ""


@pytest.mark.parametrize("width", [20, 50, 80, 200])
def test_the_panel_fits_whatever_is_known(width: int):
    from rich.console import Console as RichConsole

    times = {"time/generate_s": 1.5, "time/learn_s": 0.5, "time/step_s": 2.0}
    nothing = View("rlft", None, 150, "starting", 3.0, None, [], {})
    evaluated = {"eval/accuracy": 0.9, "eval/pass@2": 0.111, "eval/pass@10": 0.987}
    all_ = View("a run", 75, 150, "learn", 3.0, 80.0, [0.1, 0.5], {**METRICS, **times, **evaluated})
    for view in (nothing, all_):
        out = io.StringIO()
        RichConsole(file=out, width=width, force_terminal=False).print(LivePanel(lambda view=view: view))
        assert all(len(line) <= width for line in out.getvalue().splitlines())
        if width >= 80 and view is all_:
            for part in ("75/150", "50%, 1m20s left  learn 3s", "reward 0.500  ▁█", "KL to", "0.900", "0.987"):
                assert part in out.getvalue()


def test_the_panel_in_a_terminal():
    code = """
from rlft.runs.console import Console
with Console(3, title="my run") as console:
    for step in (1, 2, 3):
        console.log(step, {"reward/mean": step / 4, "policy/kl": 0.5})
    console.message("checkpoint [step-000003] saved")
"""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=theirs, stdout=theirs, env=env)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=20) == 0
    text = shown.decode()
    for part in ("my run", "step 3/3", "reward 0.750", "checkpoint [step-000003] saved", "done", "╰"):
        assert part in text
    assert text.endswith("\x1b[?25h")  # the cursor is back
