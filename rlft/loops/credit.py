"""From rewards to what the learner trains on: advantages, what is left out, and the numbers that tell of it.

Knows nothing about roles. Works on lists of groups. The table ESTIMATORS holds the ways from rewards to advantages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from rlft.algorithms.advantages import (
    flat_groups,
    gae,
    group_advantages,
    leave_one_out_advantages,
    normalized_sum,
    token_returns,
    whiten,
)
from rlft.algorithms.divergences import DIVERGENCES
from rlft.config.algorithm import AlgorithmConfig
from rlft.config.derived import flat_is_useless
from rlft.roles import Metrics
from rlft.rollout import Rollout
from rlft.samples import Group, Sample, Totals, count_totals

_ROUNDING = 1e-6  # of weighted sums of rewards
Rows = list[list[np.ndarray | None]]  # for each sample of each group one float64 [n] over its trained tokens, or None


def reward_matrix(groups: Sequence[Group]) -> np.ndarray:
    """float64 [P, G], NaN where a sample has no reward; G of the largest group."""
    width = max((len(g.samples) for g in groups), default=0)
    rows = [[np.nan if s.reward is None else s.reward for s in g.samples] for g in groups]
    return np.array([row + [np.nan] * (width - len(row)) for row in rows], dtype=np.float64).reshape(-1, width)


def assign_advantages(
    groups: Sequence[Group], settings: AlgorithmConfig, kl_coef: float = 0.0, turn_weight: float = 1.0
) -> list[Group]:
    """Give each sample that is to be trained on its advantages, and with a critic its returns; others keep None. A
    sample without a reward is never trained on.

    `kl_coef`: where the divergence from the reference counts in the reward. `turn_weight`: of the environment's reward
    in the sample's.
    """
    rewards: Rows = [[_token_rewards(s, settings, kl_coef, turn_weight) for s in g.samples] for g in groups]
    if settings.whiten_rewards:
        everything = np.concatenate([r for row in rewards for r in row if r is not None] or [np.zeros(0)])
        deviation = everything.std(ddof=1) if len(everything) > 1 else 0.0
        deviation = deviation if deviation > 1e-6 else 1.0  # all alike: nothing to divide by
        rewards = _each(rewards, lambda r: r / deviation)
    advantages, returns = ESTIMATORS[settings.advantage](groups, rewards, settings)
    if settings.teacher_coef and settings.teacher_signal == "sampled":
        advantages = [
            [
                None if a is None else a + settings.teacher_coef * _teacher_gap(s)
                for s, a in zip(g.samples, row, strict=True)
            ]
            for g, row in zip(groups, advantages, strict=True)
        ]
    return [
        group.with_samples([
            replace(s, advantages=spread(s, a), returns=spread(s, r))
            for s, a, r in zip(group.samples, row, row_of_returns, strict=True)
        ])
        for group, row, row_of_returns in zip(groups, advantages, returns, strict=True)
    ]  # fmt: skip


def spread(sample: Sample, values: np.ndarray | None) -> np.ndarray | None:
    """One value for each trained token [n] as f32 [T]."""
    if values is None:
        return None
    full = np.zeros(len(sample.token_ids), dtype=np.float32)
    full[sample.loss_mask] = values
    return full


def _behind(sample: Sample) -> np.ndarray:
    """Log-probs of trained tokens under the policy that samples are judged by: the learner's, else the sampler's."""
    array = sample.logprobs if sample.old_logprobs is None else sample.old_logprobs
    return array[sample.loss_mask].astype(np.float64)


def divergence_of(sample: Sample, estimator: str) -> np.ndarray:
    """The divergence from the reference at each trained token, float64 [n]."""
    assert sample.ref_logprobs is not None
    reference = sample.ref_logprobs[sample.loss_mask].astype(np.float64)
    return DIVERGENCES[estimator](torch.from_numpy(_behind(sample)), torch.from_numpy(reference)).numpy()


def _teacher_gap(sample: Sample) -> np.ndarray:
    """log teacher - log student: the negative of a sampled reverse KL (on-policy distillation, Lu and Thinking Machines
    Lab 2025)."""
    assert sample.teacher_logprobs is not None
    return sample.teacher_logprobs[sample.loss_mask].astype(np.float64) - _behind(sample)


def _token_rewards(sample: Sample, settings: AlgorithmConfig, kl_coef: float, turn_weight: float) -> np.ndarray | None:
    """What each trained token is given: the reward on the last one, with turn_credit the environment's on the last of
    each turn, less the divergence from the reference. None without a reward or without tokens."""
    if sample.reward is None or not sample.num_trained:
        return None
    rewards = np.zeros(sample.num_trained)
    if settings.turn_credit and sample.turn_rewards is not None:
        rewards += turn_weight * np.nan_to_num(sample.turn_rewards[sample.loss_mask])
    rewards[-1] += sample.reward - rewards.sum()
    if settings.kl_in == "reward" and kl_coef and sample.ref_logprobs is not None:
        rewards -= kl_coef * divergence_of(sample, settings.kl_estimator)
    return rewards


def _turn_starts(sample: Sample) -> np.ndarray:
    """Where in a sample's trained tokens each turn of the model begins, int [turns]."""
    if sample.turn_rewards is None:
        return np.zeros(1, dtype=int)
    ends = np.flatnonzero(~np.isnan(sample.turn_rewards[sample.loss_mask]))
    return np.append(0, ends[:-1] + 1)


