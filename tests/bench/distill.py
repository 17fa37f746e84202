"""Both distillations on the yardstick: a student from random weights learns from a teacher that sorts well.

    python -m tests.bench.distill [--seeds 0 1 2] [--assets DIR]

The teacher: SFT, 400 steps of 128, lr 1e-3. `kd`: the teacher's distributions on the training rows, 300 steps of 128.
`sequence`: the teacher behind a real HTTP endpoint answers 3000 prompts (`rlft synth distill`), what `exact_match`
accepts is kept, then SFT, 300 steps of 128. Greedy accuracy on 500 held-out prompts. Prints one JSON line a seed.
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

JUST_THE_PROMPT = "{{ messages[-1]['content'] }}"  # chat template of a teacher that was trained on text


def one(a: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Teacher and both students in this process."""
    os.environ.update(OMP_NUM_THREADS=str(a.threads), OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
    from actors import launch
    from actors.evaluate import evaluate
    from rlft.cli import main as rlft
    from rlft.config.load import load_config
    from rlft.runs.metrics import read_metrics
    from tests.bench.rlhf import base, write
    from tests.model_server import model_server

    assets = Path(a.assets)
    examples = [json.loads(line) for line in (assets / "train.jsonl").read_text().splitlines()]
    write(folder / "train.jsonl", [{"prompt": r["prompt"], "completion": r["answer"]} for r in examples])
    write(folder / "prompts.jsonl", examples[: a.prompts])
    exact = ["--evaluation.path", str(assets / "eval.jsonl"), "--evaluation.max_rows", "500", "--rewards.functions"]
    exact += ["[{function: exact_match}]", "--generator.max_new_tokens", "8"]

    def run(name: str, steps: int, file: str, algorithm: dict[str, Any], **more: Any) -> tuple[str, float]:
        done = launch.train(load_config(base(a, folder, name, str(assets / "init"), seed) | {
            "data": {"path": str(folder / file)}, "algorithm": algorithm, "learner": {"lr": 1e-3},
            "loop": {"steps": steps, "prompts_per_step": 128},
        } | more))  # fmt: skip
        return str(done.checkpoint), float(evaluate(str(done.checkpoint), exact)["eval/accuracy"])

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        teacher, good = run("teacher", 400, "train.jsonl", {"type": "sft"})
        _, by_logits = run("kd", a.steps, "train.jsonl", {"type": "kd"}, teacher={"path": teacher})
        steps = read_metrics(folder / "runs" / "kd" / "metrics.jsonl")
        (Path(teacher) / "chat_template.jinja").write_text(JUST_THE_PROMPT)
        job = {
            "run": {"out": str(folder / "made.jsonl")}, "data": {"path": str(folder / "prompts.jsonl")},
            "distill": {"num_answers": 1}, "rewards": {"functions": [{"function": "exact_match"}]},
            "endpoint": {"model": "teacher", "max_tokens": 8, "max_concurrent": 2},
        }  # fmt: skip
        with model_server(Path(teacher)) as server:
            job["endpoint"]["base_url"] = server.url
            (folder / "job.yaml").write_text(json.dumps(job))
            assert rlft(["synth", "distill", str(folder / "job.yaml")]) == 0
        said = json.loads((folder / "made.jsonl.summary.json").read_text())
        _, by_answers = run(
            "sequence", a.steps, "made.jsonl", {"type": "sft"},
            data={
                "path": str(folder / "made.jsonl"), "prompt_column": "prompt", "completion_column": "completion",
                "apply_chat_template": False,
            },
        )  # fmt: skip
    return {
        "bench": "distill", "seed": seed, "teacher": good, "kd": by_logits, "sequence": by_answers,
        "distance_first": round(steps[0]["teacher/distance"], 3),
        "distance_last": round(steps[-1]["teacher/distance"], 4),
        "rows_made": said["rows_made"], "left_out": said["left_out"], "requests": said["requests"],
        "loadavg": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main() -> None:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--prompts", type=int, default=3000)
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
        words += ["--prompts", str(a.prompts), "--threads", str(a.threads), "--assets", a.assets]
        print(json.dumps(result_of("tests.bench.distill", words, f"seed {seed}")), flush=True)


if __name__ == "__main__":
    main()
