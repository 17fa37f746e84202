"""What rlft says to each recorded case: one function for each file of a golden folder.

A function gets the file's arrays and a case's parameters, and returns arrays by the names under which the file has them
("loss", "grad", "advantages", ...). It raises Unsupported for parameters that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlft.algorithms.advantages import gae, group_advantages, leave_one_out_advantages, normalized_sum, whiten
from rlft.algorithms.divergences import importance_weighted, k3_divergence
from rlft.algorithms.off_policy import truncated_importance, unlikely_failures
from rlft.algorithms.policy import (
    TokenLoss,
    cispo_loss,
    clipped_policy_loss,
    high_entropy,
    mean_by_sample,
    sapo_loss,
    sequence_clipped_loss,
    vespo_loss,
)
from rlft.algorithms.preference import (
    PREFERENCE_LOSSES,
    apo_zero_unpaired,
    bradley_terry,
    divergence_scores,
    kto,
    odds_ratio,
    simpo,
)
from rlft.algorithms.value import clipped_value_loss
from rlft.models.logprobs import token_logprobs
from rlft.samples import Totals

Arrays = Mapping[str, np.ndarray]
Parameters = Mapping[str, Any]
SAID = {"loss", "metrics", "inputs", "formula", "pg", "vf"}  # of a case's entry in index.json, what is no parameter


class Unsupported(Exception):
    """This case asks for something that rlft does not have."""


def parameters(case: Parameters, **defaults: Any) -> dict[str, Any]:
    """A case's parameters over their defaults; one without a default here is not known."""
    unknown = set(case) - SAID - set(defaults)
    if unknown:
        raise Unsupported(f"unknown parameter {', '.join(sorted(unknown))}")
    return {**defaults, **{name: value for name, value in case.items() if name not in SAID}}


def one_of(table: Mapping[str, Any], name: str, what: str) -> Any:
    """An entry of a table, or Unsupported."""
    if name not in table:
        raise Unsupported(f"unknown {what} {name!r}")
    return table[name]


def backward(loss: Tensor, **leaves: Tensor) -> dict[str, np.ndarray]:
    """The loss, and its gradient for each leaf under the leaf's name."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    grads = {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), found, strict=True)}
    return {"loss": loss.detach().numpy()} | {name: grad.numpy() for name, grad in grads.items()}


def leaf(array: np.ndarray) -> Tensor:
    """An input that a gradient is asked for."""
    return torch.tensor(np.asarray(array), dtype=torch.float64, requires_grad=True)


# The GRPO family. Averages: what TRL calls a loss type is for some only how tokens are weighed.
AVERAGES = {
    "grpo": "sequence", "sapo": "sequence", "bnpo": "token", "dapo": "token", "cispo": "token", "vespo": "token",
    "dr_grpo": "max_length", "luspo": "sample_sum",
}  # fmt: skip


def grpo(data: Arrays, case: Parameters, file: Parameters) -> dict[str, np.ndarray]:
    """TRL's _compute_loss: in one micro-batch, so that bnpo and dapo divide by the same count."""
    p = parameters(
        case, loss_type="dapo", beta=0.0, eps=0.2, eps_hi=None, delta=None, level="token", use_old=True, bias=True,
        vllm=False, topq=None, opsm=None, ent_coef=0.0,
    )  # fmt: skip
    mask, logps = torch.from_numpy(data["mask"]).bool(), leaf(data["per_token_logps"])
    logprobs = logps[mask]

    def tokens(name: str) -> Tensor:
        return torch.from_numpy(data[name])[mask]

    samples = torch.arange(len(mask))[:, None].expand_as(mask)[mask]
    old = tokens("old_per_token_logps") if p["use_old"] else logprobs.detach()
    advantages = torch.from_numpy(data["advantages"])[:, None].expand_as(mask)[mask]
    per_token = _policy_loss(p, logprobs, old, advantages, samples).per_token
    if p["opsm"] is not None:
        per_token = per_token * ~unlikely_failures(logprobs, old, advantages, samples, p["opsm"])
    if p["topq"] is not None:
        per_token = per_token * _high_entropy(tokens("entropies"), p["topq"])
    if p["vllm"]:
        if p["loss_type"] == "vespo":
            raise Unsupported("vespo with a weight for the sampler")  # TRL has it inside vespo's own weight
        sampler = old - tokens("is_ratio").log()  # what the sampler must have said for TRL's (truncated) ratio
        per_token = per_token * truncated_importance(old, sampler, cap=np.inf)
    if p["beta"]:
        kl = k3_divergence(logprobs, tokens("ref_per_token_logps"))
        if p["bias"]:  # TRL's weight is the policy loss's own ratio, that of whole samples too
            ratio = logprobs - old if p["level"] == "token" else mean_by_sample(logprobs - old, samples)
            kl = importance_weighted(kl, ratio, torch.zeros_like(ratio))
        per_token = per_token + p["beta"] * kl
    lengths = data["mask"].sum(1)
    totals = Totals(max(1, int(lengths.sum())), len(lengths), file["max_completion_length"])
    average = one_of(AVERAGES, p["loss_type"], "loss_type")
    weights = torch.tensor([totals.token_weight(average, max(1, int(n))) for n in lengths], dtype=torch.float64)
    loss = (per_token * weights[samples]).sum()
    if p["ent_coef"]:  # TRL's bonus is a mean over tokens whatever the average; only log-probs are a leaf here
        loss = loss - p["ent_coef"] * tokens("entropies").mean()
    return backward(loss, grad=logps)


