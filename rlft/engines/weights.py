"""Weights on their way from the learner to a generator: names, buckets of bytes, fingerprints, and proof of arrival.

Knows nothing about Ray or about how bytes travel (see transport.py): a bucket is an array here, and whatever carries it
elsewhere.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlft.errors import WeightSyncError

BUCKET_BYTES = 64 << 20  # large enough that a message's overhead vanishes, small beside any model worth splitting
_CHUNK = {"cpu": 1 << 16, "cuda": 1 << 22}  # words hashed at a time: what a core's cache holds; few launches on a GPU
_MULTIPLIER = -7046029254386353131  # 0x9E3779B97F4A7C15, odd, so that the products below lose nothing
_WEIGHTS: dict[torch.device, Tensor] = {}  # of places, made once per device


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies and what it must hash to."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # "float32", "bfloat16", ...
    bucket: int
    offset: int  # in bytes
    num_bytes: int
    fingerprint: int


@dataclass(frozen=True)
class WeightUpdate:
    """One version of the weights."""

    version: int
    entries: tuple[TensorEntry, ...]
    buckets: tuple[Any, ...]  # uint8 arrays, or what a transport puts in their place
    complete: bool  # every parameter, not only those that train
    trainable: tuple[str, ...]  # names of the parameters that every later update must bring
    transport: str = "memory"  # how the bytes come: see transport.py

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(e.num_bytes for e in self.entries)


def fingerprint(tensor: Tensor) -> int:
    """64-bit hash of a tensor's bytes that depends on each word and its place, computed where the tensor is: the sum
    of mixed(word[i]) * (2 i + 1) * odd constant, modulo 2**64. Integers, so the same on every device and for every
    order of summation. A changed or moved word changes it but for coincidences of about one in 2**32; it is a check
    against mistakes, not against malice."""
    flat = tensor.detach().contiguous().flatten()
    if flat.numel() * flat.element_size() % 8 == 0:
        words = (flat.clone() if flat.data_ptr() % 8 else flat).view(torch.int64)
    else:
        words = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    chunk = _CHUNK.get(words.device.type, 1 << 22)
    weights = _place_weights(min(len(words), chunk), words.device)
    total = 0
    for start in range(0, len(words), chunk):
        part = words[start : start + chunk].to(torch.int64)
        part = part + (part >> 32)  # places differ by even factors, so a word's top bit alone would be lost
        # (2 (start + i) + 1) m = (2 i + 1) m + 2 start m: the same weights serve every chunk
        total += _dot(part, weights[: len(part)]) + 2 * start * _MULTIPLIER * int(part.sum())
    return total % (1 << 64)


def _dot(a: Tensor, b: Tensor) -> int:
    """Sum of products modulo 2**64; GPUs have no such product of integers, CPUs do it in one pass."""
    return int(torch.dot(a, b)) if a.device.type == "cpu" else int((a * b).sum())


def _place_weights(count: int, device: torch.device) -> Tensor:
    """(2 i + 1) * multiplier for i < count, int64, wrapping around."""
    known = _WEIGHTS.get(device)
    if known is None or len(known) < count:
        known = (2 * torch.arange(count, device=device, dtype=torch.int64) + 1) * _MULTIPLIER
        _WEIGHTS[device] = known
    return known


class Places:
    """Gives tensors their places in buckets, one after another, each at a multiple of 8 bytes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []  # bytes of each bucket so far
        self._room = 0  # of the last one

    def add(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> TensorEntry:
        """The place of one more tensor; its fingerprint is not known yet (0)."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if not self.sizes or self.sizes[-1] + num_bytes > self._room:
            self._room = max(BUCKET_BYTES, num_bytes)
            self.sizes.append(0)
        offset, kind = self.sizes[-1], str(dtype).removeprefix("torch.")
        self.sizes[-1] = min(-(-(offset + num_bytes) // 8) * 8, self._room)
        return TensorEntry(name, tuple(shape), kind, len(self.sizes) - 1, offset, num_bytes, 0)


class Bucket(NamedTuple):
    """Tensors one behind the other."""

    data: Tensor  # uint8
    entries: list[TensorEntry]


def fill_buckets(tensors: Iterable[tuple[str, Tensor]], device: torch.device | str = "cpu") -> Iterator[Bucket]:
    """Copy tensors into buckets on `device`, each handed over when it is full; names, places and fingerprints."""
    places, entries = Places(), list[TensorEntry]()
    room = torch.empty(0, dtype=torch.uint8)  # the bucket that is being filled
    for name, tensor in tensors:
        data = tensor.detach().to(device).contiguous()
        entry = places.add(name, data.shape, data.dtype)
        if entries and entry.bucket != entries[-1].bucket:
            yield Bucket(room[: places.sizes[-2]], entries)
            entries = []
        if not entries:
            room = torch.empty(max(BUCKET_BYTES, entry.num_bytes), dtype=torch.uint8, device=device)
        end = entry.offset + entry.num_bytes
        room[entry.offset : end] = data.flatten().view(torch.uint8)  # copied now: gathered ones go away
        room[end : places.sizes[-1]] = 0
        entries.append(replace(entry, fingerprint=fingerprint(data)))
    if entries:
        yield Bucket(room[: places.sizes[-1]], entries)


def pack_weights(
    tensors: Iterable[tuple[str, Tensor]], version: int, complete: bool, trainable: Sequence[str]
) -> WeightUpdate:
    """An update that carries its bytes, as arrays."""
    buckets = list(fill_buckets(tensors))
    entries = tuple(entry for bucket in buckets for entry in bucket.entries)
    arrays = tuple(bucket.data.numpy() for bucket in buckets)
    return WeightUpdate(version, entries, arrays, complete, tuple(trainable))


def unpacked(update: WeightUpdate) -> Iterator[tuple[TensorEntry, Tensor]]:
    """The tensors of an update that carries its bytes, as views of them."""
    arrays = [np.asarray(bucket) for bucket in update.buckets]
    for entry in update.entries:
        raw = arrays[entry.bucket][entry.offset : entry.offset + entry.num_bytes]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the array may be read-only; it is only read
            yield entry, as_tensor(torch.from_numpy(raw), entry)


def as_tensor(raw: Tensor, entry: TensorEntry) -> Tensor:
    """Bytes as the tensor that they are."""
    return raw.view(getattr(torch, entry.dtype)).view(entry.shape)


def load_weights(
    update: WeightUpdate,
    arriving: Iterable[tuple[TensorEntry, Tensor]],
    targets: Mapping[str, Tensor],
    expected: Sequence[str],
    who: str,
) -> None:
    """Copy an update into `targets` and verify that each tensor now hashes to what the learner published.

    Args:
        update: what is announced.
        arriving: its tensors, each with what it must hash to (`unpacked(update)`, or see transport.py).
        targets: the generator's parameters by name.
        expected: names that this update must bring, neither more nor fewer.
        who: the generator, for messages.

    Raises:
        WeightSyncError: names the tensor, the version and the generator.
    """
    names = [entry.name for entry in update.entries]
    for kind, odd in (("lacks", set(expected) - set(names)), ("brings unknown", set(names) - set(expected))):
        if odd:
            some = ", ".join(sorted(odd)[:3])
            raise WeightSyncError(f"{who}: weight version {update.version} {kind} {len(odd)} tensors: {some}")
    arrived = []
    with torch.no_grad():
        for entry, tensor in arriving:
            target = targets[entry.name]
            found = (tuple(target.shape), str(target.dtype).removeprefix("torch."))
            if found != (entry.shape, entry.dtype):
                raise WeightSyncError(
                    f"{who}: tensor {entry.name} of weight version {update.version} is {entry.dtype} {entry.shape} at "
                    f"the learner but {found[1]} {found[0]} here: were both built from the same model?"
                )
            target.copy_(tensor)
            arrived.append(entry)
    missing = set(names) - {entry.name for entry in arrived}
    if missing:
        raise WeightSyncError(f"{who}: weight version {update.version}: {len(missing)} announced tensors never came")
    verify_weights(update.version, arrived, targets, who)


def verify_weights(version: int, entries: Iterable[TensorEntry], targets: Mapping[str, Tensor], who: str) -> None:
    """Compare what `targets` hold with what was published, tensor by tensor. Raises WeightSyncError."""
    for entry in entries:
        if fingerprint(targets[entry.name]) != entry.fingerprint:
            raise WeightSyncError(
                f"{who}: tensor {entry.name} does not hold the bytes of weight version {version} after loading: "
                f"expected fingerprint {entry.fingerprint:016x}, found {fingerprint(targets[entry.name]):016x}. "
                "The generator serves nothing until a load is verified."
            )
