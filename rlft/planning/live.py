"""Counts the bytes that tensors would take while code runs on the meta device, where they take none.

Every operation's result is seen as it is made, and its storage as it goes. So what autograd keeps, what a recomputed
layer makes again and what is only there for a moment is found by running the code and not by a formula for each model.
Knows nothing about models.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Within it, bytes of tensors by what `part` said when they were made. What was there before does not count."""

    def __init__(self, device: str = "meta") -> None:
        """`device`: of the tensors that count."""
        super().__init__()
        self._device = device
        self.part = ""  # what is being computed
        self.now: Counter[str] = Counter()
        self.total, self.peak = 0, 0
        self.at_peak: Counter[str] = Counter()  # by part, when the total was largest
        self._known: dict[int, tuple[int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_iter((args, kwargs)):
            self._see(value, made=False)  # of what was there before, views are no new bytes either
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            self._see(value, made=True)
        return result

    def call(self, tensor: Tensor, part: str) -> None:
        """Count this tensor to `part` from now on."""
        key = tensor.untyped_storage()._cdata
        size, before = self._known[key]
        self._known[key] = (size, part)
        self.now[before] -= size
        self.now[part] += size

    def _see(self, tensor: Any, made: bool) -> None:
        if not isinstance(tensor, Tensor) or tensor.device.type != self._device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if made else 0
        self._known[key] = (size, self.part)
        weakref.finalize(storage, self._gone, key)
        self.now[self.part] += size
        self.total += size
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, self.now.copy()

    def _gone(self, key: int) -> None:
        size, part = self._known.pop(key)
        self.now[part] -= size
        self.total -= size


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """scaled_dot_product_attention as the fused kernel that it is on devices, also on the meta device, where torch
    would take the plain formula: kept are queries, keys, values, the result and a number for each row (FlashAttention,
    Dao et al. 2022, arXiv:2205.14135), never a matrix of scores."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