def _high_entropy(entropies: Tensor, share: float) -> Tensor:
    """Our mask; but TRL takes the quantile in float32, and where the token at the quantile is within rounding of it,
    that rounding decides whether it is in."""
    ours = high_entropy(entropies, share)
    threshold = torch.quantile(entropies.float(), 1 - share)
    return torch.where(torch.isclose(entropies.float(), threshold, rtol=1e-5), entropies >= threshold, ours)


def _policy_loss(p: Parameters, logprobs: Tensor, old: Tensor, advantages: Tensor, samples: Tensor) -> TokenLoss:
    kind, low, high = p["loss_type"], p["eps"], p["eps"] if p["eps_hi"] is None else p["eps_hi"]
    if p["level"] not in ("token", "sequence"):
        raise Unsupported(f"unknown level {p['level']!r}")
    if p["level"] == "sequence" and kind in ("cispo", "sapo", "vespo"):
        raise Unsupported(f"{kind} with another ratio than its own")
    if kind == "cispo":
        return cispo_loss(logprobs, old, advantages, ratio_cap=high)
    if kind == "sapo":
        return sapo_loss(logprobs, old, advantages)
    if kind == "vespo":
        return vespo_loss(logprobs, old, advantages, samples)
    if p["level"] == "sequence":
        return sequence_clipped_loss(logprobs, old, advantages, samples, low, high, ratio_cap=p["delta"])
    return clipped_policy_loss(logprobs, old, advantages, low, high, ratio_cap=p["delta"])


def rloo(data: Arrays, case: Parameters, file: Parameters) -> dict[str, np.ndarray]:
    """TRL records the old log-probs of whole samples: all on the first token, the sum is the same."""
    parameters(case)
    mask, logps = torch.from_numpy(data["mask"]).bool(), leaf(data["per_token_logps"])
    samples = torch.arange(len(mask))[:, None].expand_as(mask)[mask]
    lengths = mask.sum(1)
    old = (torch.from_numpy(data["old_logps"]) / lengths)[samples]
    advantages = torch.from_numpy(data["advantages"])[samples]
    eps = file.get("eps", 0.2)
    loss = sequence_clipped_loss(logps[mask], old, advantages, samples, eps, eps, mean=False).per_token
    without_tokens = -torch.from_numpy(data["advantages"])[lengths == 0].sum() / len(mask)  # for TRL their ratio is 1
    return backward((loss / (lengths[samples] * len(mask))).sum() + without_tokens, grad=logps)


def advantages(data: Arrays, case: Parameters, file: Parameters, name: str) -> dict[str, np.ndarray]:
    """TRL says 0 where no function gave a reward, we say NaN. A case is known by its name."""
    eps = file.get("eps", 1e-4)
    if name.startswith("rloo_norm"):
        rewards = data["rloo/rewards"].reshape(-1, case.get("num_generations", 4))
        ours = leave_one_out_advantages(rewards, "batch" if name.endswith("1") else "none", eps)
        return {"advantages": np.nan_to_num(ours, nan=0.0).reshape(-1)}
    p = parameters(case, num_generations=4, weights=None)
    parts, weights = data["rewards_per_func"], np.asarray(p["weights"], dtype=np.float64)
    grouped = parts.reshape(-1, p["num_generations"], parts.shape[-1])
    how, _, scale = name.rpartition("_")
    if how == "sum_then_normalize" and scale in ("group", "batch", "none"):
        rewards = np.where(np.isnan(grouped).all(-1), np.nan, np.nansum(grouped * weights, -1))
        ours = group_advantages(rewards, scale, eps)
    elif name == "normalize_then_sum_group":
        ours = normalized_sum(grouped, weights, eps)
    else:
        raise Unsupported("unknown kind of advantages")
    return {"advantages": np.nan_to_num(ours, nan=0.0).reshape(-1)}


