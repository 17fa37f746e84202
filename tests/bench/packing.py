"""SFT on examples of very different lengths: rlft's packs beside padded batches of the same model, loss and backward.

    python -m tests.bench.packing [--examples 128] [--repeat 3]

Lengths are log-normal (median 40 tokens, the longest cut at 512), which is how answers are distributed. `padded` is
what a trainer without packing does: batches of 16 in the order of the data, padded to the longest of each. Both make
the gradient of the mean negative log-likelihood over all trained tokens. In turn, several times; medians. Prints one
JSON line: losses, the largest difference of a gradient relative to the largest gradient, CPU and wall seconds, ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any


def make_groups(count: int, longest: int) -> list[Any]:
    """Examples with a prompt of a fifth of their length."""
    import numpy as np

    from tests.helpers import make_group

    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(40), 1.0, count).astype(int), 8, longest)
    groups = []
    for length in lengths:
        ids = rng.integers(4, 200, length)
        groups.append(make_group(ids[: length // 5].tolist(), [ids[length // 5 :].tolist()]))
    return groups


def packed(policy: Any, groups: list[Any], budget: int) -> float:
    """Forward and backward as the learner does it."""
    from rlft.batch import make_pack, plan_micro_batches
    from rlft.samples import count_totals

    totals, loss = count_totals(groups, 1), 0.0
    for part in plan_micro_batches(groups, 1, budget)[0]:
        pack = make_pack(part, totals)
        value = -(policy(pack, 1.0).logprobs * pack.weights).sum()
        value.backward()
        loss += float(value.detach())
    return loss


def padded(model: Any, groups: list[Any], size: int) -> float:
    """Forward and backward of padded batches with transformers alone."""
    import torch

    samples = [g.samples[0] for g in groups]
    count, loss = sum(s.num_trained for s in samples), 0.0
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        width = max(len(s.token_ids) for s in batch)
        ids, mask, labels = (torch.zeros(len(batch), width, dtype=torch.int64) for _ in range(3))
        labels -= 100
        for i, s in enumerate(batch):
            tokens = torch.from_numpy(s.token_ids.astype("int64"))
            ids[i, : len(tokens)], mask[i, : len(tokens)] = tokens, 1
            labels[i, : len(tokens)] = torch.where(torch.from_numpy(s.loss_mask), tokens, -100)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        value = (
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / count
        )
        value.backward()
        loss += float(value.detach())
    return loss


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--examples", type=int, default=128)
    p.add_argument("--longest", type=int, default=512)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--budget", type=int, default=2048, help="learner.tokens_per_micro_batch")
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    os.environ.update(OMP_NUM_THREADS=str(a.threads), OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
    import torch
    from transformers import AutoModelForCausalLM

    from rlft.config.model import TinyModel
    from rlft.models.policy import Policy
    from rlft.models.tiny import make_tiny_model

    torch.set_num_threads(a.threads)
    groups = make_groups(a.examples, a.longest)
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_model(TinyModel(vocabulary="bytes", max_length=a.longest), Path(folder), seed=0)
        plain = AutoModelForCausalLM.from_pretrained(folder).train()
        policy = Policy(AutoModelForCausalLM.from_pretrained(folder), 2048).train()
    ways = {
        "packed": lambda: packed(policy, groups, a.budget),
        "padded": lambda: padded(plain, groups, a.batch),
        "alone": lambda: packed(policy, groups, 1),  # one example in each pack
    }
    losses, cpu, wall = (
        dict[str, float](),
        {name: list[float]() for name in ways},
        {name: list[float]() for name in ways},
    )
    gradients: dict[str, Any] = {}
    for _ in range(a.repeat):
        for name, run in ways.items():
            model = plain if name == "padded" else policy.model
            model.zero_grad()  # type: ignore[operator]
            before = time.perf_counter(), time.process_time()
            losses[name] = run()
            wall[name].append(time.perf_counter() - before[0])
            cpu[name].append(time.process_time() - before[1])
            gradients[name] = {n: x.grad.clone() for n, x in model.named_parameters()}  # type: ignore[operator]
    largest = max(float(g.abs().max()) for g in gradients["padded"].values())
    apart = {
        name: max(float((gradients[name][n] - g).abs().max()) for n, g in gradients["padded"].items()) / largest
        for name in ("packed", "alone")
    }
    lengths = [len(g.samples[0].token_ids) for g in groups]
    median = statistics.median
    print(json.dumps({
        "bench": "packing", "examples": len(groups), "tokens": sum(lengths), "median_length": median(lengths),
        "losses": losses, "gradient_apart": apart,
        "cpu_s": {n: round(median(v), 3) for n, v in cpu.items()},
        "wall_s": {n: round(median(v), 3) for n, v in wall.items()},
        "cpu_ratio_padded": round(median(cpu["padded"]) / median(cpu["packed"]), 2),
        "cpu_ratio_alone": round(median(cpu["alone"]) / median(cpu["packed"]), 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
