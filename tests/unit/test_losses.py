"""The losses of the table, put together from a policy's scores and a pack, against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.table import ALGORITHMS
from rlft.batch import Pack, make_pack
from rlft.config.algorithm import AlgorithmConfig
from rlft.models.policy import TokenScores
from rlft.samples import Totals
from tests.helpers import make_group

LOG2 = math.log(2)


def two_tokens() -> tuple[TokenScores, Pack]:
    """Two tokens of weight 1/2 with advantages 1 and -1. The policy says twice as much as before, and as much; the
    sampler said half as much as the learner before, and as much; the reference half as much as the policy, and as much.
    """
    group = make_group([4], [[5], [6]], advantages=[1.0, -1.0])
    pack = make_pack([group], Totals(2, 2, 8))
    pack = replace(
        pack,
        old_logprobs=torch.tensor([-2.0, -2.0]),
        sampler_logprobs=torch.tensor([-2.0 - LOG2, -2.0]),
        ref_logprobs=torch.tensor([-2.0, -2.0]),
    )
    logprobs = torch.tensor([-2.0 + LOG2, -2.0], requires_grad=True)
    return TokenScores(logprobs, torch.tensor([0.5, 0.25])), pack


def test_grpo_without_extras():
    # ratios 2 and 1; the first is clipped at 1.2: (-1.2 + 1) / 2
    scores, pack = two_tokens()
    loss, stats = ALGORITHMS["grpo"].make_loss(AlgorithmConfig(), False)(scores, replace(pack, ref_logprobs=None))
    assert loss.item() == pytest.approx(-0.1)
    loss.backward()
    assert scores.logprobs.grad.tolist() == pytest.approx([0.0, 0.5])
    assert {name: float(value) for name, value in stats.items()} == {
        "policy/clip_fraction": 1,
        "policy/entropy": 0.75,
        "sampler/logprob_diff_mean": pytest.approx(LOG2),
        "sampler/logprob_diff_max": pytest.approx(LOG2),
    }


def test_grpo_corrects_for_the_sampler():
    # weights min(2, 1.5) = 1.5 and 1: (1.5 * -1.2 + 1) / 2
    scores, pack = two_tokens()
    settings = AlgorithmConfig(off_policy_cap=1.5)
    loss, stats = ALGORITHMS["grpo"].make_loss(settings, True)(scores, replace(pack, ref_logprobs=None))
    assert loss.item() == pytest.approx(-0.4)
    assert float(stats["sampler/importance_mean"]) == pytest.approx(2.5)


def test_grpo_with_kl():
    # k3 of d = -log 2: 0.5 + log 2 - 1; of d = 0: 0. The KL is not weighed by the sampler's correction
    scores, pack = two_tokens()
    kl = LOG2 - 0.5
    for correct, policy in ((False, -0.1), (True, -0.7)):  # (2 * -1.2 + 1) / 2 with the cap at 2
        loss, stats = ALGORITHMS["grpo"].make_loss(AlgorithmConfig(kl_coef=0.1), correct)(scores, pack)
        assert loss.item() == pytest.approx(policy + 0.1 * kl / 2)
        assert float(stats["policy/kl"]) == pytest.approx(kl)


def test_grpo_on_policy_takes_its_own_logprobs_for_the_old_ones():
    scores, pack = two_tokens()
    pack = replace(pack, old_logprobs=None, ref_logprobs=None)
    loss, stats = ALGORITHMS["grpo"].make_loss(AlgorithmConfig(), False)(scores, pack)
    loss.backward()
    assert loss.item() == pytest.approx(0.0)
    assert scores.logprobs.grad.tolist() == pytest.approx([-0.5, 0.5])
    assert float(stats["sampler/logprob_diff_max"]) == pytest.approx(2 * LOG2)


def test_sft():
    scores, pack = two_tokens()
    loss, stats = ALGORITHMS["sft"].make_loss(AlgorithmConfig(type="sft"), False)(scores, pack)
    loss.backward()
    assert loss.item() == pytest.approx((4 - LOG2) / 2)
    assert scores.logprobs.grad.tolist() == pytest.approx([-0.5, -0.5])
    assert float(stats["sft/nll"]) == pytest.approx(4 - LOG2)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_statistics_hold_no_graph(name):
    scores, pack = two_tokens()
    _, stats = ALGORITHMS[name].make_loss(AlgorithmConfig(kl_coef=0.1), True)(scores, pack)
    assert not any(value.requires_grad for value in stats.values())
