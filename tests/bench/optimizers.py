"""Every optimizer on the yardstick: what it learns in the same updates, what it keeps in memory, what an update costs.

    python -m tests.bench.optimizers [--only adamw lion] [--steps 80] [--lrs 3e-4 1e-3 3e-3] [--assets DIR]

SFT from the random model, 64 examples an update, one float32 rank with ZeRO 0, learning rate constant after 10 updates
of warm-up, no weight decay. Each learning rate is a run and a line. Loss: mean of the last 10 updates. Accuracy: the
likeliest completions of 500 held-out prompts. State: tensors that the optimizer keeps, measured when training ends.
Seconds: medians over the updates, of CPU time on one thread, for the whole update and for the optimizer's step alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rlft.config.optimizers import OPTIMIZERS
from tests.bench.from_data import write_rows
from tests.bench.process import ROOT, result_of

LRS = {"adamw": [3e-4, 1e-3, 3e-3], "lion": [1e-4, 3e-4], "adafactor": [1e-2, 3e-2], "muon": [1e-3, 3e-3]}


def one(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run in this process."""
    os.environ.update(OMP_NUM_THREADS=str(a.threads), OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
    from actors import launch
    from actors.evaluate import evaluate
    from rlft.config.load import load_config
    from rlft.engines.deepspeed import ZeroEngine
    from rlft.engines.learner import RankedLearner
    from rlft.runs.metrics import read_metrics

    name, assets, lr = a.only[0], Path(a.assets), a.lrs[0]
    write_rows(assets, folder, 0)
    config = {
        "run": {"name": name, "dir": str(folder / "runs"), "seed": 0},
        "model": {"path": str(assets / "init")},
        "data": {"path": str(folder / "train.jsonl")},
        "algorithm": {"type": "sft"},
        "learner": {"optimizer": name, "lr": lr, "warmup_steps": min(10, a.steps - 1)},
        "loop": {"steps": a.steps, "prompts_per_step": 64},
        "tracking": {"tensorboard": False},
        "cluster": {"mode": "inline", "threads": a.threads},
    }
    seconds, step_seconds, engines = list[float](), list[float](), list[Any]()
    update, step = RankedLearner.update, ZeroEngine.step

    def timed(self: Any, *args: Any) -> Any:
        began = time.process_time()
        metrics = update(self, *args)
        seconds.append(time.process_time() - began)
        return metrics

    def seen(self: Any, lr: float) -> Any:
        engines[:] = [self]
        began = time.process_time()
        outcome = step(self, lr)
        step_seconds.append(time.process_time() - began)
        return outcome

    RankedLearner.update, ZeroEngine.step = timed, seen  # type: ignore[method-assign]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        result = launch.train(load_config(config))
        words = ["--evaluation.path", str(assets / "eval.jsonl"), "--evaluation.max_rows", "500"]
        words += ["--generator.max_new_tokens", "8", "--rewards.functions", "[{function: exact_match}]"]
        accuracy = evaluate(str(result.folder), words)["eval/accuracy"]
    losses = [row["policy/loss"] for row in read_metrics(result.folder / "metrics.jsonl")]
    parameters = sum(p.numel() for p in engines[0].module.parameters() if p.requires_grad)
    return {
        "bench": "optimizers", "optimizer": name, "lr": lr, "steps": a.steps, "accuracy": accuracy,
        "loss": round(statistics.mean(losses[-10:]), 4), "state_bytes": state_bytes(engines[0]._engine.optimizer),
        "parameters": parameters, "update_s": round(statistics.median(seconds), 4),
        "step_s": round(statistics.median(step_seconds), 4),
        "loadavg": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def state_bytes(optimizer: Any) -> int:
    """Of the tensors that an optimizer keeps for its weights, quantization tables that weights share counted once."""
    import torch

    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a run."""
    lines = ["| optimizer | lr | loss | accuracy | state, MB | bytes a weight | CPU s an update | of it the step |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| `{r['optimizer']}` | {r['lr']:g} | {r['loss']:.3f} | {r['accuracy']:.3f} | {r['state_bytes'] / 1e6:.2f} | "
        f"{r['state_bytes'] / r['parameters']:.2f} | {r['update_s']:.3f} | {r['step_s']:.4f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    p.add_argument("--lrs", type=float, nargs="+", default=[], help="instead of those that are known to work")
    p.add_argument("--steps", type=int, default=80)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--assets", default=str(ROOT.parent / "shared/yardstick/sort"))
    p.add_argument("--here", action="store_true", help="one run in this process")
    a = p.parse_args()
    if a.here:
        with tempfile.TemporaryDirectory() as folder:
            print("RESULT " + json.dumps(one(a, Path(folder))))
        return
    rows = []
    for name in a.only:
        for lr in a.lrs or LRS.get(name, [1e-3]):
            words = ["--here", "--only", name, "--lrs", str(lr), "--steps", str(a.steps), "--threads", str(a.threads)]
            rows.append(result_of("tests.bench.optimizers", [*words, "--assets", a.assets], f"{name}, {lr:g}"))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