# Estimators: groups, rewards of tokens, settings -> advantages and returns of tokens.
Estimator = Callable[[Sequence[Group], Rows, AlgorithmConfig], tuple[Rows, Rows]]


def _each(rows: Rows, change: Callable[[np.ndarray], np.ndarray]) -> Rows:
    return [[None if r is None else change(r) for r in row] for row in rows]


def _nothing(rows: Rows) -> Rows:
    return [[None] * len(row) for row in rows]


def _by_group(compare: Callable[[np.ndarray, AlgorithmConfig], np.ndarray]) -> Estimator:
    """One advantage for a sample, or with turn_credit for each of its turns: what it earns from there on is compared
    with what others of the group earn from the same turn on."""

    def estimate(groups: Sequence[Group], rewards: Rows, settings: AlgorithmConfig) -> tuple[Rows, Rows]:
        starts = [
            [
                np.zeros(0, int) if r is None else _turn_starts(s) if settings.turn_credit else np.zeros(1, int)
                for s, r in zip(g.samples, row, strict=True)
            ]
            for g, row in zip(groups, rewards, strict=True)
        ]
        num_turns = max((len(x) for row in starts for x in row), default=0)
        width = max((len(row) for row in rewards), default=0)
        earned = np.full((num_turns, len(groups), width), np.nan)
        for p, row in enumerate(rewards):
            for i, r in enumerate(row):
                if r is not None:
                    earned[: len(starts[p][i]), p, i] = token_returns(r)[starts[p][i]]
        compared = [compare(earned[turn], settings) for turn in range(num_turns)]
        advantages = [
            [
                None if r is None else _stairs(starts[p][i], [c[p, i] for c in compared], len(r))
                for i, r in enumerate(row)
            ]
            for p, row in enumerate(rewards)
        ]
        return advantages, _nothing(rewards)

    return estimate


def _stairs(starts: np.ndarray, heights: Sequence[float], length: int) -> np.ndarray:
    """heights[k] from starts[k] on, float64 [length]."""
    return np.array(heights)[np.searchsorted(starts, np.arange(length), side="right") - 1]


def _parts(groups: Sequence[Group], rewards: Rows, settings: AlgorithmConfig) -> tuple[Rows, Rows]:
    """Group advantages of each reward function, weighed, added up and whitened (GDPO)."""
    weights = {name: part.weight for g in groups for s in g.samples for name, part in s.reward_parts.items()}
    whole = {"": 1.0} if not weights else {}  # a reward that came without parts is its own only one
    values = np.full((len(groups), max((len(row) for row in rewards), default=0), len(weights | whole)), np.nan)
    for p, (group, row) in enumerate(zip(groups, rewards, strict=True)):
        for i, (sample, r) in enumerate(zip(group.samples, row, strict=True)):
            parts = {name: part.counted for name, part in sample.reward_parts.items()} | {"": sample.reward}
            if r is not None:
                values[p, i] = [np.nan if parts.get(name) is None else parts[name] for name in weights | whole]
    each = normalized_sum(values, np.array(list((weights | whole).values())))
    advantages: Rows = [
        [None if r is None else np.full(len(r), each[p, i]) for i, r in enumerate(row)] for p, row in enumerate(rewards)
    ]
    return advantages, _nothing(rewards)


