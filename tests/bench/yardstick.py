"""The standard run of the yardstick with rlft, on the same clocks and with the same flags as a peer's grpo.py.

    python -m tests.bench.yardstick --assets DIR --steps 150 --lr 1e-4 --eval-every 15 --eval-n 500
    python -m tests.bench.yardstick --assets DIR --steps 8 --lr 1e-5 --fixed-len 64 --eval-every 100 --eval-n 0

Prints `RESULT {json}`. CPU seconds are those of all processes of the run; evaluation is not charged; work done before
the first step (imports, loading, starting actors) is reported apart as start_s. With --fixed-len every completion has
exactly that many tokens and every sample is trained on, also those of groups without signal: the peer's work. Other
algorithms: `--set algorithm.type=rloo`; tests/bench/algorithms.py runs all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

START = time.perf_counter()


def parser() -> argparse.ArgumentParser:
    """The peer's flags, and --mode."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--assets", default=str(Path(__file__).resolve().parents[2].parent / "shared/yardstick/sort"))
    p.add_argument("--model", default="sft30")
    for name, default in dict(steps=150, prompts=16, group=8, seed=0, threads=2, eval_every=15, eval_n=500).items():
        p.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    p.add_argument("--max-new-tokens", type=int, default=8)
    p.add_argument("--fixed-len", type=int, default=0)
    p.add_argument("--lr", type=float, default=1e-4)
    p.add_argument("--beta", type=float, default=0.0)
    p.add_argument("--mode", choices=["inline", "local"], default="inline")
    p.add_argument("--staleness", type=int, default=0)
    p.add_argument("--train-flat", type=int, default=0, help="1: train on groups without signal too")
    p.add_argument("--tokens-per-micro-batch", type=int, default=2048)
    p.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of the configuration")
    p.add_argument("--keep", default="", help="keep the run in this folder, with its last checkpoint")
    p.add_argument("--dump", default="", help="write every metric of every step to this file")
    return p


def configuration(a: argparse.Namespace, folder: str) -> dict[str, Any]:
    """The yardstick's run as an rlft configuration."""
    assets = Path(a.assets)
    generator: dict[str, Any] = {"max_new_tokens": a.fixed_len or a.max_new_tokens, "max_concurrent": 1024}
    if a.fixed_len:
        generator["ignore_eos"] = True
    config: dict[str, Any] = {
        "run": {"name": "yardstick", "dir": folder, "seed": a.seed},
        "model": {"path": str(assets / a.model)},
        "data": {"path": str(assets / "train.jsonl")},
        "algorithm": {
            "group_size": a.group, "kl_coef": a.beta, "skip_flat_groups": not (a.fixed_len or a.train_flat),
        },
        "generator": generator,
        "rewards": {"functions": [{"function": "exact_match"}]},
        "learner": {"lr": a.lr, "tokens_per_micro_batch": a.tokens_per_micro_batch},
        "loop": {"steps": a.steps, "prompts_per_step": a.prompts, "max_staleness": a.staleness},
        "tracking": {"tensorboard": False, "rollouts_every": 0},
        "cluster": {"mode": a.mode, "threads": a.threads},
    }  # fmt: skip
    if not any(setting.startswith("algorithm.type") for setting in a.set):
        config["algorithm"]["loss_average"] = "sequence"  # as the peer's
    if a.eval_n:
        config["evaluation"] = {"path": str(assets / "eval.jsonl"), "max_rows": a.eval_n, "every": a.eval_every}
    return config


class Meter:
    """Wall and CPU seconds of this process and everything under it, with pauses; and the largest memory of all of them
    together, sampled at each reading."""

    def __init__(self) -> None:
        import psutil

        self._me = psutil.Process()
        self._before: tuple[float, float] | None = None
        self.wall = self.cpu = self.peak_mb = 0.0

    def _read(self) -> tuple[float, float]:
        import psutil

        cpu = resource.getrusage(resource.RUSAGE_SELF)
        total = cpu.ru_utime + cpu.ru_stime
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for child in self._me.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                times = child.cpu_times()
                total += times.user + times.system
                memory += child.memory_info().rss / 2**20
        self.peak_mb = max(self.peak_mb, memory)
        return time.perf_counter(), total

    def on(self) -> None:
        """Go on charging."""
        self._before = self._read()

    def off(self) -> None:
        """Stop charging."""
        assert self._before is not None
        now = self._read()
        self.wall += now[0] - self._before[0]
        self.cpu += now[1] - self._before[1]
        self._before = None


def main() -> None:
    """Run and print."""
    a = parser().parse_args()
    os.environ.update(OMP_NUM_THREADS=str(a.threads), OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
    from actors import launch
    from rlft.config.load import load_config
    from rlft.evaluation.accuracy import Evaluation
    from rlft.runs.metrics import read_metrics
    from rlft.runs.run import Run

    meter, curve, rewards = Meter(), list[list[float]](), list[float]()
    start = [0.0]
    restore, evaluate, log_step = Run.restore, Evaluation.__call__, Run.log_step

    def began(self: Run, *roles: Any) -> Any:
        result = restore(self, *roles)
        start[0] = time.perf_counter() - START
        meter.on()
        return result

    def unpaid(self: Evaluation, *args: Any, **kwargs: Any) -> Any:
        meter.off()
        metrics = evaluate(self, *args, **kwargs)
        curve.append([kwargs["version"], metrics["eval/accuracy"], _mean(rewards[-10:]), meter.wall, meter.cpu])
        meter.on()
        return metrics

    def counted(self: Run, step: int, metrics: Any, *args: Any, **kwargs: Any) -> None:
        rewards.append(metrics["reward/mean"])
        log_step(self, step, metrics, *args, **kwargs)
        if step == a.steps:
            meter.off()
            meter.on()

    Run.restore, Evaluation.__call__, Run.log_step = began, unpaid, counted  # type: ignore[method-assign]
    if not a.keep:
        Run.save_is_due = lambda self, step: False  # type: ignore[method-assign]  # the peer saves nothing either
    with contextlib.ExitStack() as stack:
        folder = a.keep or stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        launch.train(load_config(configuration(a, folder), [f"--{setting}" for setting in a.set]))
        meter.off()
        steps = read_metrics(Path(folder) / "yardstick/metrics.jsonl")
        if a.dump:
            Path(a.dump).write_text(json.dumps(steps))
    samples = a.steps * a.prompts * a.group
    tokens = sum(s["completion/length_mean"] * a.prompts * a.group for s in steps)
    split = {k[5:-2]: round(sum(s.get(k, 0.0) for s in steps), 3) for k in steps[-1] if k.startswith("time/")}
    print("RESULT " + json.dumps({
        "bench": "rlft yardstick", "args": vars(a), "samples": samples, "completion_tokens": round(tokens),
        "start_s": round(start[0], 2), "wall_s": round(meter.wall, 3), "cpu_s": round(meter.cpu, 3),
        "samples_per_s": round(samples / meter.wall, 1), "samples_per_cpu_s": round(samples / meter.cpu, 1),
        "tokens_per_cpu_s": round(tokens / meter.cpu, 1), "peak_rss_mb": round(meter.peak_mb, 1), "split_s": split,
        "acc_start": curve[0][1] if curve else None, "acc_end": curve[-1][1] if curve else None,
        "curve_step_acc_reward_wall_cpu": [[round(x, 4) for x in row] for row in curve],
        "loadavg": round(os.getloadavg()[0], 1),
    }))  # fmt: skip


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


if __name__ == "__main__":
    main()
