"""Where a published tensor ends up in a vLLM worker, whose layers are fused (q, k and v in one) and split over ranks.

Works on the layers' own attributes and imports nothing from vLLM. What it does not know, it says so: such a model is
loaded by vLLM's own loader, and only the probe speaks for the tensors that cannot be read back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Landing:
    """This worker's part of one published tensor."""

    parameter: Any  # the vLLM parameter that holds it
    take: Callable[[Tensor], Tensor]  # published tensor -> this worker's part of it
    look: Callable[[], Tensor]  # that part as the model holds it now; a view, so that it can be written too


def can_read_back(model: nn.Module) -> bool:
    """Whether every weight of this model stays what was loaded: no layer that vLLM repacks, quantizes or derives
    others from (experts, MLA, state-space layers)."""
    for module in model.modules():
        kind, method = type(module).__name__, getattr(module, "quant_method", None)
        if any(word in kind for word in ("MoE", "MLA", "Mamba", "Conv", "LinearAttention", "GatedDelta")):
            return False
        if method is not None and not type(method).__name__.startswith(("Unquantized", "Embedding", "BaseKVCache")):
            return False
    return True


def find_landing(model: nn.Module, name: str) -> Landing | None:
    """Where the tensor that Hugging Face calls `name` lies; None when the model has no such place."""
    name = _renamed(model, name)
    path, _, leaf = name.rpartition(".")
    parent, _, last = path.rpartition(".")
    index, whole = 0, True
    for fused, parts in (getattr(model, "packed_modules_mapping", None) or {}).items():
        if last in parts and last != fused and _module(model, f"{parent}.{fused}") is not None:
            path, index, whole = f"{parent}.{fused}", list(parts).index(last), False
    module = _module(model, path)
    parameter = getattr(module, leaf, None) if module is not None else None
    if not isinstance(parameter, nn.Parameter):
        return None
    if whole and (hasattr(module, "num_kv_head_replicas") or len(getattr(module, "output_sizes", ())) > 1):
        if getattr(module, "tp_size", 1) > 1:
            return None  # fused in the checkpoint already (Phi-3): its rows would have to be picked apart
        return Landing(parameter, lambda t: t, lambda: parameter.data)
    return _landing(module, parameter, leaf, index)


def _renamed(model: nn.Module, name: str) -> str:
    """For models whose parts are called otherwise in vLLM (a language model inside a multimodal one)."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return name
    if getattr(mapper, "orig_to_new_stacked", None):  # which layers are fused is looked up by `find_landing`
        mapper = replace(mapper, orig_to_new_stacked={})
    return mapper._map_name(name) or name


def _module(model: nn.Module, path: str) -> Any:
    try:
        module: Any = model.get_submodule(path)
    except AttributeError:
        return None
    return getattr(module, "base_layer", module)  # with an adapter around it, what it is around


def _landing(module: Any, parameter: nn.Parameter, leaf: str, index: int) -> Landing:
    rank = getattr(module, "tp_rank", 0)
    if hasattr(module, "num_kv_head_replicas"):  # q, k, v in one
        sizes = [module.num_heads * module.head_size] + [
            module.num_kv_heads * size for size in (module.head_size, getattr(module, "v_head_size", module.head_size))
        ]
        source = rank if index == 0 else rank // module.num_kv_head_replicas
        return _rows(parameter, sum(sizes[:index]), sizes[index], source * sizes[index])
    if len(getattr(module, "output_sizes", ())) > 1:  # several column-parallel layers in one
        sizes = [size // module.tp_size for size in module.output_sizes]
        return _rows(parameter, sum(sizes[:index]), sizes[index], rank * sizes[index])
    if hasattr(module, "shard_indices"):  # embedding or head: rows are words, with padding behind
        first, last = module.shard_indices.org_vocab_start_index, module.shard_indices.org_vocab_end_index
        return _rows(parameter, 0, last - first, first)
    if getattr(module, "input_is_parallel", False) and leaf == "weight":  # row-parallel: split along its input
        size = parameter.shape[1]
        return Landing(parameter, lambda t: t.narrow(1, rank * size, size), lambda: parameter.data)
    if getattr(module, "tp_size", 1) > 1 and hasattr(module, "gather_output"):  # column-parallel
        return _rows(parameter, 0, parameter.shape[0], rank * parameter.shape[0])
    return Landing(parameter, lambda t: t, lambda: parameter.data)


def _rows(parameter: nn.Parameter, start: int, size: int, source: int) -> Landing:
    return Landing(
        parameter, lambda t: t.narrow(0, source, size), lambda: parameter.data.narrow(0, start, size)
    )  # fmt: skip
