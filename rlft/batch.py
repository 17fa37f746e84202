"""From samples to what a model is fed: packs of tokens without padding, cut to a token budget and dealt out evenly.

Knows nothing about losses, models or ranks' processes. A group's prompt stands in a pack once, as a trunk, and its
completions branch off; a lone sample is one trunk. The last token of a sequence predicts nothing and is not fed.
The shift by one (the state of token t-1 predicts token t) lives in `make_pack` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlft.models.attention import PackedLayout
from rlft.samples import Group, Sample, Totals


class TopTensors(NamedTuple):
    """A teacher's likeliest tokens in the place of each target."""

    ids: Tensor  # int64 [M, K]
    logprobs: Tensor  # f32 [M, K], at `temperature`
    temperature: float


@dataclass(frozen=True)
class Pack:
    """One forward pass. N tokens fed, M targets. Targets stand sample by sample, each in order of its tokens."""

    input_ids: Tensor  # int64 [N]
    position_ids: Tensor  # int64 [N]
    layout: PackedLayout  # which token sees which
    predict_from: Tensor  # int64 [M], the fed token whose state predicts the target
    targets: Tensor  # int64 [M]
    sample_of: Tensor  # int64 [M], index of the target's sample in the pack
    fed_for: Tensor  # int64 [N], index of the sample (or one of them) that the token is fed for
    sources: tuple[str, ...]  # of each sample, the data.mixture's source that it is of
    weights: Tensor  # f32 [M], each token's weight in the loss
    advantages: Tensor  # f32 [M], 0 where samples have none
    sampler_logprobs: Tensor  # f32 [M]
    old_logprobs: Tensor | None  # f32 [M]
    ref_logprobs: Tensor | None  # f32 [M]
    values: Tensor | None  # f32 [M], the critic's before its first update
    returns: Tensor | None  # f32 [M]
    teacher_top: TopTensors | None
    fresh: Tensor  # bool [M], drawn with the very weights that begin the step that learns from it
    kl: float = 0.0  # of the whole update: see Totals


def fed_tokens(group: Group) -> int:
    """Tokens that a pack with this group feeds to the model."""
    if len(group.samples) == 1:
        return len(group.samples[0].token_ids) - 1
    prompt = len(group.prompt.token_ids)
    return prompt + sum(len(s.token_ids) - 1 - prompt for s in group.samples)


def make_pack(
    groups: Sequence[Group],
    totals: Totals | None = None,
    average: str = "token",
    device: torch.device | str = "cpu",
    version: int | None = None,
) -> Pack:
    """Lay groups out in one pack. Without `totals` all weights are 0 (for scoring only). `version`: of the weights that
    begin the step; tokens that it drew are fresh, and without it none are. A sample is never split between packs."""
    samples = [sample for group in groups for sample in group.samples]
    trunks, branches, branch_trunks, branch_of = _lay_out(groups)
    layout = PackedLayout([len(t) for t in trunks], [len(b) for b in branches], branch_trunks, device)
    trunk_start = np.cumsum([0, *(len(t) for t in trunks)])
    branch_start = trunk_start[-1] + np.cumsum([0, *(len(b) for b in branches)])
    rows, columns = [], []
    for sample, (trunk, branch) in zip(samples, branch_of, strict=True):
        at = _trained_positions(sample)
        fed = trunk_start[trunk] + at - 1  # the token before each target
        if branch is not None:
            beyond = at - 1 - len(trunks[trunk])
            fed = np.where(beyond >= 0, branch_start[branch] + beyond, fed)
        rows.append(fed)
        columns.append(at)

    def to_device(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device=device, dtype=dtype)

    def column(name: str) -> Tensor | None:
        arrays = [getattr(s, name) for s in samples]
        if all(a is None for a in arrays):
            return None
        return to_device([a[at] for a, at in zip(arrays, columns, strict=True)], torch.float32)

    lengths = [len(row) for row in (*trunks, *branches)]
    weight = [totals.token_weight(average, max(1, len(at))) if totals else 0.0 for at in columns]
    targets = to_device([s.token_ids[at] for s, at in zip(samples, columns, strict=True)], torch.int64)
    advantages, sampler_logprobs = column("advantages"), column("logprobs")
    assert sampler_logprobs is not None
    return Pack(
        input_ids=to_device([*trunks, *branches], torch.int64),
        position_ids=layout.position_ids(),
        layout=layout,
        predict_from=to_device(rows, torch.int64),
        targets=targets,
        sample_of=to_device([np.full(len(at), i) for i, at in enumerate(columns)], torch.int64),
        fed_for=to_device([_fed_for(branch_of, len(trunks), len(branches)).repeat(lengths)], torch.int64),
        sources=tuple(group.prompt.source for group in groups for _ in group.samples),
        weights=to_device([np.full(len(at), w) for at, w in zip(columns, weight, strict=True)], torch.float32),
        advantages=torch.zeros_like(sampler_logprobs) if advantages is None else advantages,
        sampler_logprobs=sampler_logprobs,
        old_logprobs=column("old_logprobs"),
        ref_logprobs=column("ref_logprobs"),
        values=column("values"),
        returns=column("returns"),
        teacher_top=_top_tensors(samples, columns, device),
        fresh=to_device([s.weight_versions[at] == version for s, at in zip(samples, columns, strict=True)], torch.bool),
        kl=totals.kl if totals else 0.0,
    )


