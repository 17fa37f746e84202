"""Losses on pairs of a preferred and a rejected completion, and on single ones labelled good or bad. Pure functions on
torch tensors, [B] pairs.

Every pair loss takes these arguments, so that one table holds them (`orpo` has no smoothing, `simpo` a margin):

    chosen, rejected    [B], log-prob of the completion (sum over tokens) under the policy less that under the reference
    beta                how far the policy may go from the reference; rewards are beta * these
    smoothing           share of pairs whose labels are thought to be swapped, where the loss knows such a thing
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta * (chosen - rejected)) (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), with a share of labels
    swapped (conservative DPO, Mitchell 2023). On length-normalised log-ratios it is TRL's sigmoid_norm."""
    logits = beta * (chosen - rejected)
    return -F.logsigmoid(logits) * (1 - smoothing) - F.logsigmoid(-logits) * smoothing


def robust(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """DPO, unbiased when this share of labels is swapped (Chowdhury et al. 2024, arXiv:2403.00409, eq. 8)."""
    logits = beta * (chosen - rejected)
    return (-F.logsigmoid(logits) * (1 - smoothing) + F.logsigmoid(-logits) * smoothing) / (1 - 2 * smoothing)


def hinge(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """max(0, 1 - beta * (chosen - rejected)) (SLiC, Zhao et al. 2023, arXiv:2305.10425, as in RSO, Liu et al. 2023)."""
    return torch.relu(1 - beta * (chosen - rejected))


def ipo(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """(chosen - rejected - 1 / (2 beta))^2 (IPO, Azar et al. 2023, arXiv:2310.12036, eq. 17). Its authors take the mean
    over tokens, not the sum: pass log-ratios divided by lengths."""
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def exo(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 1e-3) -> Tensor:
    """KL of the policy's preference from the (smoothed) labels (EXO, Ji et al. 2024, arXiv:2402.00856, eq. 16)."""
    logits = beta * (chosen - rejected)
    wins, loses = F.logsigmoid(logits), F.logsigmoid(-logits)
    return wins.exp() * (wins - math.log(1 - smoothing)) + loses.exp() * (loses - math.log(smoothing))


def nca(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Each against noise (NCA, Chen et al. 2024, arXiv:2402.05369, eq. 11): keeps the chosen one's likelihood up."""
    c, r = beta * chosen, beta * rejected
    return -F.logsigmoid(c) - 0.5 * F.logsigmoid(-c) - 0.5 * F.logsigmoid(-r)


def bco(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0, shift: float | None = None) -> Tensor:
    """A classifier of single completions (BCO, Jung et al. 2024, arXiv:2404.04656, eq. 8). `shift`: the mean reward so
    far; without it that of this batch. No gradient flows through it."""
    c, r = beta * chosen, beta * rejected
    if shift is None:
        shift = float(torch.cat([c, r]).detach().mean())
    return -F.logsigmoid(c - shift) - F.logsigmoid(shift - r)


def sppo(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Log-ratios towards 1 / (2 beta) and -1 / (2 beta) (SPPO with hard labels, Wu et al. 2024, arXiv:2405.00675)."""
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def apo_zero(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Chosen up, rejected down (APO-zero, D'Oosterlinck et al. 2024, arXiv:2408.06266): for data better than the
    model."""
    return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Both down, the rejected further (APO-down, same paper): for data worse than the model."""
    return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * (chosen - rejected))


def discopop(
    chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0, temperature: float = 0.05
) -> Tensor:
    """A blend of logistic and exponential loss found by search (DiscoPOP, Lu et al. 2024, arXiv:2406.08414, eq. 6)."""
    logits = beta * (chosen - rejected)
    share = torch.sigmoid(logits / temperature)
    return -F.logsigmoid(logits) * (1 - share) + torch.exp(-logits) * share


def aot(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """DPO's loss between sorted values (AOT, Melnyk et al. 2024, arXiv:2406.05882): the whole distribution of chosen
    log-ratios above that of rejected ones, for data that are not paired. The paired form sorts the policy's and the
    reference's own differences instead: pass those."""
    return dpo(chosen.sort().values, rejected.sort().values, beta, smoothing)


def divergence_scores(log_ratio: Tensor, divergence: str) -> Tensor:
    """f'(policy / reference) for the divergences of f-DPO (Wang et al. 2023, arXiv:2309.16240, table 1), to be passed
    as `chosen` and `rejected`: reverse_kl gives the log-ratio itself, that is DPO."""
    if divergence == "reverse_kl":
        return log_ratio
    if divergence == "forward_kl":
        return -torch.exp(-log_ratio)
    if divergence == "js_divergence":
        return math.log(2) + F.logsigmoid(log_ratio)
    raise ValueError(f"unknown divergence {divergence!r}: expected reverse_kl, forward_kl or js_divergence")


def kto(
    log_ratio: Tensor, good: Tensor, kl: Tensor, beta: float, good_weight: float = 1.0, bad_weight: float = 1.0
) -> Tensor:
    """KTO (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8) for completions that are good or bad, [B] each:

        good: good_weight * (1 - sigmoid(beta * (log_ratio - kl)))
        bad:  bad_weight * (1 - sigmoid(beta * (kl - log_ratio)))

    Args:
        good: bool [B].
        kl: how far the policy is from the reference, one number without gradient: at least 0, estimated on completions
            of other prompts.
    """
    gap = beta * (log_ratio - kl)
    return torch.where(good, good_weight * torch.sigmoid(-gap), bad_weight * torch.sigmoid(gap))


def apo_zero_unpaired(
    log_ratio: Tensor, good: Tensor, beta: float, good_weight: float = 1.0, bad_weight: float = 1.0
) -> Tensor:
    """APO-zero for single completions."""
    return torch.where(
        good, good_weight * torch.sigmoid(-beta * log_ratio), bad_weight * torch.sigmoid(beta * log_ratio)
    )


def odds_ratio(chosen_mean: Tensor, rejected_mean: Tensor, beta: float = 1.0) -> Tensor:
    """-beta * log sigmoid(log-odds of the chosen - log-odds of the rejected) (ORPO, Hong et al. 2024, arXiv:2403.07691,
    eq. 7). Arguments are mean log-probs per token, of the policy alone; the SFT term comes beside it."""
    unlikely = torch.log1p(-torch.exp(chosen_mean)) - torch.log1p(-torch.exp(rejected_mean))
    return -beta * F.logsigmoid((chosen_mean - rejected_mean) - unlikely)


def simpo(
    chosen_mean: Tensor,
    rejected_mean: Tensor,
    beta: float,
    margin: float = 0.0,
    smoothing: float = 0.0,
    alpha: float = 0.0,
) -> Tensor:
    """DPO without a reference on mean log-probs per token (SimPO, Meng et al. 2024, arXiv:2405.14734, eq. 6): the loss
    is that of beta * (chosen - rejected) - margin. With `alpha` each probability p counts as (1 - p^-alpha) / alpha
    instead of log p (AlphaPO, Gupta et al. 2025, arXiv:2501.03884)."""
    if alpha:
        chosen_mean, rejected_mean = ((1 - torch.exp(-alpha * m)) / alpha for m in (chosen_mean, rejected_mean))
    return dpo(chosen_mean - margin / beta, rejected_mean, beta, smoothing)


PREFERENCE_LOSSES: dict[str, Callable[..., Tensor]] = {
    "dpo": dpo, "robust": robust, "hinge": hinge, "ipo": ipo, "exo": exo, "nca": nca, "bco": bco, "sppo": sppo,
    "apo_zero": apo_zero, "apo_down": apo_down, "discopop": discopop, "aot": aot, "orpo": odds_ratio, "simpo": simpo,
}  # fmt: skip


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, centering: float = 0.0) -> Tensor:
    """-log sigmoid(chosen - rejected - margin) for scores [B] of a reward model (Bradley and Terry 1952; margins as in
    Llama 2, Touvron et al. 2023, arXiv:2307.09288, eq. 2); `centering` pulls the sum of a pair's scores to 0
    (Eisenstein et al. 2023, arXiv:2312.09244)."""
    gap = chosen - rejected if margin is None else chosen - rejected - margin
    return -F.logsigmoid(gap) + centering * (chosen + rejected) ** 2