def ppo_gae(data: Arrays, case: Parameters, file: Parameters, name: str) -> dict[str, np.ndarray]:
    """GAE, and the losses of policy and critic. padding_mask is 1 behind a sample's end, padding_mask_p1 one later:
    there the critic still has a value."""
    tokens, values = data["padding_mask"] == 0, data["padding_mask_p1"] == 0
    if "gamma" in case:
        p = parameters(case, gamma=1.0, lam=0.95)
        rows = [
            gae(r[m], v[m], p["gamma"], p["lam"])
            for r, v, m in zip(data["rewards"], data["values"], values, strict=True)
        ]
        raw, returns = (np.zeros(values.shape), np.zeros(values.shape))
        for i, (a, r) in enumerate(rows):
            raw[i, values[i]], returns[i, values[i]] = a, r
        whitened = np.nan_to_num(whiten(np.where(tokens, raw, np.nan)), nan=0.0)
        return {"advantages_raw": raw, "returns": returns, "advantages_whitened": whitened}
    p = parameters(case, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1)
    own, seen = torch.from_numpy(tokens), torch.from_numpy(values)
    logps, vpred = leaf(data[f"{name}/logps"]), leaf(data[f"{name}/vpred"])
    old, adv, returns, before = (
        torch.from_numpy(data[key]) for key in (f"{name}/old_logps", f"{name}/advantages", f"{name}/returns", "values")
    )
    policy = clipped_policy_loss(logps[own], old[own], adv[own], p["cliprange"], p["cliprange"]).per_token.mean()
    critic = clipped_value_loss(vpred[seen], before[seen], returns[seen], p["cliprange_value"]).per_token.mean()
    found = backward(policy + p["vf_coef"] * critic, grad_logps=logps, grad_vpred=vpred)
    return found | {"pg_loss": policy.detach().numpy(), "vf_loss": critic.detach().numpy()}


