"""The GRPO family and RLOO on padded arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden.plain.folder import Folder, slope


def random_mask(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """With holes, one row full and, where there are several, one empty."""
    mask = rng.random((rows, columns)) < 0.7
    mask[0] = True
    if rows > 2:
        mask[2] = False
    return mask.astype(np.int64)


class Batch:
    """Inputs of the GRPO family, [B, T], and what its losses are made of."""

    def __init__(self, rng: np.random.Generator, rows: int, columns: int) -> None:
        shape = (rows, columns)
        logps = -rng.exponential(1.0, shape)
        self.data = {
            "per_token_logps": logps,
            "old_per_token_logps": logps + 0.4 * rng.normal(size=shape),
            "ref_per_token_logps": logps + 0.7 * rng.normal(size=shape),
            "advantages": rng.normal(size=rows),
            "mask": random_mask(rng, rows, columns),
            "is_ratio": np.exp(rng.normal(size=shape)),
            "entropies": rng.exponential(1.0, shape),
        }
        self.longest = columns + int(rng.integers(0, 4))
        self.low, self.high, self.beta = (float(x) for x in rng.uniform(0.1, 0.5, 3))
        self.bounds = {"eps": self.low, "eps_hi": self.high}
        t = {key: torch.from_numpy(value) for key, value in self.data.items()}
        self.logps, self.old, self.ref = t["per_token_logps"], t["old_per_token_logps"], t["ref_per_token_logps"]
        self.on, self.adv, self.entropies = t["mask"].double(), t["advantages"][:, None], t["entropies"]
        self.is_ratio = t["is_ratio"]
        self.count = self.on.sum(1, keepdim=True).clamp(min=1)

    def of_sample(self, x: Tensor) -> Tensor:
        return (x * self.on).sum(1, keepdim=True)

    def ratio(self, lp: Tensor) -> Tensor:
        return torch.exp(lp - self.old)

    def whole(self, lp: Tensor) -> Tensor:
        return torch.exp(self.of_sample(lp - self.old) / self.count)

    def clip(self, ratio: Tensor, cap: float = math.inf) -> Tensor:
        bounded = ratio.clamp(1 - self.low, 1 + self.high)
        return -torch.minimum(ratio.clamp(max=cap) * self.adv, bounded * self.adv)

    def k3(self, lp: Tensor) -> Tensor:
        return torch.exp(self.ref - lp) - 1 - (self.ref - lp)

    def sapo(self, lp: Tensor) -> Tensor:
        tau = 1 + 0.05 * (self.adv <= 0).double()
        return -4 / tau / (1 + torch.exp(-tau * (self.ratio(lp) - 1))) * self.adv

    def vespo(self, lp: Tensor) -> Tensor:
        w = torch.exp(self.of_sample(lp - self.old)).detach()
        k, c = torch.where(self.adv > 0, 2.0, 3.0), torch.where(self.adv > 0, 3.0, 2.0)
        return -(w**k) * torch.exp(c - c * w) * self.adv * lp

    def average(self, kind: str, x: Tensor) -> Tensor:
        if kind in ("grpo", "sapo"):
            return (self.of_sample(x) / self.count).mean()
        if kind == "dr_grpo":
            return (x * self.on).sum() / (len(x) * self.longest)
        if kind == "luspo":
            return self.of_sample(x).mean()
        return (x * self.on).sum() / self.on.sum()

    def case(
        self, folder: Folder, name: str, per_token: Callable[[Tensor], Tensor], kind: str = "grpo", more: Any = 0.0,
        **parameters: Any,
    ) -> None:  # fmt: skip
        """Record the average of what `per_token` says, plus `more`."""
        loss, grad = slope(lambda lp: self.average(kind, per_token(lp)) + more, self.logps)
        folder.case("grpo.npz", name, {"loss_type": kind, **self.bounds, **parameters}, loss=loss, grad=grad)


def policy_losses(folder: Folder, b: Batch) -> None:
    """The GRPO family."""
    folder.file("grpo.npz", b.data, max_completion_length=b.longest, gradient_accumulation=1)
    for kind in ("grpo", "bnpo", "dapo", "dr_grpo", "luspo"):
        b.case(folder, f"{kind}_plain", lambda lp: b.clip(b.ratio(lp)), kind)
        b.case(
            folder, f"{kind}_kl", lambda lp: b.clip(b.ratio(lp)) + b.beta * b.k3(lp) * b.ratio(lp), kind, beta=b.beta
        )
        b.case(folder, f"{kind}_whole", lambda lp: b.clip(b.whole(lp)) + 0 * lp, kind, level="sequence")
    whole = {"level": "sequence"}
    b.case(folder, "whole_kl", lambda lp: b.clip(b.whole(lp)) + b.beta * b.k3(lp) * b.whole(lp), beta=b.beta, **whole)
    b.case(folder, "whole_cap", lambda lp: b.clip(b.whole(lp), 1.1) + 0 * lp, delta=1.1, **whole)
    b.case(folder, "kl_nobias", lambda lp: b.clip(b.ratio(lp)) + b.beta * b.k3(lp), beta=b.beta, bias=False)
    for cap in (1.05, 1.25, 2.0):
        b.case(folder, f"cap{cap}", lambda lp, cap=cap: b.clip(b.ratio(lp), cap), delta=cap)
    b.case(folder, "onpolicy", lambda lp: -torch.exp(lp - lp.detach()) * b.adv, use_old=False)
    b.case(folder, "sapo", b.sapo, "sapo")
    b.case(folder, "cispo", lambda lp: -b.ratio(lp).detach().clamp(max=1.5) * b.adv * lp, "cispo", eps_hi=1.5)
    b.case(folder, "vespo", b.vespo, "vespo")


def policy_masks(folder: Folder, b: Batch) -> None:
    """Tokens and samples that count less, or not at all, and the entropy bonus."""
    b.case(folder, "tis", lambda lp: b.clip(b.ratio(lp)) * b.is_ratio, "dapo", vllm=True)
    gap = b.of_sample(b.old - b.logps) / b.count
    for bound in (-0.1, 0.0, 0.1):
        keep = ~((gap > bound) & (b.adv < 0))
        b.case(folder, f"opsm{bound}", lambda lp, keep=keep: b.clip(b.ratio(lp)) * keep, opsm=bound)
    inside = b.entropies[b.on.bool()].float()
    for share in (0.1, 0.25, 0.3, 0.5, 0.7, 0.9):
        keep = b.entropies >= torch.quantile(inside, 1 - share)  # in float32, as TRL has it
        b.case(folder, f"entmask{share}", lambda lp, keep=keep: b.clip(b.ratio(lp)) * keep, topq=share)
    bonus = -0.03 * b.average("dapo", b.entropies)
    b.case(folder, "bonus", lambda lp: b.clip(b.ratio(lp)), more=bonus, ent_coef=0.03)


def single_actions(folder: Folder, b: Batch) -> None:
    """RLOO: a sample is one action."""
    sums, actions = (b.old * b.on).sum(1), b.adv[:, 0]
    inputs = {key: b.data[key] for key in ("per_token_logps", "advantages", "mask")}
    folder.file("rloo.npz", inputs | {"old_logps": sums}, eps=b.low)

    def loss_of(lp: Tensor) -> Tensor:
        r = torch.exp((lp * b.on).sum(1) - sums)
        return -torch.minimum(r * actions, r.clamp(1 - b.low, 1 + b.low) * actions).mean()

    loss, grad = slope(loss_of, b.logps)
    folder.case("rloo.npz", "rloo", None, loss=loss, grad=grad)
