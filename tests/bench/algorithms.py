"""Every algorithm on the yardstick: the same model, the same start, the same number of samples.

    python -m tests.bench.algorithms [--only ppo rloo] [--seeds 0 1 2] [--steps 150] [--assets DIR] [--out FILE]

150 steps of 128 samples of at most 8 tokens (tests/bench/yardstick.py, one after the other), learning rate 1e-4. Prints
one JSON line for each run and at the end a table: greedy accuracy on 500 held-out questions, sampled accuracy (mean
reward of the last 10 steps), medians and all seeds, and samples per CPU second. The teacher of `distill` is the model
that a GRPO run with another seed makes here first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.process import ROOT, result_of

ALONE = ["--prompts", "128", "--group", "1"]  # no groups: as many samples from as many prompts
KEYS = ("samples_per_cpu_s", "samples_per_s", "cpu_s", "wall_s", "peak_rss_mb", "loadavg")
RUNS: dict[str, list[str]] = {  # flags of the yardstick, and behind --set keys of the configuration
    "grpo": ["--set"],
    "dr_grpo": ["--set"],
    "dapo": ["--set"],
    "gspo": ["--set"],
    "cispo": ["--set"],
    "rloo": ["--set"],
    "reinforce_pp": [*ALONE, "--set"],
    "reinforce_pp_baseline": ["--set"],
    "ppo": [*ALONE, "--set", "critic.lr=1e-3", "algorithm.num_minibatches=2"],
    "rft": ["--set"],
    "online_dpo": ["--set"],
    "distill": [*ALONE, "--set", "algorithm.advantage_scale=none"],
    "bnpo": ["--set"],
    "luspo": ["--set"],
    "sapo": ["--set"],
    "vespo": ["--set"],
    "reinforce": [*ALONE, "--set"],
}


def run(a: argparse.Namespace, name: str, seed: int, more: list[str]) -> dict[str, Any]:
    """One run of the yardstick; its RESULT."""
    steps = str(a.steps)
    words = ["--assets", a.assets, "--steps", steps, "--lr", "1e-4", "--eval-every", steps, "--eval-n", "500"]
    words += ["--seed", str(seed), *RUNS[name], f"algorithm.type={name}", *more]
    return result_of("tests.bench.yardstick", words, f"{name}, seed {seed}")


def make_teacher(a: argparse.Namespace, folder: str) -> str:
    """The checkpoint of a GRPO run."""
    run(a, "grpo", 9, ["tracking.tensorboard=false", "--keep", folder])
    return str(next(Path(folder).glob("*/checkpoints/step-*")))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line an algorithm."""
    lines = [
        "| algorithm | greedy: median, seeds | sampled: median, seeds | samples per CPU second |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["algorithm"] for row in rows):
        mine = [row for row in rows if row["algorithm"] == name]
        cells = []
        for key in ("greedy", "sampled"):
            values = [row[key] for row in mine]
            cells.append(f"{statistics.median(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})")
        speed = statistics.median(row["samples_per_cpu_s"] for row in mine)
        lines.append(f"| `{name}` | {cells[0]} | {cells[1]} | {speed:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=150)
    p.add_argument("--assets", default=str(ROOT.parent / "shared/yardstick/sort"))
    p.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys, for every run")
    a = p.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        teacher = make_teacher(a, folder) if "distill" in a.only else ""
        for name in a.only:
            for seed in a.seeds:
                more = [f"teacher.path={teacher}"] if name == "distill" else []
                result = run(a, name, seed, [*more, *a.set])
                last = result["curve_step_acc_reward_wall_cpu"][-1]
                rows.append({
                    "bench": "algorithms", "algorithm": name, "seed": seed, "greedy": result["acc_end"],
                    "sampled": last[2], "start": result["acc_start"],
                    **{key: result[key] for key in KEYS},
                })  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
