"""RLHF from end to end on the yardstick's task: SFT, a reward model from pairs, PPO against it. Accuracy after each.

    python -m tests.bench.rlhf [--seeds 0 1 2] [--assets DIR]

SFT: 120 steps of 128 examples from the random model. Pairs: of 8 samples of the SFT model for each of 4000 prompts up
to 3 right ones, each over a wrong one, as people would have said. Reward model: one pass over them, 64 a step, from the
SFT model. PPO: 60 steps of 128 samples, two updates each, rewarded by the reward model alone, with a KL penalty. Greedy
accuracy is on 500 held-out prompts, that of the reward model on the last 300 pairs. Prints one JSON line a seed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.process import ROOT, result_of


def base(a: argparse.Namespace, folder: Path, name: str, model: str, seed: int) -> dict[str, Any]:
    """What the three runs share."""
    return {
        "run": {"name": name, "dir": str(folder / "runs"), "seed": seed}, "model": {"path": model},
        "tracking": {"tensorboard": False}, "cluster": {"mode": "inline", "threads": a.threads},
    }  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sampled_pairs(checkpoint: str, exact: list[str]) -> list[dict[str, Any]]:
    """A right and a wrong sample of the checkpoint's policy for each training prompt that has both."""
    from actors import launch
    from actors.inline import InlineRewarder
    from actors.targets import find_target, serving
    from rewards.combine import RewardSet

    more = ["--evaluation.path", exact[1].replace("eval.jsonl", "train.jsonl"), "--evaluation.max_rows", "4000"]
    more += ["--evaluation.samples_per_prompt", "8", "--evaluation.temperature", "1.0"]
    target = find_target(Path(checkpoint), [*exact[4:], *more, "--generator.max_concurrent", "1024"], "evaluate")
    evaluation = launch.load_evaluation(target.config, target.tokenizer())
    assert evaluation is not None
    with serving(target, None) as generator:
        evaluation(generator, InlineRewarder(RewardSet(target.config.rewards)), version=target.version)
    pairs = []
    for group in evaluation.last:
        right = [s.text for s in group.samples if s.reward == 1]
        wrong = [s.text for s in group.samples if s.reward == 0 and s.text]
        pairs += [
            {"prompt": group.prompt.text, "chosen": c, "rejected": r} for c, r in zip(right[:3], wrong, strict=False)
        ]
    return pairs


def one(a: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """The recipe in this process."""
    os.environ.update(OMP_NUM_THREADS=str(a.threads), OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
    from actors import launch
    from actors.evaluate import evaluate
    from rlft.config.load import load_config
    from rlft.runs.metrics import read_metrics

    assets = Path(a.assets)
    examples = [json.loads(line) for line in (assets / "train.jsonl").read_text().splitlines()]
    write(folder / "train.jsonl", [{"prompt": r["prompt"], "completion": r["answer"]} for r in examples])
    exact = ["--evaluation.path", str(assets / "eval.jsonl"), "--evaluation.max_rows", "500", "--rewards.functions"]
    exact += ["[{function: exact_match}]", "--generator.max_new_tokens", "8"]

    def run(config: dict[str, Any]) -> str:
        done = launch.train(load_config(config))
        return str(done.checkpoint)

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        sft = run(base(a, folder, "sft", str(assets / "init"), seed) | {
            "data": {"path": str(folder / "train.jsonl")}, "algorithm": {"type": "sft"}, "learner": {"lr": 1e-3},
            "loop": {"steps": a.sft_steps, "prompts_per_step": 128},
        })  # fmt: skip
        before = evaluate(sft, exact)["eval/accuracy"]
        pairs = sampled_pairs(sft, exact)
        write(folder / "pairs.jsonl", pairs[:-300])
        write(folder / "held_out_pairs.jsonl", pairs[-300:])
        judge = run(base(a, folder, "reward", sft, seed) | {
            "data": {"path": str(folder / "pairs.jsonl")}, "algorithm": {"type": "reward"},
            "learner": {"lr": a.reward_lr},
            "evaluation": {"path": str(folder / "held_out_pairs.jsonl"), "max_rows": 500},
            "loop": {"steps": len(pairs) // 64, "prompts_per_step": 64},
        })  # fmt: skip
        right = read_metrics(folder / "runs" / "reward" / "eval.jsonl")[-1]["eval/pair_accuracy"]
        ppo = run(base(a, folder, "ppo", sft, seed) | {
            "data": {"path": str(assets / "train.jsonl")}, "learner": {"lr": 1e-4}, "critic": {"lr": 1e-3},
            "algorithm": {"type": "ppo", "num_minibatches": 2, "kl_coef": a.kl},
            "rewards": {"functions": [{"function": "reward_model", "args": {"path": judge}}]},
            "generator": {"max_new_tokens": 8, "max_concurrent": 1024},
            "loop": {"steps": a.steps, "prompts_per_step": 128},
        })  # fmt: skip
        after = evaluate(ppo, exact)["eval/accuracy"]
    steps = read_metrics(folder / "runs" / "ppo" / "metrics.jsonl")
    return {
        "bench": "rlhf", "seed": seed, "greedy_sft": before, "pairs": len(pairs), "pairs_right": round(right, 3),
        "greedy_ppo": after,
        "reward_first": round(steps[0]["reward/mean"], 3), "reward_last": round(steps[-1]["reward/mean"], 3),
        "ppo_s": round(sum(s["time/step_s"] for s in steps), 1), "loadavg": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main() -> None:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--sft-steps", type=int, default=120)
    p.add_argument("--kl", type=float, default=0.5)
    p.add_argument("--reward-lr", type=float, default=3e-4)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--assets", default=str(ROOT.parent / "shared/yardstick/sort"))
    p.add_argument("--here", action="store_true", help="one seed in this process")
    a = p.parse_args()
    if a.here:
        with tempfile.TemporaryDirectory() as folder:
            print("RESULT " + json.dumps(one(a, a.seeds[0], Path(folder))))
        return
    for seed in a.seeds:
        words = ["--here", "--seeds", str(seed), "--steps", str(a.steps)]
        words += [
            "--sft-steps",
            str(a.sft_steps),
            "--kl",
            str(a.kl),
            "--reward-lr",
            str(a.reward_lr),
            "--threads",
            str(a.threads),
        ]
        words += ["--assets", a.assets]
        print(json.dumps(result_of("tests.bench.rlhf", words, f"seed {seed}")), flush=True)


if __name__ == "__main__":
    main()
