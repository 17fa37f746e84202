"""Weights that are broadcast: real process groups on CPUs, and what goes wrong on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from rlft.engines import weights
from rlft.engines.transport import Channel, ChannelSeat, arriving
from rlft.engines.weights import Places, WeightUpdate, fill_buckets, load_weights
from rlft.errors import WeightSyncError

CPU = torch.device("cpu")


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Several dtypes, sizes that need padding, an empty one."""
    made = torch.Generator().manual_seed(seed)
    return {
        "embed": torch.randn(7, 3, generator=made),
        "half": torch.randn(5, generator=made).to(torch.bfloat16),
        "none": torch.zeros(0, 4),
        "large": torch.randn(40, 11, generator=made),
        "scalar": torch.randn((), generator=made),
    }


def announced(named: dict[str, torch.Tensor]) -> WeightUpdate:
    places = Places()
    entries = tuple(places.add(name, t.shape, t.dtype) for name, t in named.items())
    return WeightUpdate(3, entries, tuple(places.sizes), True, (), "collective")


def blank(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(t) for name, t in named.items()}


@pytest.fixture
def channels() -> Iterator[list[Channel]]:
    """A sender and two receivers, joined over gloo."""
    port = TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=5)).port
    made: dict[int, Channel] = {}

    def join(rank: int) -> None:
        made[rank] = Channel(ChannelSeat("127.0.0.1", port, rank, 3, 20.0), CPU)

    together(*[lambda rank=rank: join(rank) for rank in range(3)])
    yield [made[rank] for rank in range(3)]


def together(*calls: Any) -> None:
    errors = list[BaseException]()

    def run(call: Any) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a broadcast hangs"
    if errors:
        raise errors[0]


@pytest.mark.parametrize("bucket_bytes", [64, 1 << 20])
def test_every_receiver_gets_every_byte(channels, bucket_bytes, monkeypatch):
    """In one bucket, and in several: of 64 bytes the large tensor alone fills one."""
    monkeypatch.setattr(weights, "BUCKET_BYTES", bucket_bytes)
    named = tensors()
    update, targets = announced(named), [blank(named), blank(named)]
    assert (len(update.buckets) > 1) is (bucket_bytes == 64)

    def receive(number: int) -> None:
        load_weights(update, arriving(update, channels[number], CPU), targets[number - 1], list(named), "g")

    together(lambda: channels[0].send(fill_buckets(named.items())), lambda: receive(1), lambda: receive(2))
    for target in targets:
        assert all(torch.equal(target[name], named[name]) for name in named)


def test_a_byte_that_changes_on_the_way_is_found(channels):
    named = tensors()
    update, targets = announced(named), blank(named)

    def send() -> None:
        buckets = list(fill_buckets(named.items()))
        buckets[0].data[update.entries[3].offset] ^= 1
        channels[0].send(buckets)

    with pytest.raises(WeightSyncError, match="generator-1: tensor large does not hold the bytes of weight version 3"):
        together(
            send,
            lambda: load_weights(update, arriving(update, channels[1], CPU), targets, list(named), "generator-1"),
            lambda: list(arriving(update, channels[2], CPU)),
        )


def test_tensors_that_never_come_are_found():
    """A receiver that stops early holds old weights in the rest."""
    named = tensors()
    update = weights.pack_weights(named.items(), 3, True, [])
    some = list(weights.unpacked(update))[:3]
    with pytest.raises(WeightSyncError, match="generator-1: weight version 3: 2 announced tensors never came"):
        load_weights(update, some, blank(named), list(named), "generator-1")


def test_without_a_channel_nothing_is_waited_for():
    with pytest.raises(WeightSyncError, match="weight version 3 is broadcast, but this generator is on no channel"):
        arriving(announced(tensors()), None, CPU)
