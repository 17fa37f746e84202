"""What must not matter to any policy loss: the order of samples, how they are packed and dealt to ranks, what else is
in a pack; and what no loss may take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.algorithms.preference import PREFERENCE_LOSSES
from rlft.algorithms.table import POLICY_LOSSES, Loss, make_loss
from rlft.batch import make_pack, plan_micro_batches
from rlft.config.algorithm import BY_TOKEN, FROM_DATA, PRESETS, AlgorithmConfig
from rlft.config.derived import loss_average
from rlft.data.pairs import signed_sample
from rlft.errors import RunError
from rlft.loops.credit import assign_advantages, select
from rlft.loops.learning import refuse_what_is_not_finite
from rlft.models.policy import TokenScores
from rlft.samples import Group, count_totals
from tests.helpers import alone, make_group, random_groups

ALL = [{"policy_loss": name, "advantage": "group"} for name in POLICY_LOSSES] + [
    {"policy_loss": "clip", "kl_unbiased": True, "entropy_coef": 0.1, "dual_clip": 2.0},
    {"policy_loss": "clip", "off_policy_mask": 1.3, "off_policy_sample_mask": 0.1},
    {"policy_loss": "cispo", "ratio_cap": 1.5, "loss_average": "sample_sum"},
]
PAIRS = [
    *({"type": "online_dpo", "preference_loss": n} for n in PREFERENCE_LOSSES if n not in ("bco", "aot", *BY_TOKEN)),
    *({"type": name} for name in ("ipo", "cpo", "orpo", "simpo")),
    {"type": "dpo", "preference_per_token": True, "sft_coef": 0.3},
]  # fmt: skip
DRAWN = [n for n in PRESETS if n not in (*FROM_DATA, "ppo", "rft", "distill", "reinforce", "reinforce_pp")]
AVERAGES = ["token", "sequence", "max_length", "sample_sum"]


def total(loss: Loss, packs: list[list[Group]], totals: Any, average: str) -> tuple[float, np.ndarray]:
    """The sum over packs and its gradient for a policy whose log-prob of a token is a function of the token alone."""
    theta = torch.linspace(-1.0, 1.0, 64, dtype=torch.float64, requires_grad=True)
    whole = torch.zeros((), dtype=torch.float64)
    for groups in packs:
        pack = make_pack(groups, totals, average, version=0)
        scores = theta[pack.targets]
        value, _ = loss(TokenScores(-1.5 + 0.5 * torch.tanh(scores), torch.exp(-scores)), pack, 0.1)
        whole = whole + value
    whole.backward()
    return whole.item(), theta.grad.numpy()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False), st.sampled_from(AVERAGES))
@pytest.mark.parametrize("keys", ALL, ids=lambda keys: "-".join(map(str, keys.values())))
def test_order_packing_and_ranks(keys, seed, random, average):
    """One pack with shared prompts; every sample alone; dealt to three ranks in small micro-batches, samples and groups
    in another order. Loss and gradient are the same."""
    groups = random_groups(np.random.default_rng(seed), [3, 1, 4, 2], old_and_ref=True)
    totals = count_totals(groups, 8)
    algorithm = AlgorithmConfig(**keys)
    loss = make_loss(algorithm, "sequence" if seed % 2 else "token")
    expected = total(loss, [groups], totals, average)
    mixed = [g.with_samples(random.sample(g.samples, len(g.samples))) for g in random.sample(groups, len(groups))]
    dealt = [batch for rank in plan_micro_batches(mixed, 3, 12) for batch in rank if batch]
    for packs in ([alone(groups)], [[g] for g in alone(mixed)], dealt):
        found = total(loss, packs, totals, average)
        assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-7)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-7)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
@pytest.mark.parametrize("keys", PAIRS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_pairs_in_any_order(keys, seed, random):
    """Pairs stay together; which stands first in its pair, and in which pack the pair is, does not matter."""
    groups = random_groups(np.random.default_rng(seed), [2, 2, 2, 2], old_and_ref=True)
    signed = [
        g.with_samples(
            [
                replace(s, advantages=np.where(s.loss_mask, sign, 0).astype(np.float32))
                for s, sign in zip(g.samples, (1.0, -1.0), strict=True)
            ]
        )
        for g in groups
    ]
    loss = make_loss(AlgorithmConfig(**keys), "none")
    totals = count_totals(signed, 8)
    expected = total(loss, [signed], totals, "sequence")
    mixed = [g.with_samples(random.sample(g.samples, 2)) for g in random.sample(signed, 4)]
    dealt = [batch for rank in plan_micro_batches(mixed, 2, 5, whole=True) for batch in rank if batch]
    for packs in ([mixed], [[g] for g in mixed], dealt):
        found = total(loss, packs, totals, "sequence")
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-7)


def test_pairs_weigh_the_same_whatever_their_length():
    """Two pairs, of completions of 2 and of 20 tokens: the mean of each alone."""
    algorithm = AlgorithmConfig(type="online_dpo")
    loss, average = make_loss(algorithm, "none"), loss_average(algorithm)

    def pair(length: int) -> Group:
        group = make_group([4, 5], [[7] * length, [9] * length], advantages=[1.0, -1.0])
        return group.with_samples(
            [replace(s, ref_logprobs=np.where(s.loss_mask, -1.5, 0).astype("f4")) for s in group.samples]
        )

    short, long = pair(2), pair(20)
    both = total(loss, [[short, long]], count_totals([short, long], 32), average)[0]
    each = [total(loss, [[g]], count_totals([g], 32), average)[0] for g in (short, long)]
    assert both == pytest.approx(sum(each) / 2) and each[0] != pytest.approx(each[1])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", ["kto", "apo_zero"])
def test_labelled_completions_in_any_order_and_packing(name, seed, random):
    rng = np.random.default_rng(seed)
    groups = random_groups(rng, [1] * 6, old_and_ref=True)
    signed = [
        g.with_samples([signed_sample(g.samples[0], sign)]) for g, sign in zip(groups, rng.choice([1.0, -1.0], 6))
    ]
    loss = make_loss(AlgorithmConfig(type="kto", preference_loss=name, bad_weight=1.5), "none")
    totals = replace(count_totals(signed, 8), kl=0.3)
    expected = total(loss, [signed], totals, "sequence")
    mixed = random.sample(signed, 6)
    dealt = [batch for rank in plan_micro_batches(mixed, 2, 5) for batch in rank if batch]
    for packs in ([mixed], [[g] for g in mixed], dealt):
        found = total(loss, packs, totals, "sequence")
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("keys", ALL, ids=lambda keys: "-".join(map(str, keys.values())))
def test_samples_that_are_masked_altogether_change_nothing(keys):
    groups = random_groups(np.random.default_rng(1), [3, 2], old_and_ref=True)
    silent = replace(groups[0].samples[0], loss_mask=np.zeros_like(groups[0].samples[0].loss_mask))
    more = [groups[0].with_samples([groups[0].samples[0], silent, *groups[0].samples[1:]]), groups[1]]
    loss, totals = make_loss(AlgorithmConfig(**keys), "sequence"), count_totals(groups, 8)
    expected, found = total(loss, [groups], totals, "token"), total(loss, [more], totals, "token")
    assert found[0] == pytest.approx(expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([-3.0, 0.5, 7.0]))
@pytest.mark.parametrize("name", DRAWN)
def test_a_constant_on_all_rewards_of_a_group_changes_nothing(name, seed, constant):
    """For whatever compares samples with each other. (A critic learns the constant; rft asks for a level.)"""
    rng = np.random.default_rng(seed)
    groups = random_groups(rng, [4, 4, 4])
    scored = [g.with_samples([replace(s, reward=float(rng.integers(0, 5))) for s in g.samples]) for g in groups]
    raised = [
        g.with_samples([replace(s, reward=s.reward + constant * (i + 1)) for s in g.samples])
        for i, g in enumerate(scored)
    ]
    algorithm = AlgorithmConfig(type=name)
    before, after = (select(assign_advantages(each, algorithm), algorithm, 8)[0] for each in (scored, raised))
    assert [len(g.samples) for g in before] == [len(g.samples) for g in after]
    for a, b in zip((s for g in before for s in g.samples), (s for g in after for s in g.samples), strict=True):
        np.testing.assert_allclose(a.advantages, b.advantages, atol=1e-4)


@pytest.mark.parametrize("name", DRAWN)
def test_equal_rewards_teach_nothing(name):
    groups = random_groups(np.random.default_rng(0), [4, 4])
    groups = [g.with_samples([replace(s, reward=0.7) for s in g.samples]) for g in groups]
    algorithm = AlgorithmConfig(type=name)
    chosen, _ = select(assign_advantages(groups, algorithm), algorithm, 8)
    assert all(abs(s.advantages).max() < 1e-9 for g in chosen for s in g.samples)
    if name not in ("reinforce_pp_baseline", "gdpo"):
        assert chosen == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["logprobs", "ref_logprobs", "values"])
def test_numbers_that_are_not_finite_are_refused(name, value):
    (group,) = random_groups(np.random.default_rng(0), [2], old_and_ref=True)
    sample = group.samples[1]
    array = np.zeros(len(sample.token_ids), np.float32)
    at = int(np.flatnonzero(sample.loss_mask)[-1])
    array[at] = value
    bad = [group.with_samples([group.samples[0], replace(sample, **{name: array})])]
    with pytest.raises(RunError, match=rf"says -?(nan|inf) of token {at} of sample 1 of prompt p \(1 tokens in all\)"):
        refuse_what_is_not_finite(bad)
    array[at], array[0] = -1.0, value  # what is not trained on does not matter
    refuse_what_is_not_finite([group.with_samples([group.samples[0], replace(sample, **{name: array})])])
