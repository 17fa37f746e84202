"""The losses of the table, put together from a policy's scores and a pack, against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.statistics import Mean, metrics_of
from rlft.algorithms.table import make_loss
from rlft.batch import Pack, make_pack
from rlft.config.algorithm import AlgorithmConfig
from rlft.models.policy import TokenScores
from rlft.samples import Totals
from tests.helpers import make_group

LOG2 = math.log(2)
KL = 0.1  # kl_coef


def two_tokens() -> tuple[TokenScores, Pack]:
    """Two tokens of weight 1/2 with advantages 1 and -1. The policy says twice as much as before, and as much; the
    sampler said half as much as the learner before, and as much; the reference half as much as the policy, and as much.
    Each is a sample of its own, drawn with the weights that begin the step.
    """
    group = make_group([4], [[5], [6]], advantages=[1.0, -1.0])
    pack = make_pack([group], Totals(2, 2, 8), version=0)
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
    loss, stats = make_loss(AlgorithmConfig(), "none")(scores, replace(pack, ref_logprobs=None), KL)
    assert loss.item() == pytest.approx(-0.1)
    loss.backward()
    assert scores.logprobs.grad.tolist() == pytest.approx([0.0, 0.5])
    assert metrics_of(stats) == {
        "policy/clip_fraction": 1 / 2,
        "policy/entropy": 0.75 / 2,
        "policy/kl_old": pytest.approx((0.5 - 1 + LOG2) / 2),  # d = -log 2 and 0
        "staleness/logprob_diff_mean": pytest.approx(LOG2 / 2),
        "sampler/fresh": 1,
        "sampler/logprob_diff_mean": pytest.approx(LOG2 / 2),
        "sampler/logprob_diff_max": pytest.approx(LOG2),
        "sampler/kl": pytest.approx((2 - 1 - LOG2) / 2),  # d = log 2 and 0: exp(d) - 1 - d
    }


def test_grpo_corrects_for_the_sampler():
    # weights min(2, 1.5) = 1.5 and 1: (1.5 * -1.2 + 1) / 2
    scores, pack = two_tokens()
    settings = AlgorithmConfig(off_policy_cap=1.5)
    loss, stats = make_loss(settings, "token")(scores, replace(pack, ref_logprobs=None), KL)
    assert loss.item() == pytest.approx(-0.4)
    assert metrics_of(stats)["sampler/importance_mean"] == pytest.approx(1.25)
    assert metrics_of(stats)["sampler/importance_capped"] == 1 / 2


def one_sample() -> tuple[TokenScores, Pack]:
    """Three tokens of weight 1/3 with advantage 1, the first two of one sample, all stale. The policy has not moved.
    The tokens are 3, 1/2 and 8 times as likely to the learner as to the sampler."""
    group = make_group([4], [[5, 6], [7]], advantages=[1.0, 1.0])
    pack = make_pack([group], Totals(3, 2, 8))
    ratios = torch.tensor([3.0, 0.5, 8.0])
    pack = replace(pack, old_logprobs=torch.full((3,), -2.0), sampler_logprobs=-2.0 - ratios.log())
    return TokenScores(torch.full((3,), -2.0, requires_grad=True), torch.zeros(3)), pack


@pytest.mark.parametrize(
    ("correction", "mask", "weights", "importance_mean", "capped", "masked"),
    [
        ("none", None, [1, 1, 1], None, None, None),
        ("token", None, [2, 0.5, 2], 4.5 / 3, 2 / 3, None),
        ("sequence", None, [1.5, 1.5, 2], 5 / 3, 1 / 3, None),  # 3 * 1/2 for both tokens of the first sample
        ("none", 5.0, [1, 1, 0], None, None, 1 / 3),
        ("token", 2.5, [0, 0.5, 0], 4.5 / 3, 2 / 3, 2 / 3),
        ("token", 1.5, [0, 0, 0], 4.5 / 3, 2 / 3, 1),  # 1/2 is below 1 / 1.5
        ("sequence", 2.5, [0, 1.5, 0], 5 / 3, 1 / 3, 2 / 3),  # tokens are left out by their own ratio
    ],
)
def test_off_policy_weights(correction, mask, weights, importance_mean, capped, masked):
    """The loss is -sum(weights) / 3: what is left out still counts in the average."""
    scores, pack = one_sample()
    loss, stats = make_loss(AlgorithmConfig(off_policy_mask=mask), correction)(scores, pack, KL)
    loss.backward()
    assert scores.logprobs.grad.tolist() == pytest.approx([-w / 3 for w in weights])
    assert loss.item() == pytest.approx(-sum(weights) / 3)
    numbers = metrics_of(stats)
    expected = {"importance_mean": importance_mean, "importance_capped": capped, "masked": masked}
    for name, value in expected.items():
        assert numbers.get(f"sampler/{name}") == (None if value is None else pytest.approx(value))


def test_the_sampler_as_old_policy_bounds_how_far_a_token_moves():
    """Ratios 3, 1/2 and 8 to the sampler, advantage 1: -(1.2 + 0.5 + 1.2) / 3; only the second token still pulls."""
    scores, pack = one_sample()
    loss, stats = make_loss(AlgorithmConfig(), "clip")(scores, pack, KL)
    loss.backward()
    assert loss.item() == pytest.approx(-2.9 / 3)
    assert scores.logprobs.grad.tolist() == pytest.approx([0, -0.5 / 3, 0])
    assert metrics_of(stats)["policy/clip_fraction"] == pytest.approx(2 / 3)
    assert "sampler/importance_mean" not in metrics_of(stats)


def test_a_ratio_of_exactly_the_cap_is_not_truncated():
    scores, pack = two_tokens()
    pack = replace(pack, sampler_logprobs=pack.old_logprobs)
    _, stats = make_loss(AlgorithmConfig(off_policy_cap=1.0), "token")(scores, pack, KL)
    assert stats["sampler/importance_capped"] == Mean(0, 2)


def test_only_fresh_tokens_compare_sampler_and_learner():
    """Gaps log 2 (stale), 0 and log 4 (fresh)."""
    scores, pack = one_sample()
    pack = replace(
        pack,
        fresh=torch.tensor([False, True, True]),
        sampler_logprobs=torch.tensor([-2.0 - LOG2, -2.0, -2.0 + 2 * LOG2]),
    )
    _, stats = make_loss(AlgorithmConfig(), "none")(scores, pack, KL)
    numbers = metrics_of(stats)
    assert stats["sampler/logprob_diff_mean"] == Mean(pytest.approx(2 * LOG2), 2)
    assert numbers["sampler/logprob_diff_max"] == pytest.approx(2 * LOG2)
    assert numbers["sampler/kl"] == pytest.approx((1 / 4 - 1 + 2 * LOG2) / 2)  # d = 0 and -log 4
    assert numbers["sampler/fresh"] == 2 / 3
    assert numbers["staleness/logprob_diff_mean"] == pytest.approx(LOG2)


def test_without_fresh_tokens_nothing_is_said_of_the_sampler():
    scores, pack = one_sample()
    _, stats = make_loss(AlgorithmConfig(), "none")(scores, pack, KL)
    assert metrics_of(stats)["sampler/fresh"] == 0
    assert not {"sampler/logprob_diff_mean", "sampler/logprob_diff_max", "sampler/kl"} & stats.keys()


def test_the_samplers_kl_is_never_below_zero():
    """In float32, exp(d) - 1 - d of a rounding error of 1e-5 is noise of the size of 1e-7; the KL is 5e-11."""
    scores, pack = two_tokens()
    pack = replace(pack, sampler_logprobs=pack.old_logprobs + 1e-5)
    _, stats = make_loss(AlgorithmConfig(), "none")(scores, pack, KL)
    assert 4e-11 < metrics_of(stats)["sampler/kl"] < 6e-11


def test_grpo_of_a_pack_without_targets():
    """As of samples in which nothing is trained."""
    scores, pack = two_tokens()
    none = {
        name: value[:0]
        for name, value in vars(pack).items()
        if isinstance(value, torch.Tensor) and name not in ("input_ids", "position_ids")
    }
    settings = AlgorithmConfig(off_policy_mask=5.0)
    for correction in ("none", "token", "sequence"):
        empty = TokenScores(scores.logprobs[:0], scores.entropy[:0])
        loss, stats = make_loss(settings, correction)(empty, replace(pack, **none), KL)
        assert loss.item() == 0
        assert metrics_of(stats) == {}


def test_grpo_with_kl():
    # k3 of d = -log 2: 0.5 + log 2 - 1; of d = 0: 0. The KL is not weighed by the sampler's correction
    scores, pack = two_tokens()
    kl = LOG2 - 0.5
    for correction, mask, policy in (
        ("none", None, -0.1),
        ("token", None, -0.7),  # (2 * -1.2 + 1) / 2 with the cap at 2
        ("none", 1.5, 0.5),  # the first token is left out of the policy loss, not out of the KL
    ):
        settings = AlgorithmConfig(kl_coef=0.1, off_policy_mask=mask)
        loss, stats = make_loss(settings, correction)(scores, pack, KL)
        assert loss.item() == pytest.approx(policy + 0.1 * kl / 2)
        assert stats["policy/kl"] == Mean(pytest.approx(kl), 2)


def test_grpo_on_policy_takes_its_own_logprobs_for_the_old_ones():
    scores, pack = two_tokens()
    pack = replace(pack, old_logprobs=None, ref_logprobs=None)
    loss, stats = make_loss(AlgorithmConfig(), "none")(scores, pack, KL)
    loss.backward()
    assert loss.item() == pytest.approx(0.0)
    assert scores.logprobs.grad.tolist() == pytest.approx([-0.5, 0.5])
    assert stats["sampler/logprob_diff_max"] == pytest.approx(2 * LOG2)


def test_sft():
    scores, pack = two_tokens()
    loss, stats = make_loss(AlgorithmConfig(type="sft"), "none")(scores, pack, KL)
    loss.backward()
    assert loss.item() == pytest.approx((4 - LOG2) / 2)
    assert scores.logprobs.grad.tolist() == pytest.approx([-0.5, -0.5])
    assert stats == {"sft/nll": Mean(pytest.approx(4 - LOG2), 2), "policy/entropy": Mean(0.75, 2)}


@pytest.mark.parametrize("name", ["grpo", "sft"])
def test_statistics_are_plain_numbers(name):
    """They hold no graph and travel between processes."""
    scores, pack = two_tokens()
    _, stats = make_loss(AlgorithmConfig(type=name, off_policy_mask=5.0), "sequence")(scores, pack, KL)
    flat = [number for stat in stats.values() for number in (stat if isinstance(stat, Mean) else (stat,))]
    assert {type(number) for number in flat} <= {int, float}
