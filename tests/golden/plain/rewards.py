"""Advantages, critics and log-probs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.golden.plain.folder import Folder, slope


def rewards(folder: Folder, rng: np.random.Generator, groups: int, size: int) -> None:
    """Advantages, row by row."""
    parts, weights = rng.normal(size=(groups * size, 3)), [1.0, 0.5, -2.0]
    parts[rng.random(parts.shape) < 0.1] = np.nan
    parts[0], parts[-1] = 1.0, np.nan
    parts[size : 2 * size] = 0.25
    single = rng.normal(size=groups * size)
    single[1] = np.nan
    folder.file("advantages.npz", {"rewards_per_func": parts, "rloo/rewards": single}, eps=1e-3)

    def deviation(x: np.ndarray) -> float:
        x = x[~np.isnan(x)]
        return float(np.sqrt(((x - x.mean()) ** 2).sum() / (len(x) - 1))) if len(x) > 1 else 0.0

    def centred(x: np.ndarray) -> np.ndarray:
        return x - np.nanmean(x) if (~np.isnan(x)).any() else x

    def in_groups(x: np.ndarray, scaled: bool) -> np.ndarray:
        rows = x.reshape(groups, size)
        return np.concatenate([centred(r) / (deviation(r) + 1e-3 if scaled else 1.0) for r in rows])

    def weighted(x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x).all(1), np.nan, np.nansum(x * np.array(weights), 1))

    total = weighted(parts)
    shared = {"num_generations": size, "weights": weights}
    each = np.stack([in_groups(parts[:, f], True) for f in range(3)], 1)
    decoupled = weighted(each)
    for name, values in {
        "sum_then_normalize_group": in_groups(total, True),
        "sum_then_normalize_batch": in_groups(total, False) / (deviation(total) + 1e-3),
        "sum_then_normalize_none": in_groups(total, False),
        "normalize_then_sum_group": centred(decoupled) / (deviation(decoupled) + 1e-3),
    }.items():
        folder.case("advantages.npz", name, shared, advantages=np.nan_to_num(values))
    others = np.full(groups * size, np.nan)
    for i in range(groups * size):
        row = single[i // size * size : (i // size + 1) * size]
        rest = [row[j] for j in range(size) if j != i % size and not np.isnan(row[j])]
        others[i] = single[i] - np.mean(rest)
    more = {"num_generations": size}
    folder.case("advantages.npz", "rloo_norm0", more, advantages=np.nan_to_num(others))
    whitened = centred(others) / (deviation(others) + 1e-3)
    folder.case("advantages.npz", "rloo_norm1", more, advantages=np.nan_to_num(whitened))


def critics(folder: Folder, rng: np.random.Generator, rows: int, columns: int) -> None:
    """GAE as a sum over later deltas, and PPO's loss."""
    lengths = rng.integers(1, columns, rows)
    at = np.arange(columns)
    own, seen = at < lengths[:, None], at < lengths[:, None] + 1
    reward, value = rng.normal(size=(rows, columns)) * seen, rng.normal(size=(rows, columns)) * seen
    masks = {"padding_mask": (~own).astype(int), "padding_mask_p1": (~seen).astype(int)}
    folder.file("ppo_gae.npz", {"rewards": reward, "values": value, **masks})
    for gamma, lam in ((1.0, 0.95), (0.9, 0.5), (0.97, 0.0), (0.95, 1.0)):
        delta = reward + gamma * np.append(value[:, 1:], np.zeros((rows, 1)), 1) - value
        powers = np.triu((gamma * lam) ** np.clip(at[None] - at[:, None], 0, None).astype(float))
        raw = delta @ powers.T
        chosen = raw[own]
        white = np.where(own, (raw - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8), 0.0)
        arrays = {"advantages_raw": raw, "returns": raw + value, "advantages_whitened": white}
        folder.case("ppo_gae.npz", f"g{gamma}_l{lam}", {"gamma": gamma, "lam": lam}, **arrays)
    old, adv, returns = (torch.from_numpy(rng.normal(size=(rows, columns))) for _ in range(3))
    logps, vpred = old + 0.3 * torch.randn_like(old), torch.from_numpy(value + 0.4 * rng.normal(size=value.shape))
    for x in (logps, vpred):
        x.requires_grad_()
    before, mine, its = torch.from_numpy(value), torch.from_numpy(own), torch.from_numpy(seen)
    ratio = torch.exp(logps - old)
    policy = torch.maximum(-adv * ratio, -adv * ratio.clamp(0.7, 1.3))[mine].mean()
    near = torch.maximum(torch.minimum(vpred, before + 0.1), before - 0.1)
    critic = torch.maximum((vpred - returns) ** 2, (near - returns) ** 2)[its].mean() / 2
    loss = policy + 0.5 * critic
    slopes = torch.autograd.grad(loss, (logps, vpred))
    folder.case(
        "ppo_gae.npz", "ppo", {"cliprange": 0.3, "cliprange_value": 0.1, "vf_coef": 0.5}, old_logps=old, logps=logps,
        vpred=vpred, advantages=adv, returns=returns, pg_loss=policy, vf_loss=critic, loss=loss,
        grad_logps=slopes[0], grad_vpred=slopes[1],
    )  # fmt: skip


def vocabularies(folder: Folder, rng: np.random.Generator, rows: int, columns: int) -> None:
    """Log-probs and entropies from logits."""
    logits = torch.from_numpy(3 * rng.normal(size=(rows, columns, 19)))
    labels = torch.from_numpy(rng.integers(0, 19, (rows, columns)))
    upstream = torch.from_numpy(rng.normal(size=(rows, columns)))

    def logps(x: Tensor) -> Tensor:
        return x.gather(-1, labels[..., None])[..., 0] - torch.logsumexp(x, -1)

    probs = torch.softmax(logits, -1)
    _, grad = slope(lambda x: (logps(x) * upstream).sum(), logits)
    arrays = {"logits": logits, "labels": labels, "upstream": upstream, "logps": logps(logits), "grad": grad}
    folder.file("logprob.npz", arrays | {"entropy": -(probs * probs.log()).sum(-1)}, source="here")
