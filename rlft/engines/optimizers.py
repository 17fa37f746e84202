"""From learner.optimizer to a torch optimizer over groups of parameters. The table of how each is built is here.

What each can do is in rlft.config.optimizers. Knows nothing about DeepSpeed or losses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from rlft.config.derived import moment_betas
from rlft.config.optimizers import LayerRate
from rlft.config.roles import CriticConfig, TrainedConfig
from rlft.errors import UserError

Groups = list[dict[str, Any]]
_LAST = re.compile(
    r"(?:^|\.)(?:\w*final\w*|ln_f|norm_f)\.\w+$"
)  # a last norm that some models name before their layers
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")


def make_groups(
    module: nn.Module, settings: TrainedConfig, rates: Mapping[str, float]
) -> tuple[list[dict[str, Any]], list[float]]:
    """The parameters that train, in groups of one learning rate and one weight decay each, and each group's learning
    rate as a part of the run's. `rates`: such parts by name, which multiply with those of lr_by_layer and layer_decay.

    Raises:
        UserError: a pattern matches nothing, or there is nothing for muon.
    """
    section = "critic" if isinstance(settings, CriticConfig) else "learner"
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    layers = layer_rates([name for name, _ in module.named_parameters()], settings.layer_decay, section)
    matched = matched_rates([name for name, _ in named], settings.lr_by_layer, section)
    all_rates = [(rates.get(n, 1.0) * layers.get(n, 1.0) * matched.get(n, 1.0), n, p) for n, p in named]
    by_muon = {n for n, p in named if settings.optimizer == "muon" and p.ndim == 2 and _LAYER.search(n)}
    if settings.optimizer == "muon" and not by_muon:
        raise UserError(
            f"{section}.optimizer: muon is for matrices inside the model's layers, and none of those trains; expected "
            f"another optimizer, adamw for instance. What trains: {_some([n for n, _ in named])}"
        )
    groups, group_rates = Groups(), list[float]()
    for rate in dict.fromkeys(rate for rate, _, _ in all_rates):
        mine = [(n, p) for other, n, p in all_rates if other == rate]
        parts = (
            ([p for n, p in mine if n in by_muon], settings.weight_decay, True),
            ([p for n, p in mine if p.ndim > 1 and n not in by_muon], settings.weight_decay, False),
            ([p for _, p in mine if p.ndim <= 1], 0.0, False),
        )
        for part, decay, muon in parts:
            if part:
                group = {"params": part, "weight_decay": decay, "lr": rate * settings.lr}
                groups.append(group | ({"muon": muon} if by_muon else {}))
                group_rates.append(rate)
    return groups, group_rates


def layer_rates(names: Sequence[str], decay: float, section: str = "learner") -> dict[str, float]:
    """Layer-wise decay (Clark et al. 2020, arXiv:2003.10555): decay to the power of the number of layers above. What is
    named before the first layer is below all of them, what is named behind the last one (or is called final) is above
    all. `names`: of all parameters, in the model's order.

    Raises:
        UserError: no name has a layer's number in it.
    """
    if decay == 1:
        return {}
    found = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
    if not found:
        raise UserError(f"{section}.layer_decay: no layers with numbers among the parameters: {_some(names)}")
    top, rates, seen = max(found.values()) + 1, dict[str, float](), False
    for name in names:
        seen = seen or name in found
        above = seen or _LAST.search(name) is not None
        rates[name] = decay ** (top - found[name] if name in found else 0 if above else top + 1)
    return rates


def matched_rates(names: Sequence[str], wanted: Sequence[LayerRate], section: str = "learner") -> dict[str, float]:
    """Of each name, the ratio of the first pattern that matches it or its end. `section` of the configuration stands in
    messages.

    Raises:
        UserError: a pattern matches none of these names.
    """
    rates = dict[str, float]()
    for i, each in enumerate(wanted):
        mine = [name for name in names if fnmatchcase(name, each.match) or fnmatchcase(name, f"*.{each.match}")]
        if not mine:
            raise UserError(
                f'{section}.lr_by_layer.{i}.match: "{each.match}" matches no parameter that trains. Their names: '
                f"{_some(names)}. A pattern is the end of a name, with * for anything: layers.0.*"
            )
        for name in mine:
            rates.setdefault(name, each.lr_ratio)
    return rates


def _some(names: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


class Lion(torch.optim.Optimizer):
    """The sign of momentum and gradient, mixed (Chen et al. 2023, arXiv:2302.06675, algorithm 2), with decoupled decay.
    One number is kept for each weight, in the weight's type."""

    def __init__(self, groups: Groups, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step by the gradients that are there."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"]
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(torch.sign(beta1 * momentum + (1 - beta1) * p.grad), alpha=-lr)
                momentum.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon for groups that have `muon`, torch's AdamW for the others, as one optimizer. Muon's steps are scaled
    to AdamW's size (Liu et al. 2025, arXiv:2502.16982), so that one learning rate is right for both."""

    def __init__(
        self, groups: Groups, lr: float, betas: tuple[float, float], eps: float, momentum: float
    ) -> None:  # fmt: skip
        matrices, others = [g for g in groups if g["muon"]], [g for g in groups if not g["muon"]]
        self._parts: dict[bool, torch.optim.Optimizer] = {
            True: torch.optim.Muon(matrices, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        }
        if others:
            self._parts[False] = torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps)
        super().__init__([*groups], {"lr": lr, "weight_decay": 0.0})

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step by the gradients that are there. Groups and state are this optimizer's own, also when restored."""
        for muon, part in self._parts.items():
            part.param_groups = [g for g in self.param_groups if g["muon"] is muon]
            part.state = self.state
            part.step()


def _adamw(groups: Groups, s: TrainedConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=s.lr, betas=moment_betas(s), eps=s.eps)


def _adamw_fused(groups: Groups, s: TrainedConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=s.lr, betas=moment_betas(s), eps=s.eps, fused=True)


def _bitsandbytes(name: str) -> Callable[[Groups, TrainedConfig], torch.optim.Optimizer]:
    def build(groups: Groups, s: TrainedConfig) -> torch.optim.Optimizer:
        try:
            import bitsandbytes
        except ImportError as error:
            raise UserError(
                f"learner.optimizer: {s.optimizer} needs bitsandbytes, which cannot be imported here ({error}); "
                "install it (it is there for Linux), or take adamw"
            ) from error
        return getattr(bitsandbytes.optim, name)(groups, lr=s.lr, betas=moment_betas(s), eps=s.eps)

    return build


def _lion(groups: Groups, s: TrainedConfig) -> torch.optim.Optimizer:
    return Lion(groups, s.lr, moment_betas(s))


def _adafactor(groups: Groups, s: TrainedConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=s.lr)


def _muon(groups: Groups, s: TrainedConfig) -> torch.optim.Optimizer:
    return MuonAdamW(groups, s.lr, moment_betas(s), s.eps, s.momentum)


BUILDERS: dict[str, Callable[[Groups, TrainedConfig], torch.optim.Optimizer]] = {  # cpu_adam: rlft.engines.deepspeed
    "adamw": _adamw,
    "adamw_fused": _adamw_fused,
    "adamw_8bit": _bitsandbytes("AdamW8bit"),
    "paged_adamw": _bitsandbytes("PagedAdamW"),
    "paged_adamw_8bit": _bitsandbytes("PagedAdamW8bit"),
    "lion": _lion,
    "adafactor": _adafactor,
    "muon": _muon,
}
