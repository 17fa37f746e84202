"""The order in which rows are used: a pure function of seed and step, so that a resumed run takes the same rows.

Rows of one source here, and how the rows of several are mixed. Knows nothing about what a row is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np


def batch_indices(num_rows: int, step: int, batch_size: int, *, seed: int, shuffle: bool) -> list[int]:
    """The rows of one step, in order. See row_indices."""
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}")
    return row_indices(num_rows, step * batch_size, batch_size, seed=seed, shuffle=shuffle)


def row_indices(num_rows: int, first: int, count: int, *, seed: int, shuffle: bool) -> list[int]:
    """`count` rows from place `first` of an endless order that runs on across the ends of epochs, so that no row is
    left out or used twice in an epoch; each epoch has its own order when `shuffle` is set, otherwise the file's."""
    if num_rows < 1 or first < 0:
        raise ValueError(f"num_rows {num_rows}, first {first}")
    indices = []
    for position in range(first, first + count):
        epoch, place = divmod(position, num_rows)
        indices.append(int(_epoch_order(num_rows, seed, epoch)[place]) if shuffle else place)
    return indices


def source_seed(seed: int, name: str) -> int:
    """The seed of one source of a mixture: its order depends on its name, and not on what it is mixed with."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@lru_cache(maxsize=16)  # an epoch of each of that many sources
def _epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation [num_rows] keyed by seed and epoch. Sorting Philox's raw output gives the same order with every
    version of numpy, which Generator.permutation does not promise."""
    raw = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_rows)
    return np.argsort(raw, kind="stable").astype(np.int32 if num_rows < 1 << 31 else np.int64)


MAX_PERIOD = 100_000  # places after which a mixture repeats: what is remembered, and what its start costs (0.1 s)


def whole_shares(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportions of `weights`, as small as can be. Where they would add up to more than
    MAX_PERIOD, the nearest that do not: shares are then off by at most one in MAX_PERIOD, and none is 0."""
    exact = [Fraction(str(weight)) for weight in weights]
    if not exact or min(exact) <= 0:
        raise ValueError(f"weights {weights}")
    scale = math.lcm(*(share.denominator for share in exact))
    shares = [int(share * scale) for share in exact]
    shares = [share // math.gcd(*shares) for share in shares]
    total = sum(shares)
    if total <= MAX_PERIOD:
        return shares
    floors = [max(1, share * MAX_PERIOD // total) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (-(shares[i] * MAX_PERIOD % total), i))
    for i in by_remainder[: max(0, MAX_PERIOD - sum(floors))]:
        floors[i] += 1
    return [share // math.gcd(*floors) for share in floors]


class Interleaving:
    """An endless sequence of sources in which, after any number n of places, each has come up within 1 of share * n
    times. So any stretch of it is within 2 of its share, and with two sources within 1.

    Tijdeman 1980, The chairman assignment problem (Discrete Mathematics 32): of the sources that are far enough behind
    their share, the one that would be overdue first. In whole numbers, hence the same on every machine. After as many
    places as the shares add up to everything is even and the sequence begins anew.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        """`shares`: as from whole_shares, in the proportions of which sources come up."""
        self.shares = tuple(shares)
        self.pattern = np.array(_chairmen(self.shares), dtype=np.int64)  # [period], the source of each place
        self._ranks = np.zeros_like(self.pattern)  # [period], how often it came up before
        for source in range(len(shares)):
            places = np.flatnonzero(self.pattern == source)
            self._ranks[places] = np.arange(len(places))

    def stretch(self, first: int, count: int) -> tuple[list[int], dict[int, tuple[int, int]]]:
        """The sources of `count` places from place `first`, and for each of them the part of its own order that is
        taken: where it begins and how long it is."""
        if first < 0 or count < 0:
            raise ValueError(f"first {first}, count {count}")
        round_, place = np.divmod(np.arange(first, first + count), len(self.pattern))
        sources = self.pattern[place]
        ranks = round_ * np.array(self.shares)[sources] + self._ranks[place]
        parts = {}
        for source in dict.fromkeys(sources.tolist()):
            own = ranks[sources == source]
            parts[source] = (int(own[0]), len(own))
        return sources.tolist(), parts


def _chairmen(shares: Sequence[int]) -> list[int]:
    """One period of Interleaving. With k sources, shares w of a period P, and a the times that a source came up, it may
    come up in place t (from 1) when w t - a P >= P / (2k - 2), and is overdue at (P - P / (2k - 2) + a P) / w."""
    k, period = len(shares), sum(shares)
    if k == 1:
        return [0] * period
    counts, sequence, unit = [0] * k, list[int](), 2 * k - 2
    for t in range(1, period + 1):
        chosen, left = -1, 0
        for i, share in enumerate(shares):
            behind = share * t - counts[i] * period
            time = (unit - 1) * period - unit * behind  # until it is overdue, times unit * share
            if unit * behind >= period and (chosen < 0 or time * shares[chosen] < left * share):
                chosen, left = i, time
        counts[chosen] += 1
        sequence.append(chosen)
    return sequence
