"""Putting an adapter around a model. The table of how each kind is built is here.

Knows nothing about losses, engines or Ray. What each kind can do is in rlft.config.adapters.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from rlft.config.adapters import AdapterConfig
from rlft.errors import UserError
from rlft.models.adapters.bitfit import BitFit
from rlft.models.adapters.bottleneck import Bottlenecks
from rlft.models.adapters.delta_lora import DeltaLora
from rlft.models.adapters.lora_drop import LoraDrop
from rlft.models.adapters.lora_experts import LoraExperts
from rlft.models.adapters.own import OwnAdapter, Whole, alone, own_adapter
from rlft.models.adapters.virtual import has_virtual_tokens, start
from rlft.models.quantization import quantized_layers

_VERA_KEY = 0  # of the random projections that all layers share; the same in every process


def add_adapter(
    lm: nn.Module, adapter: AdapterConfig, seed: int, task: str = "CAUSAL_LM", names: Sequence[str] = ("default",),
    steps: int = 0, dtype: torch.dtype | None = None,
) -> nn.Module:  # fmt: skip
    """Wrap a model so that only adapters train (and with task SEQ_CLS the head). Kinds of ours (OWN) change the model
    in place, and are for causal language models.

    Args:
        lm: a transformers model.
        seed: of fresh weights.
        task: what peft calls the model's task.
        names: of as many adapters, of which the first is in use.
        steps: of the run, for kinds whose size follows a schedule.
        dtype: of the adapter's weights, those of the model by default: every role holds them in one type.

    Raises:
        UserError: the target modules match nothing.
    """
    _check_targets(lm, adapter)
    before = {id(p) for p in lm.parameters()}
    kind = dtype or next(p.dtype for p in lm.parameters() if p.is_floating_point())
    if adapter.type in OWN:
        return _add_own(lm, adapter, seed, kind)
    from peft import get_peft_model

    with _drawn_from(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            settings = BUILDERS[adapter.type](adapter, lm, steps)
            settings.task_type = task
            wrapped = get_peft_model(lm, settings, names[0])  # type: ignore[arg-type]
            for name in names[1:]:
                wrapped.add_adapter(name, settings)
            if adapter.type in ("prompt", "prefix"):
                start(wrapped, adapter)
        except ValueError as error:
            raise UserError(_no_target(lm, _targets(adapter), error)) from error
    for name, parameter in wrapped.named_parameters():
        if id(parameter) not in before and parameter.is_floating_point():
            parameter.data = parameter.data.to(kind)
        if adapter.type == "lora_fa" and ".lora_A." in name:
            parameter.requires_grad_(False)
    base = quantized_layers(wrapped)  # of which peft makes new parameters now and then
    new = [(name, p) for name, p in wrapped.named_parameters() if name not in base]
    own = [name for name, p in new if id(p) not in before or p.requires_grad]
    wrapped.rlft_own = tuple(own)  # type: ignore[assignment]
    return wrapped  # type: ignore[return-value]


def _add_own(lm: nn.Module, adapter: AdapterConfig, seed: int, dtype: torch.dtype) -> nn.Module:
    with _drawn_from(seed):
        try:
            own = OWN[adapter.type](lm, adapter)
        except ValueError as error:
            raise UserError(_no_target(lm, _targets(adapter), error)) from error
    for name, parameter in lm.named_parameters():
        if name in own.names and parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    lm.rlft_adapter, lm.rlft_own = own, own.names  # type: ignore[assignment]
    return lm


def own_names(model: nn.Module) -> list[str]:
    """Names of the adapter's parameters, also of those that do not train; of all where there is no adapter."""
    own: Any = getattr(model, "rlft_own", None)
    return [name for name, _ in model.named_parameters()] if own is None else list(own)


@contextlib.contextmanager
def adapter_off(model: nn.Module, writing: Whole = alone) -> Iterator[None]:
    """The model without its adapter for the length of this block. What trains stays marked as it is, which peft's own
    switch would not leave alone. `writing`: for parameters that are changed and may be split over ranks."""
    own = own_adapter(model)
    if own is not None:
        with own.off(writing):
            yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    whole: Any = model
    for layer in layers:
        layer._disable_adapters = True
    if has_virtual_tokens(model):
        whole._adapters_disabled = True  # which rlft.models.adapters.virtual asks
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
        if has_virtual_tokens(model):
            whole._adapters_disabled = False


def norm_names(lm: nn.Module) -> list[str]:
    """The last part of the names of the model's normalisation layers."""
    return sorted({name.rsplit(".", 1)[-1] for name, m in lm.named_modules() if "Norm" in type(m).__name__})


def linear_names(lm: nn.Module) -> list[str]:
    """The last part of the names of the model's linear layers."""
    return sorted({name.rsplit(".", 1)[-1] for name, m in lm.named_modules() if isinstance(m, nn.Linear)})


def _lora(adapter: AdapterConfig, lm: nn.Module, steps: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha,  # pyright: ignore[reportArgumentType]  # peft divides, so any number works
        lora_dropout=adapter.dropout, target_modules=adapter.target_modules, use_rslora=adapter.rank_stabilized,
        use_dora=adapter.type == "dora", init_lora_weights="pissa" if adapter.type == "pissa" else True,
    )  # fmt: skip


