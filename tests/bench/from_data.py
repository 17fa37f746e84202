"""Learning from data on the yardstick: accuracy before and after, and rows per CPU second.

    python -m tests.bench.from_data [--only dpo reward] [--seeds 0 1 2] [--assets DIR]

The peer's settings (its sft.py, dpo.py, reward.py): SFT from the random model, 400 steps of 128 examples, lr 1e-3;
pairs from the warm start, 100 steps of 64, lr 1e-4, whose rejected answer is the right one with another digit in one
place; the reward model 150 steps of 64 pairs, lr 5e-4. Prints one JSON line for each run and at the end a table. CPU
seconds are those of the training loop, all threads; loading and evaluation are not charged. Accuracy is that of the
likeliest completions of 500 held-out prompts; for the reward model that of 500 held-out pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.process import ROOT, result_of

PAIRS = {"start": "sft30", "rows": "pairs", "steps": 100, "size": 64, "lr": 1e-4}
RUNS: dict[str, dict[str, Any]] = {
    "sft": {"start": "init", "rows": "train", "steps": 400, "size": 128, "lr": 1e-3},
    "dpo": PAIRS,
    "ipo": PAIRS,
    "cpo": PAIRS,
    "orpo": PAIRS,
    "simpo": PAIRS,
    "kto": {**PAIRS, "rows": "labels", "size": 128},
    "reward": {**PAIRS, "steps": 150, "lr": 5e-4},
}


def write_rows(assets: Path, folder: Path, seed: int) -> None:
    """train.jsonl for SFT; pairs.jsonl, held_out_pairs.jsonl and labels.jsonl with corrupted answers, as the peer's."""
    draw = random.Random(seed)

    def corrupt(text: str) -> str:
        digits = list(text)
        at = draw.randrange(len(digits))
        digits[at] = str((int(digits[at]) + draw.randrange(1, 10)) % 10)
        return "".join(digits)

    for source, name in (("train", "pairs"), ("eval", "held_out_pairs")):
        rows = [json.loads(line) for line in (assets / f"{source}.jsonl").read_text().splitlines()]
        pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": corrupt(r["answer"])} for r in rows]
        _write(folder / f"{name}.jsonl", pairs)
        if source == "train":
            _write(folder / "train.jsonl", [{"prompt": r["prompt"], "completion": r["answer"]} for r in rows])
            good = [draw.random() < 0.5 for _ in rows]
            _write(folder / "labels.jsonl", [
                {"prompt": p["prompt"], "completion": p["chosen" if ok else "rejected"], "label": ok}
                for p, ok in zip(pairs, good, strict=True)
            ])  # fmt: skip


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def one(a: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    """One run in this process."""
    os.environ.update(OMP_NUM_THREADS=str(a.threads), OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
    from actors import launch
    from actors.evaluate import evaluate
    from rlft.config.load import load_config
    from rlft.evaluation.held_out import HeldOut
    from rlft.runs.metrics import read_metrics
    from rlft.runs.run import Run
    from tests.bench.yardstick import Meter

    plan, assets, seed = RUNS[name], Path(a.assets), a.seeds[0]
    write_rows(assets, folder, seed)
    steps = a.steps or plan["steps"]
    config: dict[str, Any] = {
        "run": {"name": name, "dir": str(folder / "runs"), "seed": seed},
        "model": {"path": str(assets / plan["start"])},
        "data": {"path": str(folder / f"{plan['rows']}.jsonl")},
        "algorithm": {"type": name},
        "learner": {"lr": plan["lr"]},
        "loop": {"steps": steps, "prompts_per_step": plan["size"]},
        "tracking": {"tensorboard": False},
        "cluster": {"mode": "inline", "threads": a.threads},
    }
    if plan["rows"] == "pairs":
        config["evaluation"] = {"path": str(folder / "held_out_pairs.jsonl"), "max_rows": 500}
    meter = Meter()
    restore, save, measure = Run.restore, Run.save, HeldOut.__call__

    def began(self: Run, *roles: Any) -> Any:
        result = restore(self, *roles)
        meter.on()
        return result

    def unpaid(self: HeldOut, *args: Any) -> Any:
        meter.off()
        metrics = measure(self, *args)
        meter.on()
        return metrics

    def unpaid_save(self: Run, *args: Any, **kwargs: Any) -> None:
        meter.off()
        save(self, *args, **kwargs)
        meter.on()

    Run.restore, HeldOut.__call__, Run.save = began, unpaid, unpaid_save  # type: ignore[method-assign]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        result = launch.train(load_config(config, [f"--{setting}" for setting in a.set]))
        meter.off()
        pairs = read_metrics(result.folder / "eval.jsonl") if plan["rows"] == "pairs" else []
        greedy = None
        if name != "reward":
            words = ["--evaluation.path", str(assets / "eval.jsonl"), "--evaluation.max_rows", "500"]
            words += ["--generator.max_new_tokens", "8", "--rewards.functions", "[{function: exact_match}]"]
            greedy = evaluate(str(result.folder), words)["eval/accuracy"]
    rows = steps * plan["size"]
    return {
        "bench": "from_data", "algorithm": name, "seed": seed, "rows": rows, "greedy": greedy,
        "pairs_before": pairs[0]["eval/pair_accuracy"] if pairs else None,
        "pairs_after": pairs[-1]["eval/pair_accuracy"] if pairs else None,
        "wall_s": round(meter.wall, 2), "cpu_s": round(meter.cpu, 2),
        "rows_per_cpu_s": round(rows / meter.cpu, 1), "rows_per_s": round(rows / meter.wall, 1),
        "peak_rss_mb": round(meter.peak_mb, 1), "loadavg": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line an algorithm."""
    lines = ["| algorithm | greedy accuracy | pairs right | rows per CPU second |", "|---|---|---|---|"]
    for name in dict.fromkeys(row["algorithm"] for row in rows):
        mine = [row for row in rows if row["algorithm"] == name]
        cells = []
        for key in ("greedy", "pairs_after"):
            values = [row[key] for row in mine if row[key] is not None]
            each = ", ".join(f"{v:.3f}" for v in values)
            cells.append(f"{statistics.median(values):.3f} ({each})" if values else "")
        speed = statistics.median(row["rows_per_cpu_s"] for row in mine)
        lines.append(f"| `{name}` | {cells[0]} | {cells[1]} | {speed:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=0, help="instead of the peer's")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--assets", default=str(ROOT.parent / "shared/yardstick/sort"))
    p.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys, for every run")
    p.add_argument("--here", action="store_true", help="one run in this process")
    a = p.parse_args()
    if a.here:
        with tempfile.TemporaryDirectory() as folder:
            print("RESULT " + json.dumps(one(a, a.only[0], Path(folder))))
        return
    rows = []
    for name in a.only:
        for seed in a.seeds:
            words = ["--here", "--only", name, "--seeds", str(seed)]
            words += ["--steps", str(a.steps), "--threads", str(a.threads), "--assets", a.assets, "--set", *a.set]
            rows.append(result_of("tests.bench.from_data", words, f"{name}, seed {seed}"))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
