"""Advantages from rewards. Pure functions on numpy arrays.

Shape letters: P groups (prompts), G samples of a group, F reward functions, T tokens of a sample. A NaN reward is a
sample that could not be scored: its advantage is NaN and it counts in no mean.
"""

from __future__ import annotations

import numpy as np


def group_advantages(rewards_PG: np.ndarray, scale: str = "group", eps: float = 1e-4) -> np.ndarray:
    """How much better each sample is than its group (GRPO, Shao et al. 2024, arXiv:2402.03300, eq. 3).

        advantage = (reward - mean of the group) / (std + eps)

    The standard deviation is the unbiased one (G - 1). With scale "group" it is the group's, with "batch" that of all
    rewards, with "none" there is no division (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783). A sample alone in its group
    has advantage 0.

    Args:
        rewards_PG: float [P, G], NaN where there is no reward.

    Returns:
        float64 [P, G].
    """
    rewards = np.asarray(rewards_PG, dtype=np.float64)
    scored = ~np.isnan(rewards)
    centered = _centered(rewards, scored)
    if scale == "group":
        count = scored.sum(1, keepdims=True)
        centered = centered / (np.sqrt((centered**2).sum(1, keepdims=True) / np.maximum(count - 1, 1)) + eps)
    elif scale == "batch":
        centered = centered / (_std(rewards[scored]) + eps)
    elif scale != "none":
        raise ValueError(f"unknown scale {scale!r}: expected group, batch or none")
    return np.where(scored, centered, np.nan)


def leave_one_out_advantages(rewards_PG: np.ndarray, scale: str = "none", eps: float = 1e-4) -> np.ndarray:
    """Reward less the mean of the others in the group (RLOO, Ahmadian et al. 2024, arXiv:2402.14740, eq. 9):

        advantage = reward - (sum of the group - reward) / (G - 1)

    A sample alone in its group has advantage 0. With scale "batch" all advantages are whitened together.
    """
    rewards = np.asarray(rewards_PG, dtype=np.float64)
    scored = ~np.isnan(rewards)
    count = scored.sum(1, keepdims=True)
    advantages = np.where(scored, _centered(rewards, scored) * count / np.maximum(count - 1, 1), np.nan)
    if scale == "batch":
        return _whitened(advantages, eps)
    if scale != "none":
        raise ValueError(f"unknown scale {scale!r}: expected batch or none")
    return advantages


def normalized_sum(parts_PGF: np.ndarray, weights_F: np.ndarray, eps: float = 1e-4) -> np.ndarray:
    """Advantages when several rewards are put on one scale each before they are added (GDPO, Liu et al. 2026,
    arXiv:2601.05242): group advantages of each function, weighted and added up, whitened over the batch.

    Args:
        parts_PGF: float [P, G, F], NaN where a function gave no reward; it counts as 0 in the sum, and a sample for
            which all are NaN has advantage NaN.
    """
    parts = np.asarray(parts_PGF, dtype=np.float64)
    each = np.stack([group_advantages(parts[..., f], "group", eps) for f in range(parts.shape[-1])], -1)
    return _whitened(np.where(np.isnan(each).all(-1), np.nan, np.nansum(each * weights_F, -1)), eps)


def token_returns(rewards_T: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """What a token and all after it earn: rewards_T[t] + gamma * (the next token's return). float64 [T]."""
    returns, following = np.zeros(len(rewards_T)), 0.0
    for t in range(len(rewards_T) - 1, -1, -1):
        following = float(rewards_T[t]) + gamma * following
        returns[t] = following
    return returns


def gae(rewards_T: np.ndarray, values_T: np.ndarray, gamma: float, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438, eq. 16) of one sample's own tokens:

        delta[t] = reward[t] + gamma * value[t + 1] - value[t],      value[T] = 0
        advantage[t] = delta[t] + gamma * lam * advantage[t + 1]

    Leave out tokens that the policy did not write (prompts, tool output): the next token of its own comes next.

    Returns:
        advantages and returns (advantage + value, what the critic should have said), float64 [T].
    """
    values = np.asarray(values_T, dtype=np.float64)
    deltas = np.asarray(rewards_T, dtype=np.float64) + gamma * np.append(values[1:], 0.0)[: len(values)] - values
    advantages = token_returns(deltas, gamma * lam)
    return advantages, advantages + values


def whiten(values: np.ndarray, eps: float = 1e-8) -> np.ndarray:
    """(values - mean) / sqrt(variance + eps), the variance unbiased; NaN stay NaN and count in nothing. Fewer than two
    values become 0."""
    there = values[~np.isnan(values)]
    if len(there) < 2:
        return np.where(np.isnan(values), np.nan, 0.0)
    return (values - there.mean()) / np.sqrt(there.var(ddof=1) + eps)


def _centered(rewards: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Less the group's mean; 0 where there is no reward."""
    mean = np.where(scored, rewards, 0.0).sum(1, keepdims=True) / np.maximum(scored.sum(1, keepdims=True), 1)
    return np.where(scored, rewards - mean, 0.0)


def _whitened(values: np.ndarray, eps: float) -> np.ndarray:
    there = values[~np.isnan(values)]
    return (values - (there.mean() if len(there) else 0.0)) / (_std(there) + eps)


def _std(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def flat_groups(rewards_PG: np.ndarray) -> np.ndarray:
    """bool [P]: groups in which fewer than two different rewards occur, so that nothing can be learned from them."""
    rewards = np.asarray(rewards_PG, dtype=np.float64)
    high = np.where(np.isnan(rewards), -np.inf, rewards).max(1)
    low = np.where(np.isnan(rewards), np.inf, rewards).min(1)
    return high <= low
