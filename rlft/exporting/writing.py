"""Writes a checkpoint's model as transformers, peft and vLLM load it, without what only a resumed run needs."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlft.exporting.saved import Form, Saved
from rlft.models.adapters.attach import add_adapter
from rlft.models.adapters.merging import plain_weights
from rlft.models.base_values import FILE
from rlft.models.load import load_checkpoint, load_model
from rlft.models.reward import load_classifier, load_trained_reward_model
from rlft.models.tasks import load_task_model
from rlft.runs.checkpoints import MANIFEST, STATE

_OURS = (STATE, MANIFEST, "loop.pkl", "README.md")  # of a checkpoint, what is the run's and not the model's
_ADAPTER = "adapter_model.safetensors"


def write_model(saved: Saved, form: Form, dtype: str | None, folder: Path) -> None:
    """Put it into the empty `folder`, in `dtype` or as the checkpoint has it."""
    kind = None if dtype is None else getattr(torch, dtype)
    if saved.kind == "tasks" and form == "full" and kind is None:
        _copy_tasks(saved.checkpoint, folder)
        return
    for part in saved.folders():
        target = folder / part
        target.mkdir(parents=True, exist_ok=True)
        _copy_texts(saved.checkpoint / part, target)
        if form == "adapter":
            _write_adapter(saved, part, kind, target)
        else:
            _write_whole(saved, part, form, kind, target)


def _copy_texts(checkpoint: Path, folder: Path) -> None:
    """Tokenizer, chat template, configurations: every file that is neither weights nor the run's."""
    for file in checkpoint.iterdir():
        if file.is_file() and not _is_weights(file) and file.name not in _OURS:
            shutil.copyfile(file, folder / file.name)


def _is_weights(file: Path) -> bool:
    return file.name.endswith((".safetensors", ".safetensors.index.json", ".bin", ".pt"))


def _write_whole(saved: Saved, part: Path, form: Form, dtype: torch.dtype | None, folder: Path) -> None:
    model = _whole_model(saved, part, form, dtype)
    for name in ("adapter_config.json", "quantization_config.json", FILE):
        (folder / name).unlink(missing_ok=True)
    model.save_pretrained(folder)


@torch.no_grad()
def _whole_model(saved: Saved, part: Path, form: Form, dtype: torch.dtype | None) -> Any:
    """transformers' model, an adapter merged into it. Sums are made in float32 and rounded once."""
    model, source = saved.config.model, saved.checkpoint / part
    kind = dtype or getattr(torch, model.dtype)
    if saved.kind == "tasks":
        return load_task_model(source, kind)
    if saved.kind == "reward_model":
        classifier: Any = load_trained_reward_model(str(source), model.dtype).model
        if form == "merged":
            classifier = classifier.float().merge_and_unload()
        classifier.set_attn_implementation("sdpa")
        return classifier.to(kind)
    if form == "full":
        return load_checkpoint(model, source).to(kind)
    plain: Any = load_model(model.model_copy(update={"adapter": None, "quantization": None})).to(kind)
    adapted = load_checkpoint(model, source).float()
    places = dict(plain.named_parameters())
    seen = set[str]()
    for name, tensor in plain_weights(adapted):
        if name in places:
            places[name].copy_(tensor)
            seen.add(name)
    assert seen == set(places), f"not merged: {sorted(set(places) - seen)[:5]}"
    return plain


def _write_adapter(saved: Saved, part: Path, dtype: torch.dtype | None, folder: Path) -> None:
    """The adapter's files, cast if asked for; PiSSA's as a plain LoRA, which fits the base as it is."""
    adapter, source = saved.config.model.adapter, saved.checkpoint / part
    settings = saved.settings(source)
    assert adapter is not None
    for file in [source / _ADAPTER] if settings is not None else sorted(source.glob("*.safetensors")):
        tensors = load_file(file)
        if adapter.type == "pissa" and settings is not None:
            tensors, settings = _as_lora(saved, tensors, settings)
        save_file(dict(_cast(tensors, dtype)), folder / file.name, metadata={"format": "pt"})
    if settings is not None:
        settings["base_model_name_or_path"] = str(saved.config.model.path)
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _as_lora(
    saved: Saved, tensors: dict[str, Tensor], settings: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """PiSSA trains B A on the rest of W after its largest singular values B0 A0 are taken out, so on W itself it is
    B A - B0 A0: peft writes that as one LoRA of twice the rank. B0 and A0 follow from the base and the run's seed; in
    float32, as what they are subtracted from was made of them before they were rounded."""
    config = saved.config
    assert config.model.adapter is not None
    plain, task = config.model.model_copy(update={"adapter": None}), "CAUSAL_LM"
    if saved.kind == "reward_model":
        base, task = load_classifier(plain)[0], "SEQ_CLS"
    else:
        base = load_model(plain)
    first: Any = add_adapter(
        base, config.model.adapter, config.run.seed, task, steps=config.loop.steps, dtype=torch.float32
    )
    whole = {name: tensor.float() for name, tensor in tensors.items() if ".lora_" in name}
    converted = first.base_model.subtract_mutated_init(whole, "default", {})
    converted |= {name: tensor for name, tensor in tensors.items() if name not in whole}  # a reward model's head
    factor = math.sqrt(2) if settings.get("use_rslora") else 2
    changed = {"r": settings["r"] * 2, "lora_alpha": settings["lora_alpha"] * factor, "init_lora_weights": True}
    return {name: t.contiguous() for name, t in converted.items()}, settings | changed


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        yield name, tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _copy_tasks(checkpoint: Path, folder: Path) -> None:
    """The folders of all tasks, and what lies beside them: the body that tasks share stays one file."""
    there = dict[int, Path]()
    shared = [file for file in checkpoint.iterdir() if file.is_file() and file.name not in _OURS]
    for file in [*shared, *(file for file in sorted((checkpoint / "tasks").rglob("*")) if file.is_file())]:
        target, number = folder / file.relative_to(checkpoint), file.stat().st_ino
        target.parent.mkdir(parents=True, exist_ok=True)
        if number in there:
            os.link(there[number], target)
        else:
            there[number] = target
            shutil.copyfile(file, target)
