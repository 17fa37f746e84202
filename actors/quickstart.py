"""`rlft quickstart`: from nothing to a model that has learned something, offline, in a few minutes.

Makes a small model, warms it up with SFT on a generated task (sorting digits) and then trains it with GRPO. Both are
ordinary runs with ordinary configurations, which are left in the folder to be read and repeated.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from random import Random

from actors import launch
from rlft.config import Config
from rlft.config.load import load_config
from rlft.runs.console import readable_seconds
from rlft.samples import Sample

_NUM_DIGITS = 6
_NUM_TRAIN, _NUM_EVAL = 8000, 200


def main(directory: str | None = None, mode: str = "local", seed: int = 0) -> None:
    """Run it. `directory`: where to put everything (default: the next free runs/quickstart-N)."""
    begin = time.monotonic()
    folder = Path(directory) if directory else _free_folder(Path("runs"))
    folder.mkdir(parents=True, exist_ok=True)
    _say(f"rlft quickstart in {folder}: a model of 1.6 million weights learns to sort {_NUM_DIGITS} digits.")
    _say("The task: 528130= -> 012358. Reward 1 for exactly the right answer, 0 otherwise.\n")
    train, held_out = write_task(folder, seed)
    _say("1 of 2: supervised warm-up, so that there is something to reinforce")
    warm = launch.train(load_config(_warm_up(folder, train, mode, seed)))
    _say("\n2 of 2: GRPO with a verifiable reward")
    assert warm.checkpoint is not None
    config = load_config(_reinforce(folder, warm.checkpoint, train, held_out, mode, seed))
    result = launch.train(config)
    _report(folder, result, config, time.monotonic() - begin)


def write_task(folder: Path, seed: int) -> tuple[Path, Path]:
    """Rows {"prompt": "528130=", "answer": "012358"} in folder/train.jsonl and folder/eval.jsonl; none in both."""
    random, seen = Random(seed), set[str]()
    while len(seen) < _NUM_TRAIN + _NUM_EVAL:
        seen.add("".join(random.choice("0123456789") for _ in range(_NUM_DIGITS)))
    rows = [json.dumps({"prompt": f"{digits}=", "answer": "".join(sorted(digits))}) for digits in sorted(seen)]
    random.shuffle(rows)
    paths = folder / "train.jsonl", folder / "eval.jsonl"
    for path, part in zip(paths, (rows[_NUM_EVAL:], rows[:_NUM_EVAL]), strict=True):
        path.write_text("\n".join(part) + "\n")
    return paths


def _warm_up(folder: Path, train: Path, mode: str, seed: int) -> dict:
    return {
        "run": {"name": "1-sft", "dir": str(folder), "seed": seed},
        "model": {"tiny": {"vocabulary": "digits", "max_length": 64}},
        "data": {"path": str(train), "completion_column": "answer"},
        "algorithm": {"type": "sft"},
        "learner": {"lr": 1e-3, "warmup_steps": 10},
        "loop": {"steps": 50, "prompts_per_step": 64},
        "cluster": {"mode": mode},
    }


def _reinforce(folder: Path, start: Path, train: Path, held_out: Path, mode: str, seed: int) -> dict:
    return {
        "run": {"name": "2-grpo", "dir": str(folder), "seed": seed},
        "model": {"path": str(start)},
        "data": {"path": str(train)},
        "algorithm": {"type": "grpo", "group_size": 8, "kl_coef": 0.001},
        "generator": {"max_new_tokens": 8, "max_concurrent": 1600},
        "rewards": {"functions": [{"function": "exact_match"}]},
        "learner": {"lr": 2e-4, "schedule": "linear", "min_lr_ratio": 0.1},
        "loop": {"steps": 240, "prompts_per_step": 16, "save_every": 80},
        "evaluation": {"path": str(held_out), "max_rows": _NUM_EVAL},
        "cluster": {"mode": mode},
    }


def _free_folder(parent: Path) -> Path:
    number = 1
    while (parent / f"quickstart-{number}").exists():
        number += 1
    return parent / f"quickstart-{number}"


def _report(folder: Path, result: launch.RunResult, config: Config, seconds: float) -> None:
    from rlft.runs.metrics import read_metrics

    evaluations = read_metrics(result.folder / "eval.jsonl")
    steps = read_metrics(result.folder / "metrics.jsonl")
    sampled = [sum(m["reward/mean"] for m in part) / len(part) for part in (steps[:5], steps[-5:])]
    _say(f"\nDone in {readable_seconds(seconds)}. Accuracy on {_NUM_EVAL} held-out prompts and in training:\n")
    _say("                 before   after")
    _say(f"  greedy          {evaluations[0]['eval/accuracy']:6.3f}  {evaluations[-1]['eval/accuracy']:6.3f}")
    _say(f"  sampled         {sampled[0]:6.3f}  {sampled[-1]:6.3f}   (mean reward of the first and last 5 steps)\n")
    _say("Three completions of the last evaluation:")
    for group in result.examples[:3]:
        _say(f"  {group.prompt.text} -> {_shown(group.samples[0])}")
    run, rlft = Path(os.path.relpath(result.folder)), _command()
    _say(f"\nRun folder      {run}   (config.yaml, metrics.jsonl, rollouts/, checkpoints/, tensorboard/)")
    _say(f"Trained model   {os.path.relpath(str(result.checkpoint))}   (Hugging Face format)")
    _say("\nWhat to type next:")
    _say(f"  {rlft} eval {run} --samples 8 --temperature 1        # pass@8 of the trained model")
    _say(f"  {rlft} train {run}/config.yaml --run.name again --loop.steps 200 --algorithm.kl_coef 0")
    _say(f"  {rlft[:-4]}tensorboard --logdir {folder}")
    _say(f"  {rlft} config show configs/grpo_gsm8k.yaml           # a real model on real questions")


def _command() -> str:
    """How to call rlft from here: by its name where that works, else by its path in the virtual environment."""
    return "rlft" if shutil.which("rlft") else os.path.relpath(Path(sys.executable).parent / "rlft")


def _shown(sample: Sample) -> str:
    return f"{sample.text}   reward {'none' if sample.reward is None else f'{sample.reward:g}'}"


def _say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
