"""Starts rlft as people do, in processes of its own, on a task that is small enough for tests; reads what runs leave.

For tests/end_to_end and tests/ray.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

import rlft as trainer
from actors.quickstart import write_task
from rlft.runs.metrics import read_metrics
from rlft.runs.rollouts import read_rollouts

ROOT = Path(__file__).resolve().parents[1]

# A random model is right too rarely to learn from, so the reward is the share of digits among 8 characters. The file
# `hold` ("<metrics.jsonl> <lines>") makes it wait once so many steps are done: there a test may kill what it likes.
REWARDS = """
import time
from pathlib import Path

HOLD = Path(__file__).with_name("hold")


def share_of_digits(completions, **columns):
    while HOLD.exists() and _held(*HOLD.read_text().split()):
        time.sleep(0.02)
    return [sum(c.isdigit() for c in text) / 8 for text in completions]


def _held(metrics, lines):
    return Path(metrics).exists() and len(Path(metrics).read_bytes().splitlines()) >= int(lines)


def raises_at_times(completions, answer, **columns):
    if answer[0].startswith("0"):
        raise ValueError("no zeros, please")
    return [len(set(text)) / 8 for text in completions]


def one_too_few(completions, **columns):
    return [1.0] * (len(completions) - 1)
"""

TINY = {
    "vocabulary": "digits", "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 64, "max_length": 64,
}  # fmt: skip
GRPO: dict[str, Any] = {
    "model": {"tiny": TINY},
    "data": {"path": "train.jsonl"},
    "algorithm": {"type": "grpo", "group_size": 4, "kl_coef": 0.05},
    "generator": {"max_new_tokens": 8},
    "rewards": {"functions": [{"function": "my_rewards.py:share_of_digits"}]},
    "learner": {"lr": 1e-2, "schedule": "cosine"},
    "loop": {"steps": 8, "prompts_per_step": 4, "save_every": 2, "keep_checkpoints": 2, "probe_every": 3},
    "tracking": {"tensorboard": False},
    "cluster": {"mode": "inline", "threads": 1},
}
SFT: dict[str, Any] = {
    "model": {"tiny": TINY},
    "data": {"path": "train.jsonl", "completion_column": "answer"},
    "algorithm": {"type": "sft"},
    "learner": {"lr": 1e-2, "schedule": "cosine"},
    "loop": {"steps": 80, "prompts_per_step": 16, "save_every": 20},
    "tracking": {"tensorboard": False},
    "cluster": {"mode": "inline", "threads": 1},
}

DPO: dict[str, Any] = {
    "model": {"tiny": TINY},
    "data": {"path": "pairs.jsonl"},
    "algorithm": {"type": "dpo"},
    "learner": {"lr": 1e-3, "schedule": "cosine"},
    "loop": {"steps": 20, "prompts_per_step": 8, "save_every": 5},
    "evaluation": {"path": "held_out_pairs.jsonl", "every": 10},
    "tracking": {"tensorboard": False},
    "cluster": {"mode": "inline", "threads": 1},
}
STEPS = {  # on top of DPO
    "algorithm.type": "process_reward", "data.path": "steps.jsonl", "data.step_separator": ",",
    "evaluation.path": "held_out_steps.jsonl",
}  # fmt: skip
KTO = {"algorithm.type": "kto", "data.path": "labels.jsonl", "evaluation.path": "labels.jsonl"}


def write_pairs(folder: Path) -> None:
    """Of the rows of train.jsonl and eval.jsonl: pairs.jsonl and held_out_pairs.jsonl, whose rejected answer is the
    chosen one backwards with a 0 in front, labels.jsonl, either of both in turn, and steps.jsonl and
    held_out_steps.jsonl: a digit of the answer a step, from some place on a letter, which is bad."""
    for source, name in (("train", "pairs"), ("eval", "held_out_pairs")):
        rows = [json.loads(line) for line in (folder / f"{source}.jsonl").read_text().splitlines()][:40]
        both = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": "0" + r["answer"][::-1]} for r in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both))
        steps = [_in_steps(row, i % 7) for i, row in enumerate(rows)]
        name = name.replace("pairs", "steps")
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
        if source == "train":
            judged = [
                {"prompt": r["prompt"], "completion": r["rejected" if i % 2 else "chosen"], "label": i % 2 == 0}
                for i, r in enumerate(both)
            ]
            (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))


def _in_steps(row: Mapping[str, Any], num_good: int) -> dict[str, Any]:
    digits = [c if i < num_good else "xyz"[i % 3] for i, c in enumerate(row["answer"])]
    return {"prompt": row["prompt"], "completions": digits, "labels": [i < num_good for i in range(len(digits))]}


def write_files(folder: Path) -> None:
    """train.jsonl and eval.jsonl (digits to sort, 100 rows each), pairs and labels made of them, and my_rewards.py."""
    for path in write_task(folder, seed=0):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:100]))
    (folder / "my_rewards.py").write_text(REWARDS)
    write_pairs(folder)


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration with dotted keys set: {"loop.steps": 3}."""
    config = copy.deepcopy(dict(base))
    for key, value in changes.items():
        *sections, last = key.split(".")
        node = config
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return config


