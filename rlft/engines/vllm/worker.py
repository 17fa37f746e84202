"""What runs inside vLLM's worker processes: takes over weights and proves that they are what is served.

vLLM mixes WeightReceiver into its worker class (`worker_extension_cls`) and calls it by `collective_rpc`. Problems come
back as sentences, because exceptions lose their type on that way. On CPUs vLLM would pack matrices into a form that
cannot be read back; importing this file turns that off.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import vllm._custom_ops as custom_ops
import vllm.model_executor.layers.utils as layer_utils
from torch import Tensor

from rlft.engines.transport import Channel, ChannelSeat, arriving
from rlft.engines.vllm.handover import read_update
from rlft.engines.vllm.landing import Landing, can_read_back, find_landing
from rlft.engines.weights import TensorEntry, WeightUpdate, fingerprint

_PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed actor leaves no engine behind on its GPU
# On CPUs matrices stay as they are and torch multiplies them (as fast at these sizes): packed, by oneDNN or for
# bfloat16 by AMX kernels, they could not be read back.
custom_ops._supports_onednn = False
layer_utils.check_cpu_sgl_kernel = lambda *sizes: False


class WeightReceiver:
    """Mixed into vLLM's Worker. Methods begin with rlft_ so that they cannot hide any of the worker's own."""

    model_runner: Any
    device: torch.device

    rlft_channel: Channel | None = None

    def rlft_join(self, host: str, port: int, first_rank: int, size: int, timeout_s: float) -> None:
        """Take part in the broadcast of weights; vLLM's workers have the ranks from `first_rank` on."""
        rank = first_rank + (dist.get_rank() if dist.is_initialized() else 0)
        self.rlft_channel = Channel(ChannelSeat(host, port, rank, size, timeout_s), torch.device(self.device))

    def rlft_load(self, folder: str) -> list[str]:
        """Take over the update that `handover.write_update` left in `folder`; what went wrong, empty when each tensor
        that can be read back holds the published bytes."""
        update = read_update(Path(folder))
        with torch.no_grad():
            if self.rlft_reads_back():
                return self._rlft_copy(self.model_runner.get_model(), update)
            return self._rlft_reload(update)

    def rlft_check_adapter(self, adapter_id: int, folder: str, scale: float) -> list[str]:
        """Whether the adapter that vLLM serves under `adapter_id` holds what lies in `folder`."""
        from rlft.engines.vllm.adapters import check_adapter

        return check_adapter(self.model_runner.lora_manager._adapter_manager, adapter_id, Path(folder), scale)

    def rlft_reads_back(self) -> bool:
        """Whether what was loaded can be compared with what the model holds."""
        return can_read_back(self.model_runner.get_model())

    def _rlft_copy(self, model: Any, update: WeightUpdate) -> list[str]:
        """Copy straight into the parameters, then compare what is there with what came."""
        problems, landed, filled = [], {}, dict[int, int]()
        for entry, tensor in self._rlft_published(update):
            landing = find_landing(model, entry.name)
            problem = _misfit(entry, tensor, landing)
            if landing is None or problem:
                problems.append(problem)
                continue
            part = landing.take(tensor)
            copy_part(entry, part, landing.look())
            expected = entry.fingerprint
            if part.numel() < tensor.numel():  # of a part nothing was published: it is true when the whole is
                expected = fingerprint(part)
                problems += _arrived_broken(entry, tensor)
            landed[entry.name] = landing, expected
            filled[id(landing.parameter)] = filled.get(id(landing.parameter), 0) + part.numel()
        for name, (landing, expected) in landed.items():
            found = fingerprint(landing.look())
            if found != expected:
                problems += self._rlft_came_broken(update, name) or [
                    f"tensor {name} does not hold the published bytes after loading: expected fingerprint "
                    f"{expected:016x}, found {found:016x}"
                ]
        if not problems:
            problems += [f"tensor {entry.name} was not loaded" for entry in update.entries if entry.name not in landed]
        if not problems and update.complete:
            problems += [f"tensor {name} of the model was not in the update" for name in _unfilled(model, filled)]
        return problems

    def _rlft_published(self, update: WeightUpdate) -> Iterator[tuple[TensorEntry, Tensor]]:
        """What came, tensor by tensor."""
        yield from arriving(update, self.rlft_channel, torch.device(self.device))

    def _rlft_came_broken(self, update: WeightUpdate, name: str) -> list[str]:
        """Whether a tensor was no longer what was published when it came here. What was broadcast is gone by now."""
        if update.transport == "collective":
            return []
        again = arriving(update, None, torch.device(self.device))
        return next(_arrived_broken(entry, tensor) for entry, tensor in again if entry.name == name)

    def _rlft_reload(self, update: WeightUpdate) -> list[str]:
        """By vLLM's own loader, which repacks and quantizes as when the model was first loaded."""
        problems = []

        def arrived() -> Iterator[tuple[str, Tensor]]:
            for entry, tensor in self._rlft_published(update):
                problems.extend(_arrived_broken(entry, tensor))
                yield entry.name, tensor.to(self.device)

        self.model_runner.reload_weights(weights_iterator=arrived())
        return problems


def copy_part(entry: TensorEntry, part: Tensor, target: Tensor) -> None:
    """Put this worker's part of a published tensor where the model reads it."""
    target.copy_(part)


def _misfit(entry: TensorEntry, tensor: Tensor, landing: Landing | None) -> str:
    """Why this tensor cannot be loaded, or nothing."""
    if landing is None:
        return f"tensor {entry.name} has no place in this model"
    target = landing.look()
    try:
        part = landing.take(tensor)
    except (RuntimeError, IndexError) as error:
        return f"tensor {entry.name} is {tuple(tensor.shape)}, which does not fit this model ({error})"
    if part.shape != target.shape or part.dtype != target.dtype:
        return (
            f"tensor {entry.name} is {tensor.dtype} {tuple(tensor.shape)}, of which {tuple(part.shape)} belong here, "
            f"but there is room for {target.dtype} {tuple(target.shape)}"
        )
    return ""


def _arrived_broken(entry: TensorEntry, tensor: Tensor) -> list[str]:
    if fingerprint(tensor) == entry.fingerprint:
        return []
    return [f"tensor {entry.name} arrived broken: its bytes do not have the fingerprint {entry.fingerprint:016x}"]


def _unfilled(model: Any, filled: dict[int, int]) -> list[str]:
    """Parameters of which a complete update left something out. Embeddings have padding that nobody sends."""
    names = []
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            got = filled.get(id(parameter), 0)
            if got == 0 or (got < parameter.numel() and not hasattr(module, "shard_indices")):
                names.append(f"{module_name}.{name}".replace(".base_layer.", "."))
    return sorted(set(names))
