"""How the bytes of a weight update get from the learner's ranks to whoever generates.

    memory      the update carries them, through Ray's object store and shared memory: works everywhere
    collective  rank 0 broadcasts bucket by bucket to all generators, by NCCL between GPUs and gloo between CPUs
    ipc         nothing moves: a generator maps the learner's own tensors, on the GPU that both share

Both ends are in this file. Knows nothing about Ray, DeepSpeed or vLLM. Whichever way they came, the receiver compares
fingerprints of what its model holds with those of the learner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from rlft.engines.weights import Bucket, TensorEntry, WeightUpdate, as_tensor, fingerprint, unpacked
from rlft.errors import WeightSyncError


@dataclass(frozen=True)
class ChannelSeat:
    """One member's place in the process group over which weights are broadcast. Rank 0 sends."""

    host: str
    port: int
    rank: int
    size: int
    timeout_s: float


class Channel:
    """A process group of its own: that of DeepSpeed's ranks or of vLLM's workers is not touched."""

    def __init__(self, seat: ChannelSeat, device: torch.device) -> None:
        """Waits until all members are there, at most the seat's timeout."""
        limit = timedelta(seconds=seat.timeout_s)
        store = TCPStore(seat.host, seat.port, seat.size, is_master=seat.rank == 0, timeout=limit)
        self._device = device
        if device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = limit
            self._group: Any = dist.ProcessGroupNCCL(store, seat.rank, seat.size, options)
        else:
            self._group = dist.ProcessGroupGloo(store, seat.rank, seat.size, limit)

    def send(self, buckets: Iterable[Bucket]) -> None:
        """Rank 0's end of `receive`: each bucket, and behind it what its tensors hash to."""
        for bucket in buckets:
            self._broadcast(bucket.data)
            hashes = np.array([entry.fingerprint for entry in bucket.entries], dtype=np.uint64).view(np.int64)
            self._broadcast(torch.from_numpy(hashes).to(self._device))

    def receive(self, update: WeightUpdate) -> Iterator[tuple[TensorEntry, Tensor]]:
        """The tensors of an update of which only names and places are known; `update.buckets` are their sizes. A tensor
        is good until the next one is asked for."""
        for number, size in enumerate(update.buckets):
            entries = [entry for entry in update.entries if entry.bucket == number]
            data = self._broadcast(torch.empty(size, dtype=torch.uint8, device=self._device))
            hashes = self._broadcast(torch.empty(len(entries), dtype=torch.int64, device=self._device))
            for entry, value in zip(entries, hashes.cpu().numpy().view(np.uint64).tolist(), strict=True):
                raw = data[entry.offset : entry.offset + entry.num_bytes]
                yield replace(entry, fingerprint=value), as_tensor(raw, entry)

    def _broadcast(self, tensor: Tensor) -> Tensor:
        if tensor.numel():
            options = dist.BroadcastOptions()
            options.rootRank, options.rootTensor = 0, 0
            self._group.broadcast([tensor], options).wait()
        return tensor


class _Shared:
    """A tensor on a GPU: itself in this process, where CUDA cannot map it, and a handle of it in others."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def on(self, device: torch.device) -> Tensor:
        """The tensor; `device` is the one that it lies on."""
        return self._tensor

    def __reduce__(self) -> tuple[Any, ...]:
        from torch.multiprocessing.reductions import reduce_tensor

        return _Handle, reduce_tensor(self._tensor)


class _Handle(NamedTuple):
    """What torch needs to map another process's tensor."""

    rebuild: Callable[..., Tensor]
    arguments: tuple[Any, ...]

    def on(self, device: torch.device) -> Tensor:
        """The tensor, mapped; the same GPU may have another number in this process."""
        arguments = list(self.arguments)
        arguments[6] = device.index or 0
        return self.rebuild(*arguments)


def share_on_gpu(tensors: Mapping[str, Tensor], version: int, complete: bool, trainable: Sequence[str]) -> WeightUpdate:
    """An update whose tensors stay where they are, for processes on the same GPU; they must not change until it is
    loaded. Its one bucket: the GPU, and a handle for each tensor."""
    entries = tuple(
        TensorEntry(name, tuple(t.shape), str(t.dtype).removeprefix("torch."), 0, 0, t.nbytes, fingerprint(t))
        for name, t in tensors.items()
    )
    handles = [_Shared(t.detach()) for t in tensors.values()]
    device = next(iter(tensors.values())).device
    return WeightUpdate(version, entries, ((_gpu(device), handles),), complete, tuple(trainable), "ipc")


def merged(parts: Sequence[WeightUpdate]) -> WeightUpdate:
    """The updates of ranks that hold the same weights on GPUs of their own, as one."""
    return replace(parts[0], buckets=tuple(bucket for part in parts for bucket in part.buckets))


def _mapped(update: WeightUpdate, device: torch.device) -> Iterator[tuple[TensorEntry, Tensor]]:
    handles = dict(update.buckets).get(_gpu(device))
    if handles is None:
        raise WeightSyncError(
            f"weight version {update.version}: no learner rank is on the GPU of this generator, so nothing can be "
            "mapped. Give each generator the GPU of a rank (cluster.layout: colocated, as many generators as ranks), "
            "or use cluster.weight_transport: collective or memory."
        )
    for entry, handle in zip(update.entries, handles, strict=True):
        yield entry, handle.on(device)


def _gpu(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def arriving(
    update: WeightUpdate, channel: Channel | None, device: torch.device
) -> Iterator[tuple[TensorEntry, Tensor]]:
    """The tensors of an update, however they come, each with what it must hash to. One is good until the next."""
    if update.transport == "collective":
        if channel is None:
            raise WeightSyncError(f"weight version {update.version} is broadcast, but this generator is on no channel")
        return channel.receive(update)
    return _mapped(update, device) if update.transport == "ipc" else unpacked(update)
