"""What a model with several heads leaves in a checkpoint, for transformers to load.

With full weights: the body in the checkpoint's folder, and for each task tasks/<name>/ with the same files by hard
link, its head beside them, and an index that says which weight is where. With adapters the body is what it was:
tasks/<name>/ is a PEFT adapter with the head in it.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlft.config.tasks import TaskConfig
from rlft.engines.deepspeed import ZeroEngine
from rlft.models.tasks import Head, MultiTaskModel, adapter_of, is_adapter

_INDEX = "model.safetensors.index.json"
_HEAD = "head.safetensors"


def save_tasks(model: MultiTaskModel, engine: ZeroEngine, folder: Path, rank: int) -> None:
    """Write all of it. Every rank takes part, rank 0 writes. What lies in `folder` already (the tokenizer) is linked
    into each task's folder too."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = [file for file in folder.iterdir() if file.is_file()]
    adapted = hasattr(model.body, "peft_config")
    if not adapted:
        engine.write_pretrained(model.body, [name for name, _ in model.body.named_parameters()], folder)
    parameters = dict(model.named_parameters())
    names = [n for n in parameters if n.startswith("heads.") or (adapted and is_adapter(n))]
    gathered = engine.gathered(parameters, names)
    if rank != 0:
        deque(gathered, maxlen=0)
        return
    tensors = {name: tensor.cpu().contiguous() for name, tensor in gathered}
    for i, (task, head) in enumerate(zip(model.tasks, model.described, strict=True)):
        target = folder / "tasks" / task.name
        target.mkdir(parents=True)
        own = {f"{head.name}.{n}": tensors[f"heads.{i}.{n}"] for n, _ in model.heads[i].named_parameters()}
        if adapted:
            _write_adapter(model, task, head, own, tensors, target)
        else:
            _write_whole(folder, own, target)
        head.config.save_pretrained(target)
        for file in tokenizer:
            _link(file, target / file.name)
    if adapted:
        heads = {
            f"{task.name}.{n}": tensors[f"heads.{i}.{n}"]
            for i, task in enumerate(model.tasks)
            for n, _ in model.heads[i].named_parameters()
        }
        save_file(heads, folder / "heads.safetensors")


def _write_whole(folder: Path, head: Mapping[str, Tensor], target: Path) -> None:
    """The body's files by link, the head, and the index of both."""
    where, sizes = {}, 0
    for file in sorted(folder.glob("*.safetensors")):
        linked = file.name.replace("model", "body", 1)  # not model.safetensors, which would be taken for all there is
        _link(file, target / linked)
        with safe_open(file, "pt") as opened:
            where |= dict.fromkeys(opened.keys(), linked)
        sizes += file.stat().st_size
    save_file(dict(head), target / _HEAD, metadata={"format": "pt"})
    where |= dict.fromkeys(head, _HEAD)
    index = {"metadata": {"total_size": sizes + (target / _HEAD).stat().st_size}, "weight_map": where}
    (target / _INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _write_adapter(
    model: MultiTaskModel, task: TaskConfig, head: Head, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor],
    target: Path,
) -> None:  # fmt: skip
    """The task's adapter and its head, as peft writes one for transformers' model of such a task."""
    name, body = adapter_of(task), "body.base_model.model."
    weights = {
        f"base_model.model.{head.prefix}.{n.removeprefix(body).replace(f'.{name}.', '.')}": tensor
        for n, tensor in tensors.items()
        if n.startswith(body) and f".{name}." in n
    }
    weights |= {f"base_model.model.{n}": tensor for n, tensor in own.items()}
    adapters: Any = model.body
    settings = copy.deepcopy(adapters.peft_config[name])
    settings.task_type, settings.modules_to_save, settings.inference_mode = head.peft_type, [head.name], True
    settings.save_pretrained(str(target))
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})


def _link(source: Path, target: Path) -> None:
    """A hard link, so that it takes no room; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
