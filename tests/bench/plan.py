"""`rlft plan` against measured memory: real learner updates and generator draws, each case in a process of its own.

    python -m tests.bench.plan [--cases PART_OF_NAME] [--device cuda]

On a GPU measured is the peak of what tensors take there (torch.cuda.max_memory_allocated), with larger models. Without
one it is the peak of the resident set (VmHWM, reset once everything is built) above what it was when everything was
imported and DeepSpeed had started. One JSON line a case; exit code 1 when one is off by more than 15%.

glibc raises the size from which memory goes back to the system as it goes (to 32 MB), and what it then keeps in pieces
depends on the order of frees: up to 40% more, measured. Here that size is fixed (MALLOC_MMAP_THRESHOLD_), so that what
is measured is what tensors take, as on a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.process import result_of

LIMIT = 0.15
_SHORT = {"layers": 5, "vocabulary": 4000, "samples": 4, "completion": 64}
CASES: dict[str, dict[str, Any]] = {
    "full 512x8": {},
    "full 512x8 checkpointing": {"checkpointing": True},
    "lora 512x8": {"adapter": {"rank": 16}},
    "draw 512x8": {"draw": True, "completion": 400, "samples": 16, "groups": 4},
    "full 512x8 zero 2, 4 micro-batches": {"stage": 2, "groups": 4, "completion": 64},
    "lora 768x6 zero 2 checkpointing, 2 micro-batches": {
        "hidden": 768, "layers": 6, "adapter": {"rank": 16}, "stage": 2, "groups": 2, "checkpointing": True,
    },
    "full 768x12 zero 2 checkpointing, small pack": {
        "hidden": 768, "layers": 12, "stage": 2, "checkpointing": True, "samples": 2,
    },
    "full 256x12": {"hidden": 256, "layers": 12},
    "full 512x8, 4 micro-batches": {"groups": 4, "completion": 64},
    "full 512x4 large vocabulary": {"layers": 4, "vocabulary": 32000, "chunk": 256},
    "full 512x8 bfloat16 zero 2": {"stage": 2, "dtype": "bfloat16"},
    "full 512x8 lone sequences": {"samples": 1, "groups": 2, "completion": 700},
    "draw 256x12 large vocabulary": {
        "draw": True, "hidden": 256, "layers": 12, "completion": 100, "samples": 64, "groups": 2, "vocabulary": 32000,
    },
    "adalora 512x5": {**_SHORT, "adapter": {"type": "adalora", "rank": 64}},
    "delta_lora 512x5": {**_SHORT, "adapter": {"type": "delta_lora", "rank": 64}},
    "lora_drop 512x5": {**_SHORT, "adapter": {"type": "lora_drop", "rank": 64, "sample_steps": 2}},
    "vera 512x5": {**_SHORT, "adapter": {"type": "vera", "rank": 256}},
    "lora 512x5 nf4": {**_SHORT, "adapter": {"rank": 16}, "quantization": {"type": "nf4"}},
    "lora 512x5 int8": {**_SHORT, "adapter": {"rank": 16}, "quantization": {"type": "int8"}},
    "dora 512x5 nf4": {**_SHORT, "adapter": {"type": "dora", "rank": 16}, "quantization": {"type": "nf4"}},
}  # fmt: skip
_LARGE = {
    "hidden": 1024, "layers": 16, "vocabulary": 32000, "prompt": 256, "completion": 512, "stage": 2,
    "dtype": "bfloat16",
}  # fmt: skip
ON_GPU: dict[str, dict[str, Any]] = {
    "full 1024x16 bfloat16 zero 2": _LARGE,
    "full 1024x16 bfloat16 zero 2 checkpointing": {**_LARGE, "checkpointing": True},
    "full 1024x16 float32": {**_LARGE, "stage": 0, "dtype": "float32"},
    "lora 1024x16 bfloat16 zero 2": {**_LARGE, "adapter": {"rank": 16}},
    "lora 1024x16 nf4": {**_LARGE, "adapter": {"rank": 16}, "quantization": {"type": "nf4"}},
    "draw 1024x16 bfloat16": {**_LARGE, "draw": True, "groups": 8, "samples": 16},
}  # fmt: skip
DEFAULTS: dict[str, Any] = {
    "hidden": 512, "layers": 8, "vocabulary": 8000, "groups": 1, "samples": 8, "prompt": 64, "completion": 128,
    "stage": 0, "checkpointing": False, "adapter": None, "quantization": None, "chunk": 2048, "dtype": "float32",
    "draw": False, "device": "cpu",
}  # fmt: skip


def settings(case: dict[str, Any], folder: str) -> Any:
    """The configuration of a case."""
    from rlft.config.load import load_config

    sequences = case["prompt"] + case["samples"] * case["completion"]
    return load_config(
        {
            "model": {"path": folder, "dtype": case["dtype"]}
            | {name: case[name] for name in ("adapter", "quantization") if case[name]},
            "algorithm": {"group_size": max(2, case["samples"])},
            "rewards": {"functions": [{"function": "finished"}]},
            "generator": {"max_new_tokens": case["completion"], "ignore_eos": True, "engine": "transformers"},
            "learner": {
                "zero_stage": case["stage"], "tokens_per_micro_batch": sequences, "lr": 1e-6,
                "gpus": int(case["device"] == "cuda"), "gradient_checkpointing": case["checkpointing"],
                "tokens_per_logit_chunk": case["chunk"],
            },
            "loop": {"prompts_per_step": case["groups"], "mismatch_stop": 1e9},
        }
    )  # fmt: skip


def make_model(case: dict[str, Any], folder: Path) -> None:
    """A Qwen3 with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from rlft.models.tiny import bytes_tokenizer

    hidden, heads = case["hidden"], case["hidden"] // 64
    config = Qwen3Config(
        vocab_size=case["vocabulary"], hidden_size=hidden, intermediate_size=hidden * 43 // 16,
        num_hidden_layers=case["layers"], num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=64,
        tie_word_embeddings=True, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        dtype=case["dtype"],
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(getattr(torch, case["dtype"])).save_pretrained(folder)
    bytes_tokenizer().save_pretrained(folder)


def memory(what: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def reset_peak(device: str) -> None:
    """From now on the peak counts."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> int:
    """Bytes, since the reset."""
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else memory("VmHWM")


def measure(case: dict[str, Any], folder: str) -> dict[str, Any]:
    """In this process: peak above the baseline of imports."""
    import torch

    from rlft.engines.deepspeed import Rendezvous, join
    from rlft.engines.policy_rank import PolicyRank
    from rlft.engines.transformers import TransformersGenerator
    from rlft.engines.weights import pack_weights
    from rlft.models.load import load_model
    from rlft.models.tiny import bytes_tokenizer
    from rlft.planning.shapes import expected_groups
    from rlft.samples import SamplingParams, count_totals

    torch.set_num_threads(1)
    config, device = settings(case, folder), case["device"]
    groups = expected_groups(case["groups"], case["samples"], case["prompt"], case["completion"])
    join(Rendezvous(), torch.device(device))
    load_model(config.model.model_copy(update={"path": sys.argv[-1]}))  # a tiny one: what loading imports
    gc.collect()
    baseline = torch.cuda.memory_allocated() if device == "cuda" else memory("VmRSS")
    if case["draw"]:
        tokenizer = bytes_tokenizer()
        generator = TransformersGenerator(config.model, tokenizer, 256, device)
        named = load_model(config.model).named_parameters()
        generator.load(pack_weights(named, 0, True, []))
        del named
        reset_peak(device)
        params = SamplingParams(case["samples"], case["completion"], 1.0, ignore_eos=True)
        seeds = [[100 * i + j for j in range(case["samples"])] for i in range(len(groups))]
        list(generator.generate([g.prompt for g in groups], seeds, params, 0))
    else:
        rank = PolicyRank(config, Rendezvous(), device)
        reset_peak(device)
        for _ in range(2):  # the second has the optimizer's state from its beginning
            rank.update([[group] for group in groups], count_totals(groups, 8), 1e-6, 0, 0.0)
    return {"measured_mb": (peak_memory(device) - baseline) / 1e6}


def predict(case: dict[str, Any], folder: str) -> dict[str, Any]:
    """In this process: what the plan says, from the folder's configuration alone."""
    import time

    from transformers import AutoConfig

    from rlft.planning.passes import skeleton
    from rlft.planning.plan import trained_peak
    from rlft.planning.roles import generator_peak
    from rlft.planning.shapes import expected_groups

    begin, config = time.perf_counter(), settings(case, folder)
    bare = skeleton(AutoConfig.from_pretrained(folder), case["dtype"], config.model.adapter, config.loop.steps)
    if case["draw"]:
        peak = generator_peak(bare, case["groups"], case["samples"], case["prompt"], case["completion"])
    else:
        groups = expected_groups(case["groups"], case["samples"], case["prompt"], case["completion"])
        peak, _ = trained_peak(config, config.learner, bare, groups, with_head=True)
    parts = {name: round(size / 1e6, 1) for name, size in peak.parts.items()}
    seconds = round(time.perf_counter() - begin, 1)
    return {"predicted_mb": peak.total / 1e6, "moment": peak.moment, "parts_mb": parts, "seconds": seconds}


def run_case(name: str, case: dict[str, Any]) -> dict[str, Any]:
    """One line."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(case, Path(folder) / "m")
        make_model(case | {"hidden": 128, "layers": 2}, Path(folder) / "small")
        words = [json.dumps(case), str(Path(folder) / "m"), str(Path(folder) / "small")]
        found = {}
        for job in ("predict", "measure"):
            found |= result_of("tests.bench.plan", ["--job", job, *words], name)
    found["off"] = round(found["predicted_mb"] / found["measured_mb"] - 1, 3)
    return {"case": name} | found


def main() -> int:
    """All cases, or one job of one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--job", choices=("predict", "measure"))
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    if args.job:
        print("RESULT", json.dumps(globals()[args.job](json.loads(args.words[0]), args.words[1])))
        return 0
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    lines = list[dict[str, Any]]()
    for name, changes in (ON_GPU if args.device == "cuda" else CASES).items():
        if args.cases in name:
            lines.append(run_case(name, DEFAULTS | changes | {"device": args.device}))
            print(json.dumps(lines[-1]), flush=True)
    return 0 if all(abs(line["off"]) <= LIMIT for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
