"""Who can load an export, and by which lines of Python."""

from __future__ import annotations

from pathlib import Path

from rlft.config.adapters import KINDS, VLLM_RANKS
from rlft.exporting.saved import Form, Saved

_AUTO = {"learner": "AutoModelForCausalLM", "reward_model": "AutoModelForSequenceClassification"}
_NAMES = {"transformers": "transformers", "peft": "PEFT", "vllm": "vLLM", "rlft": "rlft"}


def who_loads(saved: Saved, form: Form, loaders: tuple[str, ...]) -> str:
    """In a sentence, also what to do for those who cannot."""
    text = f"Loads in {' and '.join(_NAMES[loader] for loader in loaders)}"
    if form != "adapter" or "vllm" in loaders or saved.kind != "learner":
        return f"{text}."
    adapter = saved.config.model.adapter
    assert adapter is not None
    bits = saved.config.model.quantization
    if bits is not None:
        text += f" only, on its base in {bits.type} as quantization_config.json has it: on the original weights it is "
        text += "off by what quantizing changed."
        more = " For vLLM, and for transformers without PEFT, export with --merge."
        return text + (more if KINDS[adapter.type].merges else "")
    if not KINDS[adapter.type].merges:
        return f"{text} only: vLLM serves no adapter of type {adapter.type}, and it cannot be merged into the base."
    what = f"type {adapter.type}" + (f", rank {adapter.rank}" if "rank" in KINDS[adapter.type].keys else "")
    return (
        f"{text} only: vLLM does not serve this adapter ({what}). For vLLM, and for transformers without PEFT, export "
        "with --merge."
    )


def loading(saved: Saved, form: Form, loaders: tuple[str, ...], folder: Path) -> str:
    """Three lines for each that can, as Markdown."""
    shown = [who_loads(saved, form, loaders)]
    if saved.kind == "tasks":
        names = ", ".join(f"tasks/{task.name}" for task in saved.config.tasks)
        lines = ["from rlft.models.tasks import load_task_model", "", 'model = load_task_model("DIR/tasks/NAME")']
        return "\n\n".join([*shown, f"A model for each task: {names}.", _code(lines)])
    shown += [_code(_LINES[loader](saved, form, folder)) for loader in loaders]
    return "\n\n".join(shown)


def _transformers(saved: Saved, form: Form, folder: Path) -> list[str]:
    auto = _AUTO[saved.kind]
    return [
        f"from transformers import {auto}, AutoTokenizer",
        f'model = {auto}.from_pretrained("DIR")',
        'tokenizer = AutoTokenizer.from_pretrained("DIR")',
    ]


def _peft(saved: Saved, form: Form, folder: Path) -> list[str]:
    auto, options = _AUTO[saved.kind], ", num_labels=1" if saved.kind == "reward_model" else ""
    before = [f"from peft import PeftModel; from transformers import {auto}"]
    if saved.config.model.quantization is not None:
        options += ", quantization_config=bits"
        before += [
            "import json; from transformers import BitsAndBytesConfig",
            'bits = BitsAndBytesConfig.from_dict(json.load(open("DIR/quantization_config.json")))',
        ]
    return [
        *before,
        f'base = {auto}.from_pretrained("{saved.config.model.path}"{options})',
        'model = PeftModel.from_pretrained(base, "DIR")',
    ]


def _vllm(saved: Saved, form: Form, folder: Path) -> list[str]:
    if form != "adapter":
        return ["from vllm import LLM", 'llm = LLM("DIR")', 'llm.generate(["..."])']
    settings = saved.settings(folder)
    assert settings is not None
    rank = next(size for size in VLLM_RANKS if size >= settings["r"])
    return [
        "from vllm import LLM; from vllm.lora.request import LoRARequest",
        f'llm = LLM("{saved.config.model.path}", enable_lora=True, max_lora_rank={rank})',
        'llm.generate(["..."], lora_request=LoRARequest("adapter", 1, "DIR"))',
    ]


def _rlft(saved: Saved, form: Form, folder: Path) -> list[str]:
    model = saved.config.model.model_dump(mode="json", exclude_defaults=True)
    return [
        "from pathlib import Path; from rlft.config.model import ModelConfig; from rlft.models.load import *",
        f"settings = ModelConfig.model_validate({model!r})",
        'model = load_checkpoint(settings, Path("DIR"))',
    ]


_LINES = {"transformers": _transformers, "peft": _peft, "vllm": _vllm, "rlft": _rlft}


def _code(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])
