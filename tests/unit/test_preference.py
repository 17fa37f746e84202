"""Preference losses with numbers worked by hand, and what holds for all of them."""

from __future__ import annotations

import math

import pytest
import torch

from rlft.algorithms.preference import (
    PREFERENCE_LOSSES,
    apo_zero_unpaired,
    bradley_terry,
    divergence_scores,
    dpo,
    ipo,
    kto,
    odds_ratio,
    robust,
    simpo,
)
from tests.helpers import numbers

LOG3 = math.log(3)


def test_dpo():
    # beta * (chosen - rejected) = log 3: sigmoid is 3/4. Smoothed by 1/4: 3/4 log(4/3) + 1/4 log 4
    loss = dpo(numbers(LOG3), numbers(-LOG3), 0.5)
    assert loss.tolist() == pytest.approx([math.log(4 / 3)])
    smoothed = dpo(numbers(LOG3), numbers(-LOG3), 0.5, smoothing=0.25)
    assert smoothed.tolist() == pytest.approx([0.75 * math.log(4 / 3) + 0.25 * math.log(4)])


def test_robust_is_unbiased():
    """Averaged over swapped labels as often as assumed, it is DPO on the true ones."""
    chosen, rejected, share = numbers(0.7, -0.2), numbers(-0.1, 0.4), 0.2
    mixed = (1 - share) * robust(chosen, rejected, 0.3, share) + share * robust(rejected, chosen, 0.3, share)
    torch.testing.assert_close(mixed, dpo(chosen, rejected, 0.3))


def test_ipo():
    # a gap of 3 towards 1 / (2 * 0.25) = 2
    assert ipo(numbers(2.0), numbers(-1.0), 0.25).tolist() == [1.0]


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        # beta 1/2, chosen 2 log 3, rejected 0: rewards log 3 and 0, whose sigmoids are 3/4 and 1/2
        ("dpo", math.log(4 / 3)),
        ("robust", math.log(4 / 3)),
        ("aot", math.log(4 / 3)),
        ("hinge", 0.0),
        ("ipo", (2 * LOG3 - 1) ** 2),
        ("exo", 0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(0.25 / 0.1)),  # labels swapped: 1 in 10
        ("nca", math.log(4 / 3) + 0.5 * math.log(4) + 0.5 * math.log(2)),
        ("bco", 2 * math.log(1 + 3**-0.5)),  # shifted by the mean log(3) / 2: both log 3 / 2 on the right side
        ("sppo", (2 * LOG3 - 1) ** 2 + 1),
        ("apo_zero", 0.25 + 0.5),
        ("apo_down", 0.75 + 0.25),
        ("discopop", 1 / 3),  # 22 temperatures above 0 it is the exponential loss exp(-log 3)
    ],
)
def test_by_hand(name, loss):
    smoothing = {"exo": 0.1}.get(name, 0.0)
    got = PREFERENCE_LOSSES[name](numbers(2 * LOG3), numbers(0.0), 0.5, smoothing)
    assert got.tolist() == pytest.approx([loss], rel=1e-6)


def test_hinge_within_its_margin():
    # 1 - 0.5 * 1
    assert PREFERENCE_LOSSES["hinge"](numbers(1.0), numbers(0.0), 0.5).tolist() == [0.5]


def test_aot_compares_what_has_the_same_rank():
    # chosen 0 and log 9, rejected log 3 and 0: sorted 0 with 0 and log 9 with log 3
    got = PREFERENCE_LOSSES["aot"](numbers(0, 2 * LOG3), numbers(LOG3, 0), 1.0)
    assert sorted(got.tolist()) == pytest.approx([math.log(4 / 3), math.log(2)])


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_no_pair(name):
    assert PREFERENCE_LOSSES[name](numbers(), numbers(), 0.1).shape == (0,)


@pytest.mark.parametrize("name", [name for name in PREFERENCE_LOSSES if name != "discopop"])
def test_all_push_the_chosen_above_the_rejected(name):
    """Where both are equally likely. (DiscoPOP, found by search, has a bump there.)"""
    chosen = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    rejected = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    if name == "orpo":  # log-probs of 0 have infinite odds
        chosen, rejected = (torch.full((3,), -0.7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    more = {} if name in ("orpo", "simpo") else {"smoothing": 0.1}
    if name == "simpo":
        more = {"margin": 0.5}
    loss = PREFERENCE_LOSSES[name](chosen, rejected, 0.1, **more) if name != "aot" else dpo(chosen, rejected, 0.1)
    up, down = torch.autograd.grad(loss.sum(), [chosen, rejected])
    assert loss.shape == (3,) and bool((down - up > 0).all()), name


def test_divergences_of_f_dpo():
    # the policy is 3 times as likely as the reference: -1/3; log(2 * 3/4)
    assert divergence_scores(numbers(LOG3), "forward_kl").tolist() == pytest.approx([-1 / 3])
    assert divergence_scores(numbers(LOG3), "js_divergence").tolist() == pytest.approx([math.log(1.5)])
    with pytest.raises(ValueError, match="unknown divergence 'x'"):
        divergence_scores(numbers(0.0), "x")


def test_kto():
    # beta * (ratio - kl) = log 3: good 1 - 3/4, bad 1 - 1/4, times 2
    loss = kto(numbers(LOG3, LOG3), torch.tensor([True, False]), numbers(0.0)[0], 1.0, 1.0, 2.0)
    assert loss.tolist() == pytest.approx([0.25, 1.5])
    assert apo_zero_unpaired(numbers(LOG3, LOG3), torch.tensor([True, False]), 1.0).tolist() == pytest.approx(
        [0.25, 0.75]
    )


def test_odds_ratio():
    # probabilities 3/4 and 1/2: odds 3 and 1
    assert odds_ratio(numbers(math.log(0.75)), numbers(math.log(0.5))).tolist() == pytest.approx([math.log(4 / 3)])
    assert odds_ratio(numbers(math.log(0.75)), numbers(math.log(0.5)), 0.5).tolist() == pytest.approx(
        [math.log(4 / 3) / 2]
    )


def test_simpo():
    # 2 * (1 - 0.25) - 0.5 = 1; AlphaPO with alpha 1 counts p as 1 - 1 / p
    assert simpo(numbers(1.0), numbers(0.25), 2.0, 0.5).tolist() == pytest.approx([math.log(1 + math.exp(-1))])
    alpha = simpo(numbers(math.log(0.5)), numbers(math.log(0.25)), 1.0, 0.0, alpha=1.0)
    assert alpha.tolist() == pytest.approx([math.log(1 + math.exp(-2))])  # -1 against -3


def test_bradley_terry():
    # a gap of log 3 + 1 with margin 1; centering adds 0.1 * (sum)^2
    loss = bradley_terry(numbers(LOG3 + 1), numbers(0.0), numbers(1.0))
    assert loss.tolist() == pytest.approx([math.log(4 / 3)])
    centered = bradley_terry(numbers(LOG3), numbers(0.0), None, 0.1)
    assert centered.tolist() == pytest.approx([math.log(4 / 3) + 0.1 * LOG3**2])
