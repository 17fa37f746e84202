"""What the backward pass needs, kept in CPU memory between the passes. Knows nothing about DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SMALLEST = 4096  # bytes; moving less costs more than it frees


def keep_activations_on_cpu(module: nn.Module) -> None:
    """From now on the module's forward pass moves each tensor that is saved for the backward pass to CPU memory, and
    the backward pass fetches it. Weights stay: they are there anyway, or with ZeRO-3 come back by themselves."""
    forward = module.forward

    def kept(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(_to_cpu, _back):
            return forward(*args, **kwargs)

    module.forward = kept


def _to_cpu(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
    if tensor.nbytes < _SMALLEST or is_weight(tensor):
        return tensor
    packed = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    packed.copy_(tensor)
    return tensor.device, packed


def _back(saved: Tensor | tuple[torch.device, Tensor]) -> Tensor:
    if isinstance(saved, Tensor):
        return saved
    device, packed = saved
    return packed.to(device, non_blocking=True)


def is_weight(tensor: Tensor) -> bool:
    """Whether it is a parameter or a view of one."""
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