def _batch(baseline: bool) -> Estimator:
    """Returns of tokens, whitened over the step. With `baseline` the mean of its group's rewards goes off each sample's
    last token first."""

    def estimate(groups: Sequence[Group], rewards: Rows, settings: AlgorithmConfig) -> tuple[Rows, Rows]:
        if baseline:
            totals = [[np.nan if r is None else r.sum() for r in row] for row in rewards]
            means = [np.nanmean(row) if not np.isnan(row).all() else 0.0 for row in totals]
            rewards = [
                [None if r is None else np.append(r[:-1], r[-1] - mean) for r in row]
                for row, mean in zip(rewards, means, strict=True)
            ]
        advantages = _each(rewards, lambda r: token_returns(r, settings.gamma))
        return _whitened(advantages, settings), _nothing(rewards)

    return estimate


def _gae(groups: Sequence[Group], rewards: Rows, settings: AlgorithmConfig) -> tuple[Rows, Rows]:
    """Generalised advantage estimates with the critic's values."""
    advantages, returns = _nothing(rewards), _nothing(rewards)
    for p, (group, row) in enumerate(zip(groups, rewards, strict=True)):
        for i, (sample, r) in enumerate(zip(group.samples, row, strict=True)):
            if r is not None:
                assert sample.values is not None, "gae needs a critic"
                values = sample.values[sample.loss_mask]
                advantages[p][i], returns[p][i] = gae(r, values, settings.gamma, settings.gae_lambda)
    return _whitened(advantages, settings), returns


def _whitened(rows: Rows, settings: AlgorithmConfig) -> Rows:
    if settings.advantage_scale != "batch":
        return rows
    flat = [a for row in rows for a in row if a is not None]
    pieces = iter(cut_like(whiten(np.concatenate(flat)), flat) if flat else [])
    return _each(rows, lambda _: next(pieces))


