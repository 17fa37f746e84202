"""Advantages from rewards. Pure functions on numpy arrays.

Shape letters: P groups (prompts), G samples of a group.
"""

from __future__ import annotations

import numpy as np


def group_advantages(rewards_PG: np.ndarray, scale: str = "group", eps: float = 1e-4) -> np.ndarray:
    """How much better each sample is than its group (GRPO, Shao et al. 2024, arXiv:2402.03300, eq. 3).

        advantage = (reward - mean of the group) / (std + eps)

    The standard deviation is the unbiased one (G - 1). With scale "group" it is the group's, with "batch" that of all
    rewards, with "none" there is no division (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783). A NaN reward is a sample
    that could not be scored: it gets advantage NaN and does not count in any mean. A sample alone in its group has
    advantage 0.

    Args:
        rewards_PG: float [P, G], NaN where there is no reward.

    Returns:
        float64 [P, G].
    """
    rewards = np.asarray(rewards_PG, dtype=np.float64)
    scored = ~np.isnan(rewards)
    count = scored.sum(1, keepdims=True)
    filled = np.where(scored, rewards, 0.0)
    mean = filled.sum(1, keepdims=True) / np.maximum(count, 1)
    centered = np.where(scored, rewards - mean, 0.0)
    if scale == "group":
        centered = centered / (np.sqrt((centered**2).sum(1, keepdims=True) / np.maximum(count - 1, 1)) + eps)
    elif scale == "batch":
        everything = rewards[scored]
        centered = centered / ((everything.std(ddof=1) if len(everything) > 1 else 0.0) + eps)
    elif scale != "none":
        raise ValueError(f"unknown scale {scale!r}: expected group, batch or none")
    return np.where(scored, centered, np.nan)


def flat_groups(rewards_PG: np.ndarray) -> np.ndarray:
    """bool [P]: groups in which fewer than two different rewards occur, so that nothing can be learned from them."""
    rewards = np.asarray(rewards_PG, dtype=np.float64)
    high = np.where(np.isnan(rewards), -np.inf, rewards).max(1)
    low = np.where(np.isnan(rewards), np.inf, rewards).min(1)
    return high <= low
