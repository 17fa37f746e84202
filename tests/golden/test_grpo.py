"""GRPO's pieces against numbers that TRL 1.16 computed (float64), recorded in ../shared/goldens.

TRL's "grpo" is our average "sequence", "dapo" and (in one micro-batch) "bnpo" are "token", "dr_grpo" is "max_length".
With beta > 0 TRL multiplies k3 by the importance ratio unless told otherwise; our k3 is the plain one, case `nobias`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rlft.algorithms.advantages import group_advantages
from rlft.algorithms.policy import clipped_policy_loss, k3_divergence, truncated_importance
from rlft.models.logprobs import token_logprobs
from rlft.samples import Totals

GOLDENS = Path(__file__).parents[2].parent / "shared" / "goldens"
pytestmark = pytest.mark.skipif(not GOLDENS.is_dir(), reason=f"the golden numbers are not at {GOLDENS}")

AVERAGES = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "max_length"}
CLOSE = {"rtol": 1e-9, "atol": 1e-15}


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / name) as file:
        return dict(file)


def index() -> dict:
    return json.loads((GOLDENS / "index.json").read_text())["files"]


def loss_and_gradient(data: dict[str, np.ndarray], case: dict, biased_kl: bool = False) -> tuple[float, np.ndarray]:
    """The loss as our learner adds it up: each token's, weighted by the counts of the whole batch."""
    mask = torch.from_numpy(data["mask"]).bool()
    leaf = torch.tensor(data["per_token_logps"], requires_grad=True)
    logprobs = leaf[mask]

    def tokens(name: str) -> torch.Tensor:
        return torch.from_numpy(data[name])[mask]

    old = tokens("old_per_token_logps") if case.get("use_old", True) else logprobs.detach()
    advantages = torch.from_numpy(data["advantages"])[:, None].expand_as(mask)[mask]
    low = case.get("eps", 0.2)
    per_token = clipped_policy_loss(logprobs, old, advantages, low, case.get("eps_hi") or low).per_token
    if case.get("vllm"):
        sampler = old - tokens("is_ratio").log()  # what the sampler must have said for TRL's ratio
        per_token = per_token * truncated_importance(old, sampler, cap=3.0)
    if case.get("beta"):
        kl = k3_divergence(logprobs, tokens("ref_per_token_logps"))
        per_token = per_token + case["beta"] * (kl * torch.exp(logprobs - old) if biased_kl else kl)
    lengths = data["mask"].sum(1)
    totals = Totals(int(lengths.sum()), len(lengths), index()["grpo.npz"]["max_completion_length"])
    weights = [totals.token_weight(AVERAGES[case["loss_type"]], int(n)) for n in lengths]
    loss = (per_token * torch.tensor(weights, dtype=torch.float64)[:, None].expand_as(mask)[mask]).sum()
    loss.backward()
    return loss.item(), leaf.grad.numpy()


@pytest.mark.parametrize(
    "name",
    ["grpo_b0.0", "bnpo_b0.0", "dapo_b0.0", "dr_grpo_b0.0", "grpo_onpolicy", "dapo_cliphigher", "dapo_tis",
     "grpo_b0.04_nobias"],
)  # fmt: skip
def test_loss_and_gradient(name):
    data, case = load("grpo.npz"), index()["grpo.npz"]["cases"][name]
    loss, gradient = loss_and_gradient(data, case)
    np.testing.assert_allclose(loss, data[f"{name}/loss"], **CLOSE)
    np.testing.assert_allclose(gradient, data[f"{name}/grad"], **CLOSE)


@pytest.mark.parametrize("name", ["grpo_b0.04", "bnpo_b0.04", "dapo_b0.04", "dr_grpo_b0.04"])
def test_with_trls_importance_weight_on_k3(name):
    """The weight is put on here; what this holds fast are our k3 and our averages for beta > 0."""
    data, case = load("grpo.npz"), index()["grpo.npz"]["cases"][name]
    loss, gradient = loss_and_gradient(data, case, biased_kl=True)
    np.testing.assert_allclose(loss, data[f"{name}/loss"], **CLOSE)
    np.testing.assert_allclose(gradient, data[f"{name}/grad"], **CLOSE)


def test_clip_fraction():
    data, case = load("grpo.npz"), index()["grpo.npz"]["cases"]["grpo_b0.0"]
    mask = data["mask"].astype(bool)
    arrays = [
        data["per_token_logps"],
        data["old_per_token_logps"],
        np.broadcast_to(data["advantages"][:, None], (6, 7)),
    ]
    clipped = clipped_policy_loss(*(torch.from_numpy(a[mask]) for a in arrays), 0.2, 0.2).clipped
    assert clipped.double().mean().item() == pytest.approx(case["metrics"]["clip_ratio/region_mean"], rel=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages(scale):
    """Two reward functions with weights 1 and 0.5, missing values left out of the sum; TRL gives advantage 0 where we
    say NaN (no function gave a reward)."""
    data = load("advantages.npz")
    parts = data["rewards_per_func"] * np.array([1.0, 0.5])
    rewards = np.where(np.isnan(parts).all(1), np.nan, np.nansum(parts, 1)).reshape(4, 4)
    ours = group_advantages(rewards, scale, eps=index()["advantages.npz"]["eps"])
    expected = data[f"sum_then_normalize_{scale}/advantages"].reshape(4, 4)
    np.testing.assert_allclose(np.nan_to_num(ours, nan=0.0), expected, rtol=1e-9, atol=1e-12)
    assert np.isnan(ours).sum() == 1


@pytest.mark.parametrize("chunk", [2, 2048])
def test_logprobs_entropy_and_their_gradient(chunk):
    """Ours are float32 by design, so they are compared as such."""
    data = load("logprob.npz")
    hidden = torch.from_numpy(data["logits"]).flatten(0, 1).float().requires_grad_()
    targets = torch.from_numpy(data["labels"]).flatten()
    logprobs, entropy = token_logprobs(lambda logits: logits, hidden, targets, chunk=chunk)
    (logprobs * torch.from_numpy(data["upstream"]).flatten().float()).sum().backward()
    np.testing.assert_allclose(logprobs.detach().numpy(), data["logps"].flatten(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(entropy.numpy(), data["entropy"].flatten(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(hidden.grad.numpy(), data["grad"].reshape(15, 64), rtol=1e-5, atol=1e-7)
    assert not entropy.requires_grad
