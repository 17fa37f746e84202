"""Pairs, labelled completions and reward models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.plain.folder import Folder, slope

log_sigmoid = F.logsigmoid


class Pairs:
    """Inputs of the DPO family: log-probs [2B, T] that are 0 outside the mask and summed over everything."""

    def __init__(self, rng: np.random.Generator, pairs: int, columns: int) -> None:
        mask = (rng.random((2 * pairs, columns + 1)) < 0.6).astype(np.int64)
        mask[:, 1] = 1
        on = mask[:, 1:]
        policy, reference = -rng.exponential(1.0, on.shape) * on, -rng.exponential(1.0, on.shape) * on
        self.inputs = {"policy_logps": policy, "ref_logps": reference, "completion_mask": mask}
        self.policy, self.ref, self.on = (
            torch.from_numpy(policy),
            torch.from_numpy(reference).sum(1),
            torch.from_numpy(on),
        )
        self.half, self.beta, self.eps = pairs, 0.3, 0.2

    def apart(self, lp: Tensor) -> tuple[Tensor, Tensor]:
        x = lp.sum(1) - self.ref
        return x[: self.half], x[self.half :]

    def of_gap(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda lp: function(self.beta * (self.apart(lp)[0] - self.apart(lp)[1])).mean()

    def of_mean_gap(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def loss(lp: Tensor) -> Tensor:
            x = (lp.sum(1) - self.ref) / self.on.sum(1)
            return function(x[: self.half] - x[self.half :]).mean()

        return loss

    def of_both(self, function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda lp: function(*(self.beta * x for x in self.apart(lp))).mean()

    def transport(self, lp: Tensor) -> Tensor:
        gaps = [(x[: self.half] - x[self.half :]).sort().values for x in (lp.sum(1), self.ref)]
        return -log_sigmoid(self.beta * (gaps[0] - gaps[1])).mean()

    def unpaired_transport(self, lp: Tensor) -> Tensor:
        c, r = (x.sort().values for x in self.apart(lp))
        return -log_sigmoid(self.beta * (c - r)).mean()

    def sft(self, lp: Tensor) -> Tensor:
        tokens = self.on[: self.half]
        return -(lp[: self.half] * tokens).sum() / tokens.sum()

    def losses(self) -> dict[str, Callable[[Tensor], Tensor]]:
        beta, eps, sigmoid = self.beta, self.eps, torch.sigmoid
        gap, both = self.of_gap, self.of_both
        return {
            "sigmoid": gap(lambda z: -log_sigmoid(z)),
            "sigmoid_norm": self.of_mean_gap(lambda d: -log_sigmoid(beta * d)),
            "hinge": gap(lambda z: (1 - z).clamp(min=0)),
            "ipo": self.of_mean_gap(lambda d: (d - 0.5 / beta) ** 2),
            "robust": gap(lambda z: (eps * log_sigmoid(-z) - (1 - eps) * log_sigmoid(z)) / (1 - 2 * eps)),
            "exo_pair": gap(
                lambda z: (
                    sigmoid(z) * (log_sigmoid(z) - math.log(1 - eps)) + sigmoid(-z) * (log_sigmoid(-z) - math.log(eps))
                )
            ),
            "discopop": gap(lambda z: -log_sigmoid(z) * sigmoid(-20 * z) + torch.exp(-z) * sigmoid(20 * z)),
            "nca_pair": both(lambda c, r: -log_sigmoid(c) - (log_sigmoid(-c) + log_sigmoid(-r)) / 2),
            "bco_pair": both(lambda c, r: -log_sigmoid(c) - log_sigmoid(-r)),
            "sppo_hard": both(lambda c, r: ((c - 0.5) / beta) ** 2 + ((r + 0.5) / beta) ** 2),
            "apo_zero": both(lambda c, r: sigmoid(-c) + sigmoid(r)),
            "apo_down": both(lambda c, r: sigmoid(c) + sigmoid(r - c)),
            "aot": self.transport,
            "aot_unpaired": self.unpaired_transport,
            "sft": self.sft,
        }


def preferences(folder: Folder, p: Pairs) -> None:
    """The DPO family."""
    folder.file("dpo.npz", p.inputs)
    losses = p.losses()

    def case(name: str, function: Callable[[Tensor], Tensor], **parameters: Any) -> None:
        loss, grad = slope(function, p.policy)
        folder.case("dpo.npz", name, {"loss_type": name, "beta": p.beta, **parameters}, loss=loss, grad=grad)

    for name, function in losses.items():
        case(name, function, **({"ls": p.eps} if name in ("robust", "exo_pair") else {}))
    for name, score in {
        "forward_kl": lambda x: -torch.exp(-x),
        "js_divergence": lambda x: torch.log(2 / (1 + torch.exp(-x))),
    }.items():

        def diverging(lp: Tensor, score: Callable[[Tensor], Tensor] = score) -> Tensor:
            c, r = (score(x) for x in p.apart(lp))
            return -log_sigmoid(p.beta * (c - r)).mean()

        case(name, diverging, loss_type="sigmoid", fdiv=name)
    weights = {"hinge": 0.3, "sft": 2.0, "ipo": 0.7}
    case(
        "mixture", lambda lp: torch.stack([w * losses[name](lp) for name, w in weights.items()]).sum(),
        loss_type=list(weights), w=list(weights.values()),
    )  # fmt: skip


def labelled(folder: Folder, p: Pairs, rng: np.random.Generator) -> None:
    """KTO, on the same log-probs."""
    label, far = rng.integers(0, 2, len(p.ref)), rng.normal(size=(2, len(p.ref)))
    folder.file("kto.npz", p.inputs | {"label": label, "KL_logps": far[0], "ref_KL_logps": far[1]})
    kl, good = max(0.0, float((far[0] - far[1]).mean())), torch.from_numpy(label).bool()
    for name, shift, weights in (("kto", kl, (1.3, 0.4)), ("apo_zero_unpaired", 0.0, (1.0, 1.0))):

        def loss_of(lp: Tensor, shift: float = shift, weights: tuple[float, float] = weights) -> Tensor:
            win = torch.sigmoid(p.beta * (lp.sum(1) - p.ref - shift))
            return torch.where(good, weights[0] * (1 - win), weights[1] * win).mean()

        loss, grad = slope(loss_of, p.policy)
        sides = {"desirable_weight": weights[0], "undesirable_weight": weights[1]}
        folder.case("kto.npz", name, {"loss_type": name, "beta": p.beta, **sides}, loss=loss, grad=grad)


def without_reference(folder: Folder, rng: np.random.Generator, pairs: int) -> None:
    """SimPO and CPO, and reward models. Not ORPO: its records are float32, and only the very same steps in the same
    order have the same bits."""
    inputs = {
        f"{side}_{kind}_logps": -rng.uniform(0.05, 2.0, pairs) * (1 if kind == "avg" else 5)
        for side in ("chosen", "rejected") for kind in ("avg", "sum")
    }  # fmt: skip
    folder.file("orpo_cpo.npz", inputs)

    def case(name: str, kind: str, function: Callable[[Tensor, Tensor], Tensor], **parameters: Any) -> None:
        sides = [torch.tensor(inputs[f"{s}_{kind}_logps"], requires_grad=True) for s in ("chosen", "rejected")]
        loss = function(*sides)
        grads = torch.autograd.grad(loss, sides)
        parameters = {"inputs": kind, **parameters}
        folder.case("orpo_cpo.npz", name, parameters, loss=loss, grad_chosen=grads[0], grad_rejected=grads[1])

    def simpo(c: Tensor, r: Tensor, smoothing: float, alpha: float) -> Tensor:
        if alpha:
            c, r = (1 - torch.exp(-alpha * c)) / alpha, (1 - torch.exp(-alpha * r)) / alpha
        z = 2.5 * (c - r) - 0.8
        return ((smoothing - 1) * log_sigmoid(z) - smoothing * log_sigmoid(-z)).mean()

    for smoothing, alpha in ((0.0, 0.0), (0.2, 0.0), (0.0, 0.4), (0.1, -0.3)):
        parameters = {"beta": 2.5, "simpo_gamma": 0.8, "label_smoothing": smoothing, "alpha": alpha}
        case(
            f"simpo_{smoothing}_{alpha}", "avg", lambda c, r, s=smoothing, a=alpha: simpo(c, r, s, a),
            loss_type="simpo", **parameters,
        )  # fmt: skip
    case(
        "smooth", "sum", lambda c, r: (-0.9 * log_sigmoid(0.4 * (c - r)) - 0.1 * log_sigmoid(0.4 * (r - c))).mean(),
        loss_type="sigmoid", beta=0.4, label_smoothing=0.1,
    )  # fmt: skip
    case("hinge", "sum", lambda c, r: (1 - 0.4 * (c - r)).clamp(min=0).mean(), loss_type="hinge", beta=0.4)
    case("ipo", "sum", lambda c, r: ((c - r - 1.25) ** 2).mean(), loss_type="ipo", beta=0.4)

    scores, margin = torch.from_numpy(rng.normal(size=(2 * pairs, 1))), torch.from_numpy(rng.normal(size=pairs))
    folder.file("reward_bt.npz", {"logits": scores, "margin": margin})
    for name, center, less in (("bt", None, 0.0), ("bt_margin", None, margin), ("bt_center0.2", 0.2, 0.0)):

        def of_scores(x: Tensor, center: float | None = center, less: Any = less) -> Tensor:
            c, r = x[:pairs, 0], x[pairs:, 0]
            return (F.softplus(less - (c - r)) + (center or 0) * (c + r) ** 2).mean()

        loss, grad = slope(of_scores, scores)
        folder.case("reward_bt.npz", name, {"center": center}, loss=loss, grad=grad)