def _fed_for(branch_of: Sequence[tuple[int, int | None]], num_trunks: int, num_branches: int) -> np.ndarray:
    """Of each row, trunks first, a sample that it belongs to."""
    samples = np.zeros(num_trunks + num_branches, np.int64)
    for i, (trunk, branch) in enumerate(branch_of):
        samples[trunk] = i
        if branch is not None:
            samples[num_trunks + branch] = i
    return samples


def _top_tensors(
    samples: Sequence[Sample], columns: Sequence[np.ndarray], device: torch.device | str
) -> TopTensors | None:
    tops = [(s.teacher_top, at) for s, at in zip(samples, columns, strict=True) if s.teacher_top is not None]
    if not tops:
        return None
    assert len(tops) == len(samples), "some samples have a teacher's distribution and some have none"
    ids, logprobs = (np.concatenate([getattr(top, name)[at] for top, at in tops]) for name in ("ids", "logprobs"))
    temperature = tops[0][0].temperature
    return TopTensors(torch.from_numpy(ids).to(device, torch.int64), torch.from_numpy(logprobs).to(device), temperature)


def _lay_out(
    groups: Sequence[Group],
) -> tuple[list[np.ndarray], list[np.ndarray], list[int], list[tuple[int, int | None]]]:
    """Token ids of the trunks, of the branches, the trunk of each branch, and for each sample its trunk and branch."""
    trunks: list[np.ndarray] = []
    branches: list[np.ndarray] = []
    branch_trunks: list[int] = []
    branch_of: list[tuple[int, int | None]] = []  # for each sample: its trunk, its branch
    for group in groups:
        prompt = group.prompt.token_ids
        shared = len(group.samples) > 1
        if shared:
            trunks.append(prompt)
        for sample in group.samples:
            if not shared:
                trunks.append(sample.token_ids[:-1])
            rest = sample.token_ids[len(prompt) : -1] if shared else sample.token_ids[:0]
            branch_of.append((len(trunks) - 1, len(branches) if len(rest) else None))
            if len(rest):
                branches.append(rest)
                branch_trunks.append(len(trunks) - 1)
    return trunks, branches, branch_trunks, branch_of


def _trained_positions(sample: Sample) -> np.ndarray:
    at = np.flatnonzero(sample.loss_mask)
    assert len(at) == 0 or at[0] > 0, "the first token of a sequence cannot be predicted, so it cannot be trained on"
    return at


def unpack(groups: Sequence[Group], values: np.ndarray) -> list[list[np.ndarray]]:
    """Turn one value (or row of values) per target of `make_pack(groups)` back into f32 [T, ...] per sample, 0 where
    nothing is trained; float64 stays so."""
    kind = np.float64 if values.dtype == np.float64 else np.float32
    result, start = [], 0
    for group in groups:
        arrays = []
        for sample in group.samples:
            full = np.zeros((len(sample.token_ids), *values.shape[1:]), dtype=kind)
            full[sample.loss_mask] = values[start : start + sample.num_trained]
            start += sample.num_trained
            arrays.append(full)
        result.append(arrays)
    return result


