"""Loads an export by transformers and peft (an adapter's base as the learner had it, dequantized), and compares what
it says with what the checkpoint says.

Both compute in float32, so that the figure is what writing changed (a rounded weight, a merge) and not the noise of
computing. One model is in memory at a time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlft.errors import RunError
from rlft.exporting.saved import Form, Saved
from rlft.models.adapters.own import own_adapter
from rlft.models.adapters.reading import read_peft
from rlft.models.attention import PackedLayout
from rlft.models.load import load_checkpoint, load_model, num_logits, window
from rlft.models.quantization import dequantize
from rlft.models.reward import load_classifier, load_trained_reward_model
from rlft.models.tasks import load_adapted_task_model

EXACT, ROUNDED = 1e-4, 5e-2
_LENGTHS = (3, 17, 40, 64)  # of the probes, in tokens


class Gap(NamedTuple):
    """How far the export is from the checkpoint."""

    largest: float
    mean: float
    rounded: bool  # whether weights were rounded to 16 bits on the way
    what: str  # log-probs, scores or logits

    @property
    def fits(self) -> bool:
        """Where nothing was rounded no number may be off; else, over many, the mean says whether it is the same
        model: how far a single one is moved by rounding depends on how sharp the model is."""
        return self.mean <= ROUNDED if self.rounded else self.largest <= EXACT

    def text(self) -> str:
        """For people."""
        limit = f"mean within {ROUNDED:g}, weights are rounded to 16 bits" if self.rounded else f"within {EXACT:g}"
        found = f"largest difference {self.largest:.2g}, mean {self.mean:.2g}"
        return f"{self.what} of {sum(_LENGTHS)} tokens: {found} (limit: {limit})"


def compare(saved: Saved, form: Form, dtype: str | None, folder: Path) -> Gap:
    """How far what lies in `folder` is from the checkpoint. Raises RunError where that is too far."""
    model = saved.config.model
    narrow = (dtype or model.dtype) != "float32" and (form == "merged" or dtype not in (None, model.dtype))
    pissa = form == "adapter" and model.adapter is not None and model.adapter.type == "pissa"
    half = narrow or (pissa and model.dtype != "float32")  # the run's base without the largest values was rounded
    differences = [_differences(saved, form, part, folder) for part in saved.folders()]
    every = torch.cat(differences)
    what = {"learner": "log-probs", "reward_model": "scores", "tasks": "logits"}[saved.kind]
    gap = Gap(float(every.max()), float(every.mean()), half, what)
    if not gap.fits:
        raise RunError(f"the export does not say what {saved.checkpoint} says: {gap.text()}. Nothing was left")
    return gap


def _differences(saved: Saved, form: Form, part: Path, folder: Path) -> Tensor:
    base = str(saved.config.model.path) if saved.config.model.adapter is not None else str(saved.checkpoint / part)
    ids = probes(num_logits(base), window(base, saved.config.model.adapter))
    expected = _said(_of_checkpoint(saved, part), ids)
    found = _said(_of_export(saved, form, folder / part), ids)
    difference = (found - expected).abs()
    return torch.where(torch.isfinite(difference), difference, torch.inf)


def probes(num_tokens: int, longest: int) -> list[Tensor]:
    """int64 [T] each: random tokens, the same for everybody."""
    random = np.random.default_rng(0)
    return [torch.from_numpy(random.integers(0, num_tokens, min(n, longest))) for n in _LENGTHS]


@torch.no_grad()
def _said(load: Callable[[], Callable[[Tensor], Tensor]], ids: list[Tensor]) -> Tensor:
    """What the model says of the probes, all in a row. The model is gone afterwards."""
    model = load()
    answers = torch.cat([model(tokens).float().flatten() for tokens in ids])
    del model
    gc.collect()
    return answers


def _of_checkpoint(saved: Saved, part: Path) -> Callable[[], Callable[[Tensor], Tensor]]:
    model, source = saved.config.model, saved.checkpoint / part

    def load() -> Callable[[Tensor], Tensor]:
        if saved.kind == "learner":
            return _logprobs(load_checkpoint(model, source).float())
        if saved.kind == "tasks":
            return _logits(load_adapted_task_model(source).float())
        reward = load_trained_reward_model(str(source), model.dtype).float()
        head: Any = reward.model

        def score(tokens: Tensor) -> Tensor:
            layout = PackedLayout([len(tokens)])
            return head.score(reward.hidden(tokens, layout.position_ids(), layout)[-1])

        return score

    return load


def _of_export(saved: Saved, form: Form, folder: Path) -> Callable[[], Callable[[Tensor], Tensor]]:
    def load() -> Callable[[Tensor], Tensor]:
        import transformers

        config: Any
        said = _logprobs if saved.kind == "learner" else _logits
        if form != "adapter":
            config = transformers.AutoConfig.from_pretrained(folder)
            kinds = {"learner": "AutoModelForCausalLM", "reward_model": "AutoModelForSequenceClassification"}
            kind: str = kinds.get(saved.kind) or config.architectures[0]
            return said(getattr(transformers, kind).from_pretrained(folder).float().eval())
        if saved.kind == "tasks":
            return said(load_adapted_task_model(folder).float())
        if saved.settings(folder) is None:  # a kind that only rlft knows
            return said(load_checkpoint(saved.config.model, folder).float())
        plain = saved.config.model.model_copy(update={"adapter": None})
        base = load_classifier(plain)[0] if saved.kind == "reward_model" else load_model(plain)
        return said(read_peft(dequantize(base), folder).float())

    return load


def _logprobs(model: Any) -> Callable[[Tensor], Tensor]:
    own = own_adapter(model)

    def said(tokens: Tensor) -> Tensor:
        if own is not None and own.by_source:
            own.use_sources(
                tuple(own.adapter.tasks), torch.arange(len(tokens), device=tokens.device)[None] % len(own.adapter.tasks)
            )
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, -len(tokens) :]  # less virtual tokens
        return torch.log_softmax(logits[:-1].float(), -1).gather(-1, tokens[1:, None])

    return said


def _logits(model: Any) -> Callable[[Tensor], Tensor]:
    def said(tokens: Tensor) -> Tensor:
        output = model(input_ids=tokens[None])
        return torch.cat([v.flatten() for name, v in output.items() if "logits" in name])

    return said