def write_config(folder: Path, name: str, base: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> str:
    """Write folder/<name>.yaml, whose run will be folder/runs/<name>; gives the file's name."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(changed(base, changes or {})))
    return f"{name}.yaml"


def environment(**more: str) -> dict[str, str]:
    """For a process that is to import this checkout, with its Python first in the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", **more}


def start(folder: Path, *words: str, python: Sequence[str] = ("-m", "rlft")) -> subprocess.Popen[str]:
    """`python -m rlft WORDS` in `folder`, in a process group of its own. It hears SIGINT, which a shell lets its
    background jobs ignore, and the tests may be one."""
    return subprocess.Popen(
        [sys.executable, *python, *words], cwd=folder, env=environment(), text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout_s: float = 150) -> subprocess.CompletedProcess[str]:
    """Wait for a process; kill its group when it takes too long."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout_s} s: {process.args}\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def rlft(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m rlft WORDS` in `folder` to its end."""
    return finish(start(folder, *words))


def succeeds(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`rlft`, and it must exit with 0."""
    done = rlft(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def fails(code: int, done: subprocess.CompletedProcess[str]) -> str:
    """What a run says on stderr that must have failed with this exit code, one message and no traceback."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def train_here(folder: Path, config: str, **arguments: Any) -> Any:
    """rlft.train in this process, from `folder`; gives the RunResult. Saves the seconds that a new process imports."""
    with contextlib.chdir(folder):
        return trainer.train(config, **arguments)


def wait_until(there: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float = 120) -> None:
    """Wait until `there()`; fail at once when the process ends before."""
    deadline = time.monotonic() + timeout_s
    while not there():
        if process.poll() is not None:
            raise AssertionError(f"ended too early: {process.returncode}\n{''.join(process.communicate())}")
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"waited {timeout_s} s in vain\n{''.join(process.communicate())}")
        time.sleep(0.005)


def num_lines(path: Path) -> int:
    """Whole lines of a file, 0 when there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Every process that this one started, and theirs."""
    return psutil.Process(process.pid).children(recursive=True)


def still_alive(processes: Sequence[psutil.Process], timeout_s: float) -> list[str]:
    """Names of those that have not ended (or are only waiting to be reaped) within the time; they are killed, and so
    are Ray's two agents at once, which look up only once a minute whether their Ray is still there."""
    deadline, alive = time.monotonic() + timeout_s, list(processes)
    for process in alive:
        if _runs(process) and "Agent" in process.name():
            process.kill()
    while (alive := [p for p in alive if _runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    names = [p.name() for p in alive]
    for process in alive:
        process.kill()
    return names


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def metrics_of(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Metrics line by line, without what is a matter of time."""
    return [
        {k: v for k, v in line.items() if not k.startswith("time/") and k != "tokens_per_s"}
        for line in read_metrics(run / name)
    ]


def rollouts_of(run: Path) -> list[dict[str, Any]]:
    """Every sample of a run, in order."""
    files = sorted(p for p in (run / "rollouts").glob("step-*.parquet") if "before-resume" not in p.name)
    return [row for file in files for row in read_rollouts(file)]


def weights_of(run: Path, step: int, file: str = "model.safetensors") -> bytes:
    """A checkpoint's weights as they lie on the disk."""
    return (run / "checkpoints" / f"step-{step:06d}" / file).read_bytes()


def assert_learns(run: Path) -> None:
    """That a run did what there is to compare: rewards that differ, gradients, and a policy that left its reference."""
    metrics = metrics_of(run)
    assert all(line["reward/std"] > 0 and line["policy/grad_norm"] > 0 for line in metrics), metrics
    assert metrics[-1]["policy/kl"] > 1e-4, metrics[-1]


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    """That the metrics of two runs differ by at most `tolerance`."""
    lines, others = metrics_of(one), metrics_of(other)
    assert [line.keys() for line in lines] == [line.keys() for line in others]
    for a, b in zip(lines, others, strict=True):
        far = {k: (a[k], b[k]) for k in a if not math.isclose(a[k], b[k], rel_tol=tolerance, abs_tol=tolerance)}
        assert not far, (a["step"], far)
