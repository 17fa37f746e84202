"""Seconds from publishing weights to being able to draw from them, through the real learner and generator actors.

    python -m tests.bench.sync [--sizes 6 100 1000] [--engines transformers vllm] [--what full adapter broadcast]

For a Qwen3-style model with about 6 MB, 100 MB or 1 GB of random float32 weights, in cluster mode local (Ray's object
store, one node): from the call of `learner.publish` until `generator.load` has returned, when every tensor is verified
and samples of the new version can be drawn. Medians of `--repeat` syncs after one warm-up, each with other weights;
after each, unpaid, a token is drawn and must carry the new version. `adapter`: the same model with LoRA of rank 16 on
all linear layers, of which only the adapter travels after the first sync. `broadcast`: all weights, sent by gloo from
process to process (cluster.weight_transport: collective) instead of through the object store.

Beside each sync, in the learner's process, the same bytes are copied by numpy: into memory that is there already
(copy_s, of which `ratio` is a multiple) and into fresh memory, whose pages the kernel has to clear first
(fresh_copy_s). `seconds` is publish_s + load_s: publish_s copies and hashes the weights into the object store, load_s
brings them into the generator's parameters and hashes them there.

One JSON line for each (size, engine, full or adapter) on stdout, a table on stderr. The learner is given new weights by
adding to them, so that it holds no gradients and no optimizer state. With 1 GB of weights and vLLM about 9 GB are used,
of these 1 to 2 GB in the object store and 1 GB under /dev/shm; sizes for which there is not enough are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SHAPES = {  # megabytes -> hidden size, layers, heads, key/value heads, feed-forward width; head_dim 32, 64, 128
    6: (192, 4, 6, 2, 512),
    100: (640, 6, 10, 2, 1728),
    1000: (1536, 10, 12, 4, 4096),
}
WHAT = ("full", "adapter", "broadcast")
ROOM = 7  # times the weights: learner 3 (with its packed copies), object store 2, /dev/shm 1, generator 1
ROOM_GB = 4  # Ray, two processes with torch or vLLM, vLLM's cache


def parser() -> argparse.ArgumentParser:
    """Flags."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sizes", type=int, nargs="+", default=list(SHAPES), choices=list(SHAPES), help="megabytes")
    p.add_argument("--engines", nargs="+", default=["transformers", "vllm"], choices=["transformers", "vllm"])
    p.add_argument("--what", nargs="+", default=list(WHAT), choices=WHAT)
    p.add_argument("--repeat", type=int, default=5)
    return p


def make_model(megabytes: int, folder: Path) -> None:
    """Write a model of this size, with the `digits` tokenizer, into `folder`."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    from rlft.models.tiny import BOS_ID, EOS_ID, PAD_ID, digits_tokenizer

    hidden, layers, heads, kv_heads, width = SHAPES[megabytes]
    tokenizer = digits_tokenizer()
    ids = dict(pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=hidden // heads, max_position_embeddings=512,
        tie_word_embeddings=True, dtype="float32", **ids,
    )  # fmt: skip
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).float()
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def configuration(model: Path, engine: str, what: str) -> Any:
    """A run's configuration, as far as learner and generator read it."""
    from rlft.config.load import load_config

    return load_config({
        "run": {"name": "sync"},
        "model": {"path": str(model)} | ({"adapter": {"type": "lora", "rank": 16}} if what == "adapter" else {}),
        "generator": {"engine": engine, "max_new_tokens": 8, "max_concurrent": 8},
        "rewards": {"functions": [{"function": "exact_match"}]},
        "cluster": {"mode": "local", "threads": 1, "start_timeout_s": 600, "stage_timeout_s": 300,
                    "weight_transport": "collective" if what == "broadcast" else "auto"},
    }, has_dataset=True)  # fmt: skip


