"""What is trained, by how samples are drawn: the curves of docs/adapters.md.

    python -m tests.bench.curves [--only lora qlora] [--engines transformers vllm] [--steps 100] [--seed 0]

GRPO on the yardstick from its warm start, 128 samples an update, a learning rate of 1e-4 for full weights and 1e-3 for
adapters: greedy accuracy on 500 rows as it goes, and the bytes of the weight sync after an update (the largest; that
before the first update is not counted). Each run is in a process of its own and a JSON line; then the table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.process import ROOT, result_of

TRAINED: dict[str, list[str]] = {
    "full": [],
    "lora": ["model.adapter.type=lora"],
    "dora": ["model.adapter.type=dora"],
    "qlora": ["model.adapter.type=lora", "model.quantization.type=nf4"],
}


def run(a: argparse.Namespace, trained: str, engine: str) -> dict[str, Any]:
    """The curve of one run and what its syncs moved."""
    lr = 1e-4 if trained == "full" else 1e-3
    words = ["--assets", a.assets, "--steps", str(a.steps), "--seed", str(a.seed), "--lr", str(lr), "--threads", "1"]
    words += ["--eval-every", str(a.eval_every), "--eval-n", "500"]
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "metrics.json"
        words += ["--dump", str(dump), "--set", f"generator.engine={engine}", *TRAINED[trained]]
        result = result_of("tests.bench.yardstick", words, f"{trained}, {engine}")
        moved = [int(step["sync/bytes"]) for step in json.loads(dump.read_text()) if "sync/bytes" in step]
    curve = [[int(row[0]), row[1]] for row in result["curve_step_acc_reward_wall_cpu"]]
    return {
        "bench": "curves", "trained": trained, "engine": engine, "seed": a.seed, "lr": lr, "curve": curve,
        "sync_bytes": max(moved), "cpu_s": result["cpu_s"],
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a run."""
    steps = [step for step, _ in rows[0]["curve"]]
    lines = ["| trained, drawn by | " + " | ".join(str(step) for step in steps) + " | bytes of a sync |"]
    lines.append("|" + "---|" * (len(steps) + 2))
    for row in rows:
        cells = [f"{row['trained']}, {row['engine']}", *(f"{accuracy:.3f}" for _, accuracy in row["curve"])]
        lines.append("| " + " | ".join([*cells, f"{row['sync_bytes']:,}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    engines = ["transformers", "vllm"]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", default=list(TRAINED), choices=list(TRAINED))
    p.add_argument("--engines", nargs="+", default=engines, choices=engines)
    for name, default in {"steps": 100, "eval-every": 20, "seed": 0}.items():
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--assets", default=str(ROOT.parent / "shared/yardstick/sort"))
    a = p.parse_args()
    rows = []
    for trained in a.only:
        for engine in a.engines:
            rows.append(run(a, trained, engine))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