def cut_like(values: np.ndarray, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Values of all arrays, one behind the other, as arrays of the same lengths."""
    return np.split(values, np.cumsum([len(a) for a in arrays])[:-1])


def _accepted(groups: Sequence[Group], rewards: Rows, settings: AlgorithmConfig) -> tuple[Rows, Rows]:
    """1 for what the reward accepts (rejection sampling; RAFT, Dong et al. 2023, arXiv:2304.06767; ReST-EM, Singh et
    al. 2023, arXiv:2312.06585)."""
    chosen: Rows = [
        [
            None if r is None or s.reward is None or s.reward < settings.accept_reward - _ROUNDING else np.ones(len(r))
            for s, r in zip(group.samples, row, strict=True)
        ]
        for group, row in zip(groups, rewards, strict=True)
    ]
    return chosen, _nothing(rewards)


def _pairs(groups: Sequence[Group], rewards: Rows, settings: AlgorithmConfig) -> tuple[Rows, Rows]:
    """1 for the best and -1 for the worst of each group, the first of equals; none where all are equal (online DPO, Guo
    et al. 2024, arXiv:2402.04792)."""
    signs = _nothing(rewards)
    for p, row in enumerate(rewards):
        scored = [i for i, r in enumerate(row) if r is not None]
        totals = {i: float(np.sum(row[i])) for i in scored}  # type: ignore[arg-type]
        if len(set(totals.values())) > 1:
            best, worst = max(scored, key=totals.__getitem__), min(scored, key=totals.__getitem__)
            for i, sign in ((best, 1.0), (worst, -1.0)):
                signs[p][i] = np.full(groups[p].samples[i].num_trained, sign)
    return signs, _nothing(rewards)


def _none(groups: Sequence[Group], rewards: Rows, settings: AlgorithmConfig) -> tuple[Rows, Rows]:
    return _each(rewards, np.zeros_like), _nothing(rewards)


ESTIMATORS: dict[str, Estimator] = {
    "group": _by_group(lambda rewards, settings: group_advantages(rewards, settings.advantage_scale)),
    "parts": _parts,
    "leave_one_out": _by_group(lambda rewards, settings: leave_one_out_advantages(rewards, settings.advantage_scale)),
    "batch": _batch(baseline=False),
    "batch_baseline": _batch(baseline=True),
    "gae": _gae,
    "accepted": _accepted,
    "pairs": _pairs,
    "none": _none,
}


def _left_out(groups: Sequence[Group], settings: AlgorithmConfig) -> np.ndarray:
    """bool [P]: groups that are not trained on for being flat."""
    return flat_groups(reward_matrix(groups)) & (settings.skip_flat_groups and flat_is_useless(settings))


def worth_scoring(groups: Sequence[Group], settings: AlgorithmConfig) -> list[Group]:
    """What the reference, the critic and others have to look at before advantages are known: samples with a reward, and
    no group that will be left out for being flat."""
    flat = _left_out(groups, settings)
    scored = [g.with_samples([s for s in g.samples if s.reward is not None and s.num_trained]) for g in groups]
    return [g for g, out in zip(scored, flat, strict=True) if g.samples and not out]


def select(groups: Sequence[Group], settings: AlgorithmConfig, max_new_tokens: int) -> tuple[list[Group], Totals]:
    """What to train on, and the counts to divide by. Samples without an advantage are out of both; flat groups are out
    of training but stay in the counts, so that leaving them out changes nothing but the time."""
    scored = [group.with_samples([s for s in group.samples if s.advantages is not None]) for group in groups]
    flat = _left_out(groups, settings)
    chosen = [g for g, out in zip(scored, flat, strict=True) if g.samples and not out]
    return chosen, count_totals(scored, max_new_tokens)


def rollout_metrics(rollout: Rollout, version: int) -> Metrics:
    """Rewards, their parts and statuses, lengths, truncation, staleness and seconds of a step's samples."""
    groups = rollout.groups
    samples = [s for g in groups for s in g.samples]
    rewards = np.array([s.reward for s in samples if s.reward is not None])
    lengths = np.array([s.num_trained for s in samples])
    lags = version - np.concatenate([s.weight_versions[s.loss_mask] for s in samples])
    metrics: Metrics = {
        "samples/failed": float(sum(s.reward is None for s in samples)),
        "samples/flat_groups": float(flat_groups(reward_matrix(groups)).sum()),
        "samples/replaced_groups": float(rollout.num_replaced),
        "completion/length_mean": float(lengths.mean()),
        "completion/length_max": float(lengths.max()),
        "completion/duplicates": _duplicates(groups),
        "completion/truncated": float(np.mean([s.finish_reason == "length" for s in samples])),
        "staleness/mean": float(lags.mean()),
        "staleness/max": float(lags.max()),
        "time/generate_s": rollout.generate_s,
        "time/score_s": rollout.score_s,
    }
    if len(rewards):
        metrics |= {"reward/mean": float(rewards.mean()), "reward/std": float(rewards.std())}
    for source in sorted({g.prompt.source for g in groups} - {""}):
        own = [s.reward for g in groups if g.prompt.source == source for s in g.samples if s.reward is not None]
        if own:
            metrics[f"reward/mean/{source}"] = float(np.mean(own))
    if any(s.turns for s in samples):
        metrics |= _episode_metrics(samples)
    for name in dict.fromkeys(name for s in samples for name in s.reward_parts):
        parts = [s.reward_parts[name] for s in samples if name in s.reward_parts]
        values = [p.value for p in parts if p.value is not None]
        if values:
            metrics[f"reward/{name}/mean"] = float(np.mean(values))
        if any(p.used is not None for p in parts):
            metrics[f"reward/{name}/counted"] = float(np.mean([p.counted for p in parts if p.counted is not None]))
        metrics[f"reward/{name}/failed"] = float(sum(p.counted is None for p in parts))
        for status, count in Counter(p.status for p in parts if p.status != "ok").items():
            metrics[f"reward/{name}/{status}"] = float(count)
        for kind in sorted({kind for p in parts for kind in p.counts}):
            metrics[f"reward/{name}/{kind}"] = float(sum(p.counts.get(kind, 0.0) for p in parts))
    return metrics


def _duplicates(groups: Sequence[Group]) -> float:
    """Share of the samples that say what an earlier one of their group says."""
    distinct = sum(len({s.token_ids.tobytes() for s in g.samples}) for g in groups)
    return 1 - distinct / sum(len(g.samples) for g in groups)


def _episode_metrics(samples: Sequence[Sample]) -> Metrics:
    """Of samples that an environment has answered: turns of the model, and calls of tools that failed."""
    turns = [s.num_turns for s in samples]
    return {
        "episode/turns_mean": float(np.mean(turns)),
        "episode/turns_max": float(max(turns)),
        "episode/tool_errors": float(sum(s.tool_errors for s in samples)),
    }