@contextmanager
def learner_and_generator(config: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Both, as a run would start them, and the learner's actor; no reward workers."""
    from ray.util.placement_group import remove_placement_group

    from actors.channel import connect
    from actors.cluster import connected
    from actors.generator import GeneratorActor, GeneratorGroup
    from actors.learner import LearnerActor, start_ranks
    from actors.placement import reserve, seats
    from actors.supervisor import get_all
    from rlft.config.derived import weight_transport
    from rlft.engines.learner import RankedLearner
    from rlft.errors import RunError

    chosen = {role: some for role, some in seats(config).items() if role in ("learner", "generator")}
    with connected(config, chosen):
        group, options = reserve(config, chosen)
        (ours,), (theirs,) = chosen["learner"], chosen["generator"]
        try:
            kinds: Any = (LearnerActor, ours), (GeneratorActor, theirs)
            actor, generator = (kind.options(**options[seat.name]).remote(config, seat) for kind, seat in kinds)
            call, _ = start_ranks([actor], [ours.name], config)
            get_all([generator.ready.remote()], [theirs.name], "starting", config.cluster.start_timeout_s)
            if weight_transport(config) == "collective":
                connect([actor], ours.name, [generator], [theirs.name], config)
            generators = GeneratorGroup([generator], [theirs.name], config.cluster.stage_timeout_s)
            yield RankedLearner(config, call), generators, actor
            with contextlib.suppress(RunError):
                GeneratorGroup([generator], [theirs.name], timeout_s=20).close()
        finally:
            remove_placement_group(group)


def change_weights(actor: Any) -> None:
    """In the learner: every trained word becomes another one (a step of an optimizer, without its memory)."""
    import torch

    with torch.no_grad():
        for parameter in actor._rank._policy.parameters():
            if parameter.requires_grad:
                parameter.add_(1e-4)


def copy_seconds(actor: Any, num_bytes: int) -> tuple[float, float]:
    """In the learner: seconds for a numpy copy of so many bytes, into memory that is there already and into fresh."""
    import numpy as np

    source = np.full(num_bytes, 7, np.uint8)
    begin = time.perf_counter()
    target = source.copy()
    fresh = time.perf_counter() - begin
    begin = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - begin, fresh


def hand_over(learner: Any, generator: Any, update: Any) -> None:
    """As rlft.loops.sync does it."""
    from rlft.loops.together import together

    together(lambda: generator.load(update), lambda: learner.send(update))


def measure(config: Any, repeat: int) -> dict[str, Any]:
    """Medians over `repeat` syncs."""
    import numpy as np
    import ray

    from rlft.samples import Prompt, SamplingParams

    rows = []
    limit = config.cluster.stage_timeout_s
    with learner_and_generator(config) as (learner, generator, actor):
        hand_over(learner, generator, learner.publish(0, everything=True))
        for version in range(1, repeat + 2):
            ray.get(actor.__ray_call__.remote(change_weights), timeout=limit)
            begin = time.perf_counter()
            update = learner.publish(version)
            published = time.perf_counter()
            hand_over(learner, generator, update)
            end = time.perf_counter()
            num_bytes = update.num_bytes
            del update  # frees the object store
            copy, fresh = ray.get(actor.__ray_call__.remote(copy_seconds, num_bytes), timeout=limit)
            rows.append((end - begin, published - begin, end - published, copy, fresh))
            prompt = Prompt("probe", np.array([5, 6, 7], np.int32), "123", None, {})
            drawn = generator.probe(prompt, version, SamplingParams(num_samples=1, max_new_tokens=2, ignore_eos=True))
            for group in drawn.values():
                assert group.samples[0].weight_versions.max() == version, "samples do not carry the new version"
    names = ("seconds", "publish_s", "load_s", "copy_s", "fresh_copy_s")
    medians = [statistics.median(column) for column in zip(*rows[1:], strict=True)]  # the first was the warm-up
    spread = [row[0] for row in rows[1:]]
    return {name: round(value, 5) for name, value in zip(names, medians, strict=True)} | {
        "ratio": round(medians[0] / medians[3], 2), "bytes": num_bytes,
        "seconds_min": round(min(spread), 5), "seconds_max": round(max(spread), 5),
    }  # fmt: skip


def is_room(megabytes: int) -> bool:
    """Whether memory and shared memory are there; says so when not."""
    import psutil

    memory, shared = psutil.virtual_memory().available, shutil.disk_usage("/dev/shm").free
    need = ROOM * megabytes * 1e6 + ROOM_GB * 1e9
    if memory < need or shared < 3 * megabytes * 1e6:
        _say(f"{megabytes} MB left out: {memory / 1e9:.1f} GB free of {need / 1e9:.1f}, /dev/shm {shared / 1e9:.1f} GB")
        return False
    return True


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For people."""
    columns = ("megabytes", "engine", "what", "seconds", "publish_s", "load_s", "copy_s", "fresh_copy_s", "ratio")
    lines = [columns, *[tuple(str(row[c]) for c in columns) for row in rows]]
    return "\n".join("".join(f"{cell:>14}" for cell in line) for line in lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    a = parser().parse_args()
    from actors.process import set_environment

    set_environment()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    rows = []
    for megabytes in a.sizes:
        with tempfile.TemporaryDirectory(prefix="rlft-sync-") as folder:
            make_model(megabytes, Path(folder))
            for engine in a.engines:
                for what in a.what:
                    if not is_room(megabytes):
                        continue
                    _say(f"{megabytes} MB, {engine}, {what} ...")
                    found = measure(configuration(Path(folder), engine, what), a.repeat)
                    row = {"bench": "sync", "engine": engine, "megabytes": megabytes, "what": what} | found
                    rows.append(row | {"loadavg": round(os.getloadavg()[0], 1)})
                    print(json.dumps(rows[-1]), flush=True)
    _say(table(rows))


if __name__ == "__main__":
    main()
