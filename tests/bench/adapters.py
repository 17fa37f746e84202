"""Every kind of adapter, seen at work: the table of docs/adapters.md.

    python -m tests.bench.adapters [--only lora dora] [--steps 60] [--skip-vllm] [--assets DIR]

For each kind, in a process of its own: GRPO on the yardstick from its warm start (greedy accuracy before and after, 128
samples a step), and with virtual tokens SFT too (held-out loss before and after, 64 rows a step); the largest
difference of a log-prob between the learner and what it becomes (merged into a plain model, saved and loaded, drawn by
vLLM after an update, on two ranks of ZeRO-3, with an NF4 base drawn by the embedded generator); the parameters that
train on a Qwen2 of 8 layers of width 512, and the largest memory of three updates of 1000 tokens there, above that of
the process before it loads the model. Prints one JSON line a kind, then the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.process import ROOT, result_of

SIZES = {  # of a Qwen2
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 1536, "vocab_size": 4096, "max_position_embeddings": 512,
}  # fmt: skip
FULL = "full"
RATES = {FULL: 1e-4, "ia3": 1e-2, "ln_tuning": 3e-3, "vera": 1e-2, "bitfit": 3e-3, "lora_plus": 5e-5, "prompt": 3e-2}
RATES["pissa"] = 1e-4
RATES |= dict.fromkeys(("p_tuning", "prefix", "p_tuning_v2"), 1e-2)
OTHER_RATE = 1e-3
KEYS: dict[str, dict[str, Any]] = {
    "vera": {"rank": 64},
    "lora_experts": {"tasks": ["a", "b"]},
    "lora_drop": {"sample_steps": 3},
}
NAMES = {
    "trains": "greedy accuracy",
    "supervised": "held-out loss by SFT",
    "merged": "merges",
    "saved": "saved, loaded",
}
NAMES |= {"vllm": "vLLM", "zero_3": "ZeRO-3", "nf4": "NF4 base", "parameters": "parameters", "memory_mb": "memory"}


def adapter(kind: str) -> dict[str, Any] | None:
    """model.adapter for a kind."""
    return None if kind == FULL else {"type": kind} | KEYS.get(kind, {})


def trains(a: argparse.Namespace, kind: str, folder: Path) -> list[float]:
    """Greedy accuracy before and after GRPO on the yardstick."""
    settings = [f"model.adapter={json.dumps(adapter(kind))}"] if kind != FULL else []
    if kind == "lora_experts":
        settings += _named_rows(Path(a.assets), folder)
    words = ["--assets", a.assets, "--steps", str(a.steps), "--lr", str(RATES.get(kind, OTHER_RATE)), "--eval-n", "500"]
    words += ["--eval-every", str(a.steps), "--threads", "1", *(["--set", *settings] if settings else [])]
    result = result_of("tests.bench.yardstick", words, kind)
    return [result["acc_start"], result["acc_end"]]


def _named_rows(assets: Path, folder: Path) -> list[str]:
    """Settings for a kind that asks which task each row is of: half of the rows are one, half another."""
    for name in ("train", "eval"):
        rows = [json.loads(line) for line in (assets / f"{name}.jsonl").read_text().splitlines()]
        for i, task in enumerate("ab"):
            lines = [json.dumps(row | {"task": task}) for row in rows[i::2]]
            (folder / f"{name}_{task}.jsonl").write_text("\n".join(lines))
    both = "".join((folder / f"eval_{task}.jsonl").read_text() + "\n" for task in "ab")
    (folder / "eval.jsonl").write_text(both)
    mixture = [{"path": str(folder / f"train_{task}.jsonl"), "name": task} for task in "ab"]
    evaluation = [f"evaluation.path={folder / 'eval.jsonl'}", "evaluation.source_column=task"]
    return ["data.path=null", f"data.mixture={json.dumps(mixture)}", *evaluation]


class Trial:
    """A learner of some model that has made two updates."""

    def __init__(self, folder: Path, kind: str, ranks: int = 1, **changes: Any) -> None:
        from tests.engines.ranks import Ranks
        from tests.engines.test_adapters import ALSO, make_learner, train

        self.pool = {ranks: Ranks(ranks)}
        given = {"model.adapter": adapter(kind), "learner.lr": 1e-2, "generator.temperature": 1.0} | changes
        stage = given.pop("learner.zero_stage", 0)
        self.learner = make_learner(self.pool, folder, ranks, stage, given | ALSO.get(kind, {}))  # type: ignore[arg-type]
        train(self.learner, range(2))

    @property
    def rank(self) -> Any:
        """The only one."""
        return self.pool[1]._here

    def close(self) -> None:
        """End its processes."""
        for ranks in self.pool.values():
            ranks.close()


def gap_of(learner: Any, model: Any) -> float:
    """Largest difference of a log-prob from what a plain pass of `model` says."""
    import numpy as np

    from tests.engines.test_adapters import by_plain_pass, some_groups

    gaps = []
    for group, arrays in zip(some_groups(9), learner.logprobs(some_groups(9)), strict=True):
        for sample, array in zip(group.samples, arrays, strict=True):
            gaps.append(np.abs(array[sample.loss_mask] - by_plain_pass(model, group, sample)).max())
    return float(max(gaps))


def gap_of_drawn(learner: Any, generator: Any) -> float:
    """Largest difference of a log-prob from what a generator draws, after a sync of what trains alone."""
    from dataclasses import replace

    import numpy as np

    from rlft.samples import SamplingParams
    from tests.engines.test_adapters import train
    from tests.helpers import make_prompt

    generator.load(learner.publish(2, everything=True))
    train(learner, range(2, 4))
    generator.load(learner.publish(4))
    prompts = [replace(make_prompt([7, 5, 9, 11, 4, 14 + i], str(i)), source="ab"[i]) for i in range(2)]
    params = SamplingParams(num_samples=8, max_new_tokens=16, ignore_eos=True)
    drawn = [g for _, g in sorted(generator.generate(prompts, [[*range(8)], [*range(8, 16)]], params, 4))]
    scores = learner.logprobs(drawn)
    pairs = [(s, x) for g, row in zip(drawn, scores, strict=True) for s, x in zip(g.samples, row, strict=True)]
    return float(max(np.abs(s.logprobs - x)[s.loss_mask].max() for s, x in pairs))


def merged(a: argparse.Namespace, kind: str, folder: Path) -> float | None:
    """Against a plain model with merged weights."""
    from transformers import AutoModelForCausalLM

    from rlft.config.adapters import KINDS
    from rlft.models.adapters.merging import merged_weights

    if kind != FULL and not KINDS[kind].merges:
        return None
    trial = Trial(Path(a.assets) / "sft30", kind)
    plain = AutoModelForCausalLM.from_pretrained(Path(a.assets) / "sft30")
    model = trial.rank._policy.model
    weights = dict(model.named_parameters() if kind == FULL else merged_weights(model))
    _, unexpected = plain.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    return gap_of(trial.learner, plain)


def saved(a: argparse.Namespace, kind: str, folder: Path) -> float:
    """Against what a checkpoint loads as."""
    from rlft.models.load import load_checkpoint

    trial = Trial(Path(a.assets) / "sft30", kind)
    trial.learner.save(folder / "saved")
    return gap_of(trial.learner, load_checkpoint(trial.rank._config.model, folder / "saved"))


def vllm(a: argparse.Namespace, kind: str, folder: Path) -> float | None:
    """Against what vLLM draws."""
    from rlft.config.adapters import KINDS
    from rlft.engines.vllm.engine import VllmGenerator

    if a.skip_vllm or (kind != FULL and KINDS[kind].served is None):
        return None
    trial = Trial(Path(a.assets) / "sft30", kind, **{"generator.engine": "vllm"})
    with contextlib.closing(VllmGenerator(trial.learner._config)) as generator:
        return gap_of_drawn(trial.learner, generator)


def nf4(a: argparse.Namespace, kind: str, folder: Path) -> float | None:
    """With an NF4 base, against what the embedded generator draws."""
    from rlft.config.adapters import KINDS
    from rlft.data.tokenizer import load_tokenizer
    from rlft.engines.transformers import TransformersGenerator

    if kind == FULL or not KINDS[kind].quantized:
        return None
    trial = Trial(Path(a.assets) / "sft30", kind, **{"model.quantization.type": "nf4"})
    tokenizer = load_tokenizer(str(Path(a.assets) / "sft30"), None)
    return gap_of_drawn(trial.learner, TransformersGenerator(trial.learner._config.model, tokenizer, 16))


def zero_3(a: argparse.Namespace, kind: str, folder: Path) -> float | None:
    """Two ranks of ZeRO-3 against one that splits nothing."""
    import numpy as np

    from rlft.config.adapters import KINDS
    from tests.engines.test_adapters import some_groups

    if kind != FULL and KINDS[kind].zero < 3:
        return None
    one = Trial(Path(a.assets) / "sft30", kind)
    two = Trial(Path(a.assets) / "sft30", kind, ranks=2, **{"learner.zero_stage": 3})
    try:
        here, there = (trial.learner.logprobs(some_groups(9)) for trial in (one, two))
    finally:
        two.close()
    pairs = [(x, y) for one_row, other in zip(here, there, strict=True) for x, y in zip(one_row, other, strict=True)]
    return float(max(np.abs(x - y).max() for x, y in pairs))


CHECKS: dict[str, Callable[[argparse.Namespace, str, Path], Any]] = {
    "merged": merged, "saved": saved, "vllm": vllm, "zero_3": zero_3, "nf4": nf4,
}  # fmt: skip


def memory(a: argparse.Namespace, kind: str, folder: Path) -> dict[str, Any]:
    """Parameters that train, and MiB of three updates above what the process had before it loaded the model."""
    import numpy as np
    import psutil
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlft.engines.deepspeed import Rendezvous
    from rlft.engines.policy_rank import PolicyRank
    from rlft.samples import count_totals
    from tests.engines.test_adapters import ALSO, named
    from tests.helpers import make_config, random_groups

    Qwen2ForCausalLM(Qwen2Config(**SIZES)).save_pretrained(folder / "m")
    shutil.copytree(Path(a.assets) / "tokenizer", folder / "m", dirs_exist_ok=True)
    settings = {"model.adapter": adapter(kind), "learner.zero_stage": 0, "learner.tokens_per_micro_batch": 4096}
    config = make_config(folder / "m", settings | {"loop.mismatch_stop": 100.0} | ALSO.get(kind, {}))
    sizes = {"vocabulary": 4000, "max_prompt": 60, "max_completion": 240}
    groups = [named(group, "a") for group in random_groups(np.random.default_rng(0), [4] * 2, **sizes)]
    before = psutil.Process().memory_info().rss
    rank = PolicyRank(config, Rendezvous())
    for step in range(3):
        rank.update([groups], count_totals(groups, 240), 1e-4, step, 0.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    trained = sum(p.numel() for p in rank._policy.parameters() if p.requires_grad)
    return {"parameters": trained, "memory_mb": round((peak - before) / 2**20)}


def abilities(a: argparse.Namespace, kind: str, folder: Path) -> dict[str, Any]:
    """What each check says."""
    return {name: check(a, kind, folder) for name, check in CHECKS.items()}


def supervised(a: argparse.Namespace, kind: str, folder: Path) -> dict[str, Any]:
    """Held-out loss before and after SFT on the yardstick's rows, for kinds with virtual tokens: before those are
    learned the model says too little that is right for a reward to teach them."""
    from actors import launch
    from rlft.config.adapters import KINDS
    from rlft.config.load import load_config
    from rlft.runs.metrics import read_metrics
    from tests.bench.from_data import write_rows

    if kind == FULL or not KINDS[kind].virtual:
        return {"supervised": None}
    assets = Path(a.assets)
    write_rows(assets, folder, 0)
    held_out = [json.loads(line) for line in (assets / "eval.jsonl").read_text().splitlines()]
    lines = [json.dumps({"prompt": row["prompt"], "completion": row["answer"]}) + "\n" for row in held_out]
    (folder / "held_out.jsonl").write_text("".join(lines))
    config = {
        "run": {"name": kind, "dir": str(folder / "runs"), "seed": 0},
        "model": {"path": str(assets / "sft30"), "adapter": adapter(kind)},
        "data": {"path": str(folder / "train.jsonl")},
        "evaluation": {"path": str(folder / "held_out.jsonl"), "every": a.steps},
        "algorithm": {"type": "sft"},
        "learner": {"lr": RATES[kind]},
        "loop": {"steps": a.steps, "prompts_per_step": 64},
        "tracking": {"tensorboard": False},
        "cluster": {"mode": "inline", "threads": 1},
    }
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        result = launch.train(load_config(config))
    losses = [row["eval/nll"] for row in read_metrics(result.folder / "eval.jsonl")]
    return {"supervised": [losses[0], losses[-1]]}


PARTS: dict[str, Callable[[argparse.Namespace, str, Path], dict[str, Any]]] = {
    "memory": memory, "abilities": abilities, "supervised": supervised,
}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line a kind."""
    lines = ["| `type` | " + " | ".join(NAMES.values()) + " |", "|" + "---|" * (len(NAMES) + 1)]
    for row in rows:
        cells = [f"`{row['kind']}`"]
        for name in NAMES:
            value = row.get(name)
            if name in ("trains", "supervised"):
                cells.append(f"{value[0]:.2f} to {value[1]:.2f}" if value else "")
            elif name in ("parameters", "memory_mb"):
                cells.append(f"{value:,}" if name == "parameters" else f"{value} MB")
            else:
                cells.append("no" if value is None else f"{value:.0e}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    from rlft.config.adapters import KINDS

    kinds = [FULL, *KINDS]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", default=kinds, choices=kinds)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--skip-vllm", action="store_true")
    p.add_argument("--assets", default=str(ROOT.parent / "shared/yardstick/sort"))
    p.add_argument("--here", choices=list(PARTS), help="one part of one kind in this process")
    a = p.parse_args()
    if a.here:
        os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
        with tempfile.TemporaryDirectory() as folder:
            print("RESULT " + json.dumps(PARTS[a.here](a, a.only[0], Path(folder))))
        return
    rows = []
    for kind in a.only:
        with tempfile.TemporaryDirectory() as folder:
            row: dict[str, Any] = {"bench": "adapters", "kind": kind, "trains": trains(a, kind, Path(folder))}
        for part in PARTS:
            words = ["--here", part, "--only", kind, "--assets", a.assets, *(["--skip-vllm"] if a.skip_vllm else [])]
            words += ["--steps", str(a.steps)]
            row |= result_of("tests.bench.adapters", words, f"{kind}, {part}")
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