def _adalora(adapter: AdapterConfig, lm: nn.Module, steps: int) -> Any:
    from peft import AdaLoraConfig

    steps = max(steps, 3)
    end = adapter.budget_end or max(1, steps * 2 // 3)  # as rlft.config.derived.adapter_budget_end
    return AdaLoraConfig(
        init_r=adapter.initial_rank or -(-adapter.rank * 3 // 2), target_r=adapter.rank,
        lora_alpha=adapter.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=adapter.dropout, target_modules=_linear_targets(adapter, lm),
        tinit=adapter.budget_start, tfinal=max(0, steps - end), total_step=steps, deltaT=adapter.budget_every,
        orth_reg_weight=adapter.orthogonality,
    )  # fmt: skip


def _vera(adapter: AdapterConfig, lm: nn.Module, steps: int) -> Any:
    from peft import VeraConfig

    return VeraConfig(
        r=adapter.rank, vera_dropout=adapter.dropout, target_modules=_linear_targets(adapter, lm),
        projection_prng_key=_VERA_KEY,
    )  # fmt: skip


def _ia3(adapter: AdapterConfig, lm: nn.Module, steps: int) -> Any:
    from peft import IA3Config

    return IA3Config()  # on keys, values and the feed-forward layer's output, where peft knows them by architecture


def _ln_tuning(adapter: AdapterConfig, lm: nn.Module, steps: int) -> Any:
    from peft import LNTuningConfig

    return LNTuningConfig(target_modules=norm_names(lm))


def _virtual(adapter: AdapterConfig, lm: nn.Module, steps: int) -> Any:
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    num, width = adapter.num_tokens, adapter.projection_size
    if adapter.type == "prompt":
        return PromptTuningConfig(num_virtual_tokens=num)
    if adapter.type == "p_tuning":
        return PromptEncoderConfig(
            num_virtual_tokens=num, encoder_reparameterization_type=adapter.encoder.upper(),
            encoder_hidden_size=width,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
    projects = adapter.type == "p_tuning_v2"
    return PrefixTuningConfig(
        num_virtual_tokens=num, prefix_projection=projects, encoder_hidden_size=width,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


BUILDERS: dict[str, Callable[[AdapterConfig, nn.Module, int], Any]] = {
    "lora": _lora,
    "dora": _lora,
    "pissa": _lora,
    "lora_plus": _lora,
    "lora_fa": _lora,
    "adalora": _adalora,
    "vera": _vera,
    "ia3": _ia3,
    "ln_tuning": _ln_tuning,
    "prompt": _virtual,
    "p_tuning": _virtual,
    "prefix": _virtual,
    "p_tuning_v2": _virtual,
}


OWN: dict[str, Callable[[nn.Module, AdapterConfig], OwnAdapter]] = {
    "bitfit": BitFit,
    "bottleneck": Bottlenecks,
    "delta_lora": DeltaLora,
    "lora_drop": LoraDrop,
    "lora_experts": LoraExperts,
}


def _linear_targets(adapter: AdapterConfig, lm: nn.Module) -> Any:
    """Names, where peft does not know "all-linear": all linear layers but the output layer."""
    if adapter.target_modules != "all-linear":
        return adapter.target_modules
    output: Any = getattr(lm, "get_output_embeddings", lambda: None)()
    leaves = {n.rsplit(".", 1)[-1] for n, m in lm.named_modules() if isinstance(m, nn.Linear) and m is not output}
    return sorted(leaves)


def _targets(adapter: AdapterConfig) -> list[str]:
    return [adapter.target_modules] if isinstance(adapter.target_modules, str) else [*adapter.target_modules]


def _check_targets(lm: Any, adapter: AdapterConfig) -> None:
    """Every name must be that of a module, or the end of its path; and what is tied to another weight cannot be merged
    into that alone."""
    if adapter.target_modules == "all-linear":
        return
    modules = dict(lm.named_modules())
    found = {t: [m for n, m in modules.items() if f".{n}".endswith(f".{t}")] for t in adapter.target_modules}
    unknown = [target for target, there in found.items() if not there]
    if unknown:
        raise UserError(_no_target(lm, unknown))
    output, tied = lm.get_output_embeddings(), lm.get_input_embeddings()
    if output is None or output.weight is not tied.weight:
        return
    for target, there in found.items():
        if output in there or tied in there:
            raise UserError(
                f"model.adapter.target_modules: {target} shares its weight with another layer of this model "
                "(embeddings and output layer are tied), so an adapter on one of both could never be merged. Leave it "
                "out, or use all-linear."
            )


def _no_target(lm: nn.Module, names: Sequence[str], error: Exception | None = None) -> str:
    return (
        f"model.adapter.target_modules: {', '.join(names)} fits no module of this model. Its linear layers "
        f"are named: {', '.join(linear_names(lm))}. Use some of these, or all-linear.{f' ({error})' if error else ''}"
    )


@contextlib.contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
