"""Weights on their way into vLLM's worker processes: written where memory is shared, so that only a path crosses. Of
those that come another way (transport.py) only the announcement is written.

Knows nothing about vLLM.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from rlft.config.adapters import AdapterConfig
from rlft.engines.weights import TensorEntry, WeightUpdate, as_tensor

_SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "rlft-weights-"  # then the process that made it
_UPDATE = "update.pkl"


@contextmanager
def shared_folder(num_bytes: int) -> Iterator[Path]:
    """A folder for the length of this block; in shared memory when there is room for `num_bytes` there."""
    sweep()
    roomy = _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free > num_bytes * 5 // 4
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_SHARED_MEMORY if roomy else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove what processes that were killed have left in shared memory."""
    for folder in _SHARED_MEMORY.glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


def write_update(folder: Path, update: WeightUpdate, entries: Sequence[TensorEntry]) -> None:
    """These entries of an update, with their bytes if it carries them, for `read_update`."""
    buckets = update.buckets
    if update.transport == "memory":
        for number in sorted({e.bucket for e in entries}):
            np.asarray(buckets[number]).tofile(folder / f"{number}.bin")
        buckets = ()
    (folder / _UPDATE).write_bytes(pickle.dumps(replace(update, entries=tuple(entries), buckets=buckets)))


def read_update(folder: Path) -> WeightUpdate:
    """What `write_update` wrote. Its arrays are views of the files, for as long as these are there."""
    update: WeightUpdate = pickle.loads((folder / _UPDATE).read_bytes())
    if update.transport != "memory":
        return update
    count = 1 + max((e.bucket for e in update.entries), default=-1)
    files = [folder / f"{number}.bin" for number in range(count)]  # "c": nothing ever reaches the file
    arrays = [np.memmap(f, dtype=np.uint8, mode="c") if f.exists() else np.empty(0, np.uint8) for f in files]
    return replace(update, buckets=tuple(arrays))


def write_adapter(folder: Path, update: WeightUpdate, names: Mapping[str, str], adapter: AdapterConfig) -> None:
    """An adapter as PEFT saves it, for vLLM to load. `names`: its tensors, and what they are called on disk."""
    folder.mkdir(parents=True)
    tensors = {}
    for e in update.entries:
        if e.name in names:
            raw = np.asarray(update.buckets[e.bucket])[e.offset : e.offset + e.num_bytes].copy()
            tensors[names[e.name]] = as_tensor(torch.from_numpy(raw), e)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in tensors})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": adapter.rank, "lora_alpha": adapter.alpha,
        "target_modules": modules, "bias": "none", "use_rslora": adapter.rank_stabilized,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