Plan = list[list[list[Group]]]  # [rank][micro-batch] -> groups
Tokens = Callable[[Group], int]  # that a pack with this group feeds
Deal = Callable[[Sequence[Group], int, int, Tokens], Plan]


def plan_micro_batches(
    groups: Sequence[Group], num_ranks: int, max_tokens: int, whole: bool = False, ahead: int = 0
) -> list[list[list[Group]]]:
    """Deal groups out: [rank][micro-batch] -> groups. Every rank gets the same number of micro-batches (some perhaps
    empty: with ZeRO-3 all ranks must run in step), each about equally much work and, where single samples allow it, at
    most `max_tokens` tokens, of which `ahead` virtual ones in each group. A group that is too large is split between
    its samples, unless groups stay `whole`."""

    def tokens(group: Group) -> int:
        return fed_tokens(group) + ahead

    split = [[g] if whole else _split_group(g, max_tokens, tokens) for g in groups]
    pieces = sorted((piece for part in split for piece in part), key=tokens, reverse=True)
    total = sum(min(tokens(piece), max_tokens) for piece in pieces)
    least = max(1, -(-total // (num_ranks * max_tokens)))
    plans = [_first_that_fits(deal, pieces, num_ranks, least, max_tokens, tokens) for deal in (_by_tokens, _by_length)]
    return min(plans, key=lambda plan: max(sum(_cost(batch, tokens) for batch in rank) for rank in plan))


def _first_that_fits(
    deal: Deal, pieces: Sequence[Group], num_ranks: int, least: int, max_tokens: int, tokens: Tokens
) -> Plan:
    """With as few micro-batches a rank as there can be."""
    per_rank = least
    while True:
        plan = deal(pieces, num_ranks, per_rank, tokens)
        fits = all(len(b) <= 1 or sum(map(tokens, b)) <= max_tokens for rank in plan for b in rank)
        if fits or per_rank >= len(pieces):
            return plan
        per_rank += 1


def _by_tokens(pieces: Sequence[Group], num_ranks: int, per_rank: int, tokens: Tokens) -> Plan:
    """The largest first, always into the emptiest micro-batch: the most even in tokens."""
    bins, load = [[] for _ in range(num_ranks * per_rank)], np.zeros(num_ranks * per_rank, dtype=np.int64)
    for piece in pieces:
        i = int(load.argmin())
        bins[i].append(piece)
        load[i] += tokens(piece)
    return [bins[r * per_rank : (r + 1) * per_rank] for r in range(num_ranks)]


def _by_length(pieces: Sequence[Group], num_ranks: int, per_rank: int, tokens: Tokens) -> Plan:
    """Sequences of like lengths together, so that attention, whose rows are padded to the longest, pads little. The
    ranks' micro-batches of the same number are about as long as each other."""
    bins: list[list[Group]] = [[] for _ in range(num_ranks * per_rank)]
    left, at = sum(map(tokens, pieces)), 0
    target, load = left / len(bins), 0
    for piece in sorted(pieces, key=_longest, reverse=True):
        size = tokens(piece)
        if bins[at] and load + size / 2 > target and at + 1 < len(bins):
            left, at, load = left - load, at + 1, 0
            target = left / (len(bins) - at)
        bins[at].append(piece)
        load += size
    return [bins[r::num_ranks] for r in range(num_ranks)]


def _longest(group: Group) -> int:
    return max((len(s.token_ids) for s in group.samples), default=0)


def _cost(groups: Sequence[Group], tokens: Tokens) -> float:
    """Of a micro-batch, in tokens: attention over rows padded to the longest costs as much as everything else where a
    row has about 6000 tokens (six times a width of 1024)."""
    rows = sum(len(group.samples) for group in groups)
    return sum(map(tokens, groups)) + rows * max(map(_longest, groups), default=0) ** 2 / 6000


def _split_group(group: Group, max_tokens: int, tokens: Tokens) -> list[Group]:
    pieces: list[list[Sample]] = []
    for sample in group.samples:
        if pieces and tokens(group.with_samples([*pieces[-1], sample])) <= max_tokens:
            pieces[-1].append(sample)
        else:
            pieces.append([sample])
    return [group.with_samples(piece) for piece in pieces]