PAIRS = {  # TRL's names for entries of our table
    "sigmoid": "dpo", "sigmoid_norm": "dpo", "robust": "robust", "hinge": "hinge", "ipo": "ipo", "exo_pair": "exo",
    "nca_pair": "nca", "bco_pair": "bco", "sppo_hard": "sppo", "apo_zero": "apo_zero", "apo_down": "apo_down",
    "discopop": "discopop", "aot": "aot", "aot_unpaired": "aot",
}  # fmt: skip
OF_THE_DIFFERENCE = {"sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "exo_pair", "discopop"}  # chosen - rejected


def dpo(data: Arrays, case: Parameters, file: Parameters) -> dict[str, np.ndarray]:
    """The first half of the rows is chosen, the second rejected."""
    p = parameters(case, loss_type="sigmoid", beta=0.1, ls=None, fdiv="reverse_kl", w=None)
    kinds = [p["loss_type"]] if isinstance(p["loss_type"], str) else p["loss_type"]
    weights = [1.0] * len(kinds) if p["w"] is None else p["w"]
    policy = leaf(data["policy_logps"])
    mask = torch.from_numpy(data["completion_mask"][:, 1:]).to(torch.float64)
    reference = (torch.from_numpy(data["ref_logps"]) * mask).sum(1)
    padding = (policy - policy.detach()) * (1 - mask)  # worth 0: TRL's sums give padding a gradient too
    sums, lengths, half = (policy * mask + padding).sum(1), mask.sum(1), len(mask) // 2
    loss = torch.zeros((), dtype=torch.float64)
    for kind, weight in zip(kinds, weights, strict=True):
        if kind == "sft":
            loss = loss - weight * (policy * mask)[:half].sum() / mask[:half].sum()
            continue
        function = PREFERENCE_LOSSES[one_of(PAIRS, kind, "loss_type")]
        if p["fdiv"] not in ("reverse_kl", "forward_kl", "js_divergence"):
            raise Unsupported(f"unknown divergence {p['fdiv']!r}")
        if p["fdiv"] != "reverse_kl" and kind not in OF_THE_DIFFERENCE:
            raise Unsupported(f"{kind} with the divergence {p['fdiv']}")
        ratios = divergence_scores(sums - reference, p["fdiv"])
        if kind in ("ipo", "sigmoid_norm"):
            ratios = ratios / lengths.clamp(min=1)
        chosen, rejected = ratios[:half], ratios[half:]
        if kind == "aot":  # paired: the policy's differences against the reference's
            chosen, rejected = sums[:half] - sums[half:], reference[:half] - reference[half:]
        more = {"shift": 0.0} if kind == "bco_pair" else {}  # a running mean in TRL, which has not begun here
        if kind in ("robust", "exo_pair") and p["ls"]:  # the others of TRL 1 know no swapped labels
            more["smoothing"] = p["ls"]
        loss = loss + weight * function(chosen, rejected, p["beta"], **more).mean()
    return backward(loss, grad=policy)


def kto_(data: Arrays, case: Parameters, file: Parameters) -> dict[str, np.ndarray]:
    """Log-probs of completions of other prompts give the KL."""
    p = parameters(case, loss_type="kto", beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)
    policy, mask = leaf(data["policy_logps"]), torch.from_numpy(data["completion_mask"][:, 1:]).to(torch.float64)
    padding = (policy - policy.detach()) * (1 - mask)
    ratio = ((policy - torch.from_numpy(data["ref_logps"])) * mask + padding).sum(1)
    good, sides = torch.from_numpy(data["label"]).bool(), (p["desirable_weight"], p["undesirable_weight"])
    if p["loss_type"] == "kto":
        kl = torch.tensor((data["KL_logps"] - data["ref_KL_logps"]).mean()).clamp(min=0)
        each = kto(ratio, good, kl, p["beta"], *sides)
    elif p["loss_type"] == "apo_zero_unpaired":
        each = apo_zero_unpaired(ratio, good, p["beta"], *sides)
    else:
        raise Unsupported(f"unknown loss_type {p['loss_type']!r}")
    return backward(each.mean(), grad=policy)


def orpo_cpo(data: Arrays, case: Parameters, file: Parameters) -> dict[str, np.ndarray]:
    """Losses without a reference, on means (ORPO, SimPO) or sums (CPO) of log-probs."""
    p = parameters(case, loss_type="orpo", beta=0.1, simpo_gamma=0.5, label_smoothing=0.0, alpha=0.0)
    kind = "sum" if case.get("inputs") == "sum" else "avg"
    chosen, rejected = leaf(data[f"chosen_{kind}_logps"]), leaf(data[f"rejected_{kind}_logps"])
    beta, smoothing = p["beta"], p["label_smoothing"]
    if p["alpha"] and p["loss_type"] != "simpo":
        raise Unsupported(f"alpha with loss_type {p['loss_type']!r}")
    if p["loss_type"] == "orpo":
        odds = odds_ratio(chosen.float(), rejected.float())  # TRL's own precision here, whatever it is given
        loss = torch.from_numpy(data["nll"]) + (beta * odds).mean()
    elif p["loss_type"] == "simpo":
        loss = simpo(chosen, rejected, beta, p["simpo_gamma"], smoothing, p["alpha"]).mean()
    else:
        loss = PREFERENCE_LOSSES[one_of(PAIRS, p["loss_type"], "loss_type")](chosen, rejected, beta, smoothing).mean()
    return backward(loss, grad_chosen=chosen, grad_rejected=rejected)


def reward_bt(data: Arrays, case: Parameters, file: Parameters, name: str) -> dict[str, np.ndarray]:
    """The first half of the rows is chosen. Margins count where the case's name says so."""
    p = parameters(case, center=None)
    logits = leaf(data["logits"])
    half = len(logits) // 2
    margin = torch.from_numpy(data["margin"]) if "margin" in name else None
    scores = logits[:, 0]
    return backward(bradley_terry(scores[:half], scores[half:], margin, p["center"] or 0.0).mean(), grad=logits)


def logprob(data: Arrays, case: Parameters, file: Parameters) -> dict[str, np.ndarray]:
    """The gradient is that of the log-probs' sum weighted by `upstream`."""
    logits, upstream = leaf(data["logits"]), torch.from_numpy(data["upstream"]).flatten()
    labels = torch.from_numpy(data["labels"]).flatten()
    logprobs, entropy = token_logprobs(lambda x: x, logits.flatten(0, -2), labels, chunk=4)
    grad = backward((logprobs * upstream).sum(), grad=logits)["grad"]
    shape = data["labels"].shape
    return {"logps": logprobs.detach().numpy().reshape(shape), "entropy": entropy.numpy().reshape(shape), "grad": grad}


FILES: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "grpo.npz": grpo, "rloo.npz": rloo, "advantages.npz": advantages, "ppo_gae.npz": ppo_gae, "dpo.npz": dpo,
    "kto.npz": kto_, "orpo_cpo.npz": orpo_cpo, "reward_bt.npz": reward_bt, "logprob.npz": logprob,
}  # fmt: skip
