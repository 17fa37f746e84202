"""Weights in transit: fingerprints that notice every mistake, and a load that proves what it loaded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.engines import weights
from rlft.engines.weights import WeightUpdate, fingerprint, load_weights, pack_weights, unpacked, verify_weights
from rlft.errors import WeightSyncError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8]


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * 50).to(dtype)


# ---- fingerprints ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bytes_equal_fingerprints(dtype):
    tensor = numbers(7, 5, dtype=dtype)
    assert fingerprint(tensor) == fingerprint(tensor.clone())
    assert 0 <= fingerprint(tensor) < 2**64


@given(size=st.sampled_from([35, 36]), seed=st.integers(0, 1000), at=st.integers(0, 34), bit=st.integers(0, 31))
@settings(deadline=None, max_examples=150)
def test_one_changed_bit_shows(size, seed, at, bit):
    """35 floats do not fill words of 8 bytes, 36 do."""
    tensor = numbers(size, seed=seed)
    words = tensor.clone().view(torch.int32)
    words[at] ^= int(np.array([1 << bit], dtype=np.uint32).view(np.int32)[0])
    assert fingerprint(words.view(torch.float32)) != fingerprint(tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_changed_element_shows(dtype):
    tensor = numbers(7, 5, dtype=dtype)
    changed = tensor.clone()
    changed[6, 4] += 1
    assert fingerprint(changed) != fingerprint(tensor)


@given(size=st.sampled_from([35, 36]), i=st.integers(0, 34), j=st.integers(0, 34))
@settings(deadline=None, max_examples=100)
def test_swapped_elements_show(size, i, j):
    tensor = numbers(size)
    swapped = tensor.clone()
    swapped[[i, j]] = tensor[[j, i]]
    assert (fingerprint(swapped) == fingerprint(tensor)) == (i == j)


def test_swapped_words_that_differ_in_their_top_bit_alone_show():
    """Places differ by even factors, modulo 2**64 an even factor times 2**63 is 0."""
    assert fingerprint(torch.tensor([1.0, 2.0, 1.0, -2.0])) != fingerprint(torch.tensor([1.0, -2.0, 1.0, 2.0]))


def test_a_transposed_matrix_shows():
    tensor = numbers(6, 6)
    assert fingerprint(tensor.T) != fingerprint(tensor)
    assert fingerprint(tensor.T) == fingerprint(tensor.T.contiguous())  # the elements count, not the strides


def test_moved_rows_show():
    tensor = numbers(8, 4)
    assert fingerprint(tensor.roll(1, 0)) != fingerprint(tensor)
    assert fingerprint(tensor[[1, 0, 2, 3, 4, 5, 6, 7]]) != fingerprint(tensor)


def test_weights_still_zero_show():
    assert fingerprint(torch.zeros(5, 5)) != fingerprint(numbers(5, 5))
    half = numbers(5, 5)
    half[3:] = 0
    assert fingerprint(half) != fingerprint(numbers(5, 5))


def test_rounding_shows():
    tensor = numbers(5, 5)
    assert fingerprint(tensor.bfloat16().float()) != fingerprint(tensor)
    assert fingerprint(-tensor) != fingerprint(tensor)
    assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_view_counts_only_what_it_shows(dtype):
    whole = numbers(10, 6, dtype=dtype)
    part = whole[2:5, 1:4]
    assert fingerprint(part) == fingerprint(part.clone())
    assert fingerprint(whole[2:5, 2:5]) != fingerprint(part)
    shifted = whole.flatten()[1:41]  # begins between words
    assert fingerprint(shifted) == fingerprint(shifted.clone())


@pytest.mark.parametrize("chunk", [1, 2, 7, 34, 35, 36, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [35, 36, 72])
def test_chunks_change_nothing(monkeypatch, size, chunk, dtype):
    expected = fingerprint(numbers(size, dtype=dtype))
    monkeypatch.setattr(weights, "_CHUNK", {"cpu": chunk})
    assert fingerprint(numbers(size, dtype=dtype)) == expected


def test_by_hand():
    # float32 1.0 is the word 0x3F800000, mixed with its upper half (0); place 0 gives factor 1, place 1 factor 3, place
    # 2 factor 5
    golden, one = 0x9E3779B97F4A7C15, 0x3F800000
    assert fingerprint(torch.tensor([1.0])) == one * golden % 2**64
    assert fingerprint(torch.tensor([1.0, 0.0, 1.0])) == one * golden * (1 + 5) % 2**64
    # an even number of them is read as words of 8 bytes, the second float in the upper half
    assert fingerprint(torch.tensor([1.0, 1.0])) == (one + (one << 32) + one) * golden % 2**64
    assert fingerprint(torch.tensor([0.0, 0.0, 1.0, 0.0])) == one * golden * 3 % 2**64


# ---- packing and loading ----

NAMES = ["embed", "scale", "half", "last"]


def source() -> dict[str, torch.Tensor]:
    return {
        "embed": numbers(6, 4, seed=1),
        "scale": numbers(5, seed=2),
        "half": numbers(3, 3, dtype=torch.bfloat16, seed=3),
        "last": numbers(4, 6, seed=4).T,  # not contiguous
    }


def blank() -> dict[str, torch.Tensor]:
    return {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in source().items()}


def packed(version: int = 7) -> WeightUpdate:
    return pack_weights(source().items(), version, True, ["embed"])


@pytest.mark.parametrize("bucket_bytes", [1, 40, 100, 1 << 20])
def test_round_trip(monkeypatch, bucket_bytes):
    monkeypatch.setattr(weights, "BUCKET_BYTES", bucket_bytes)
    update = packed()
    # 96, 20, 18, 96 bytes, each brought to a multiple of 8: 96, 24, 24, 96
    assert len(update.buckets) == {1: 4, 40: 4, 100: 3, 1 << 20: 1}[bucket_bytes]
    assert all(entry.offset % 8 == 0 for entry in update.entries)
    assert update.num_bytes == 96 + 20 + 18 + 96
    assert (update.version, update.complete, update.trainable) == (7, True, ("embed",))
    targets = blank()
    load_weights(update, unpacked(update), targets, NAMES, "generator 1")
    for name, tensor in source().items():
        assert torch.equal(targets[name], tensor)


def test_an_update_is_a_copy():
    tensors = source()
    update = pack_weights(tensors.items(), 1, True, [])
    tensors["embed"].zero_()
    targets = blank()
    load_weights(update, unpacked(update), targets, NAMES, "g")
    assert torch.equal(targets["embed"], source()["embed"])


def test_read_only_buckets_load():
    """As they come out of the object store."""
    update = packed()
    for bucket in update.buckets:
        bucket.flags.writeable = False
    targets = blank()
    load_weights(update, unpacked(update), targets, NAMES, "g")
    assert all(torch.equal(targets[name], tensor) for name, tensor in source().items())


def test_an_empty_update_loads():
    update = pack_weights([], 3, False, [])
    load_weights(update, unpacked(update), {}, [], "g")
    assert update.entries == () and update.num_bytes == 0


def refused(update: WeightUpdate, expected: list[str] = NAMES, **changes: torch.Tensor) -> str:
    with pytest.raises(WeightSyncError) as error:
        load_weights(update, unpacked(update), blank() | changes, expected, "generator 1")
    message = str(error.value)
    assert "generator 1" in message
    assert "version 7" in message
    return message


def test_a_missing_tensor_is_refused():
    update = packed()
    short = replace(update, entries=tuple(e for e in update.entries if e.name != "half"))
    assert "lacks 1 tensors: half" in refused(short)


def test_an_unknown_tensor_is_refused():
    assert "brings unknown 1 tensors: last" in refused(packed(), expected=NAMES[:3])


def test_a_wrong_shape_is_refused():
    message = refused(packed(), embed=torch.zeros(4, 6))  # as many elements
    assert "tensor embed" in message
    assert "(6, 4)" in message
    assert "(4, 6)" in message


def test_a_wrong_type_is_refused():
    message = refused(packed(), half=torch.zeros(3, 3, dtype=torch.float16))  # as many bytes
    assert "tensor half" in message
    assert "bfloat16" in message


@pytest.mark.parametrize("at", [0, 95, 100, 133])
def test_a_corrupted_byte_is_refused(at):
    update = packed()
    update.buckets[0][at] ^= 1
    name = "embed" if at < 96 else "scale" if at < 116 else "half"
    assert f"tensor {name} does not hold the bytes of weight version 7" in refused(update)


def test_tensors_in_each_others_place_are_refused(monkeypatch):
    """Two of the same shape, swapped by whoever carries them: every byte arrived, but not where it belongs."""
    pair = {"up": numbers(3, 3, seed=5), "gate": numbers(3, 3, seed=6)}
    update = pack_weights(pair.items(), 7, True, [])
    first, second = update.entries
    swapped = (replace(first, offset=second.offset), replace(second, offset=first.offset))
    with pytest.raises(WeightSyncError, match="generator 1: tensor up "):
        wrong = replace(update, entries=swapped)
        load_weights(wrong, unpacked(wrong), {n: torch.zeros(3, 3) for n in pair}, list(pair), "generator 1")


def test_last_versions_bytes_are_refused():
    """The most expensive bug: this version's manifest, the version before in the buckets."""
    update = packed()
    old = pack_weights([(name, tensor + 0.5) for name, tensor in source().items()], 6, True, [])
    assert "tensor embed" in refused(replace(update, buckets=old.buckets))


class Skipping(dict):
    """A generator's parameters whose `name` loses what is copied into it."""

    def __init__(self, name: str) -> None:
        super().__init__(blank())
        self._name = name
        self._asked = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        if name == self._name and not self._asked:
            self._asked = 1
            return super().__getitem__(name).clone()
        return super().__getitem__(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_that_was_not_written_is_found(name):
    with pytest.raises(WeightSyncError, match=f"generator 1: tensor {name} .* version 7"):
        load_weights(packed(), unpacked(packed()), Skipping(name), NAMES, "generator 1")


def test_weights_that_changed_after_loading_are_found():
    update, targets = packed(), blank()
    load_weights(update, unpacked(update), targets, NAMES, "generator 1")
    verify_weights(update.version, update.entries, targets, "generator 1")
    targets["scale"][2] += 1e-6 * targets["scale"][2].abs() + 1e-4
    with pytest.raises(WeightSyncError, match="tensor scale"):
        verify_weights(update.version, update.entries, targets, "generator 1")
