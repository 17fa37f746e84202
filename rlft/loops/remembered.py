"""What frozen models say of rows: each row is asked for once, whatever the epoch.

So it costs one pass over the data, and a resumed run has the same numbers to the digit. Knows the roles only by their
Protocols.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlft.roles import Scorer, Teacher
from rlft.runs.store import RowStore
from rlft.samples import Group, Sample, TopTokens


class Reference:
    """Log-probs of samples under the reference policy, each asked for once: whatever the epoch, they stay the same."""

    def __init__(self, scorer: Scorer, known: dict[bytes, np.ndarray] | None = None) -> None:
        """`known`: from a checkpoint, so that a resumed run has them to the digit."""
        self._scorer = scorer
        self.known = {} if known is None else known  # f32 [trained tokens], by a digest of the sample

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with ref_logprobs on every sample."""
        new = [g for g in groups if any(_digest(s) not in self.known for s in g.samples)]
        if new:
            for group, arrays in zip(new, self._scorer.logprobs(new), strict=True):
                for sample, array in zip(group.samples, arrays, strict=True):
                    self.known[_digest(sample)] = array[sample.loss_mask]
        return [g.with_samples([self._with_logprobs(s) for s in g.samples]) for g in groups]

    def _with_logprobs(self, sample: Sample) -> Sample:
        full = np.zeros(len(sample.token_ids), dtype=np.float32)
        full[sample.loss_mask] = self.known[_digest(sample)]
        return replace(sample, ref_logprobs=full)


def _digest(sample: Sample) -> bytes:
    content = sample.token_ids.tobytes() + np.packbits(sample.loss_mask).tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


class TaughtRows:
    """A teacher's likeliest tokens in the places of samples. They are large, so they are kept in files."""

    def __init__(self, teacher: Teacher, count: int, store: RowStore | None) -> None:
        """`count` tokens in each place. Without a `store` nothing is kept: where no row comes twice."""
        self._teacher, self._count, self._store = teacher, count, store

    def __call__(self, groups: Sequence[Group], step: int) -> list[Group]:
        """The groups with teacher_top on every sample."""
        store, fresh = self._store, dict[str, TopTokens]()
        new = [g for g in groups if store is None or any(_name(s) not in store for s in g.samples)]
        if new:
            for group, row in zip(new, self._teacher.top_tokens(new, self._count), strict=True):
                fresh |= {_name(sample): top for sample, top in zip(group.samples, row, strict=True)}
        if store is not None and fresh:
            masks = {_name(s): s.loss_mask for g in new for s in g.samples}
            store.put(step, {key: _packed(top, masks[key]) for key, top in fresh.items()})
        return [g.with_samples([self._with_top(s, fresh) for s in g.samples]) for g in groups]

    def _with_top(self, sample: Sample, fresh: dict[str, TopTokens]) -> Sample:
        key = _name(sample)
        if key in fresh:
            return replace(sample, teacher_top=fresh[key])
        assert self._store is not None
        return replace(sample, teacher_top=_unpacked(self._store.get(key), sample.loss_mask))


def _name(sample: Sample) -> str:
    return _digest(sample).hex()


def _packed(top: TopTokens, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Of trained tokens alone."""
    return {"ids": top.ids[mask], "logprobs": top.logprobs[mask], "temperature": np.array([top.temperature])}


def _unpacked(arrays: dict[str, np.ndarray], mask: np.ndarray) -> TopTokens:
    ids, logprobs = (np.zeros((len(mask), arrays["ids"].shape[1]), dtype=kind) for kind in (np.int32, np.float32))
    ids[mask], logprobs[mask] = arrays["ids"], arrays["logprobs"]
    return TopTokens(ids, logprobs, float(arrays["temperature"][0]))
