"""Packs: which token predicts which target, and what each weighs. Plans: who gets which sample."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.batch import fed_tokens, make_pack, plan_micro_batches, unpack
from rlft.samples import Group, Totals, count_totals, sample_seed
from tests.helpers import alone, make_group, make_prompt, make_sample, random_groups


def test_a_group_shares_its_prompt():
    # prompt 10 11; completions 20 21 22 and 30 31: fed are 10 11 | 20 21 | 30 (last tokens predict nothing)
    group = make_group([10, 11], [[20, 21, 22], [30, 31]], advantages=[1.0, -2.0])
    pack = make_pack([group], Totals(5, 2, 8))
    assert pack.input_ids.tolist() == [10, 11, 20, 21, 30]
    assert pack.position_ids.tolist() == [0, 1, 2, 3, 2]
    assert pack.targets.tolist() == [20, 21, 22, 30, 31]
    assert pack.predict_from.tolist() == [1, 2, 3, 1, 4]  # both first tokens come from the prompt's last one
    assert pack.sample_of.tolist() == [0, 0, 0, 1, 1]
    assert pack.advantages.tolist() == [1, 1, 1, -2, -2]
    assert fed_tokens(group) == 5


def test_a_lone_sample_is_one_row():
    pack = make_pack([make_group([10, 11], [[20, 21, 22]])])
    assert pack.input_ids.tolist() == [10, 11, 20, 21]
    assert pack.predict_from.tolist() == [1, 2, 3]
    assert pack.targets.tolist() == [20, 21, 22]
    assert pack.weights.tolist() == [0, 0, 0]  # no totals: only scored
    assert pack.old_logprobs is None
    assert pack.ref_logprobs is None


def test_a_completion_of_one_token_feeds_nothing_of_its_own():
    group = make_group([10, 11], [[20], [30, 31], [40]])
    pack = make_pack([group])
    assert pack.input_ids.tolist() == [10, 11, 30]
    assert pack.predict_from.tolist() == [1, 1, 2, 1]
    assert pack.targets.tolist() == [20, 30, 31, 40]
    assert fed_tokens(group) == 3


def test_several_groups_and_lone_samples_in_one_pack():
    groups = [make_group([1], [[2, 3], [4, 5]]), make_group([6, 7], [[8, 9]]), make_group([10, 11], [[12], [13, 14]])]
    pack = make_pack(groups)
    # trunks 1 | 6 7 8 | 10 11, then branches 2 | 4 | 13
    assert pack.input_ids.tolist() == [1, 6, 7, 8, 10, 11, 2, 4, 13]
    assert pack.position_ids.tolist() == [0, 0, 1, 2, 0, 1, 1, 1, 2]
    assert pack.targets.tolist() == [2, 3, 4, 5, 8, 9, 12, 13, 14]
    assert pack.predict_from.tolist() == [0, 6, 0, 7, 2, 3, 5, 5, 8]


def test_two_turns_train_only_what_the_model_wrote():
    # prompt 1 2, the model says 3 4, a tool answers 5 6, the model says 7 8
    prompt = make_prompt([1, 2])
    mask = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=bool)
    sample = make_sample(prompt, [3, 4, 5, 6, 7, 8], loss_mask=mask, logprobs=np.arange(8, dtype=np.float32))
    other = make_sample(prompt, [9, 9])
    for groups in ([Group(prompt, (sample,))], [Group(prompt, (sample, other))]):
        pack = make_pack(groups)
        assert pack.targets.tolist()[:4] == [3, 4, 7, 8]
        assert pack.input_ids[pack.predict_from].tolist()[:4] == [2, 3, 6, 7]
        assert pack.position_ids[pack.predict_from].tolist()[:4] == [1, 2, 5, 6]
        assert pack.sampler_logprobs.tolist()[:4] == [2, 3, 6, 7]
    back = unpack([Group(prompt, (sample,))], np.array([0.5, 0.25, 0.125, 1.0], dtype=np.float32))
    assert back[0][0].tolist() == [0, 0, 0.5, 0.25, 0, 0, 0.125, 1.0]


def test_trained_prompt_tokens_are_targets_of_each_sample():
    """SFT on whole sequences: the prompt is shared, yet each sample has its own targets in it."""
    prompt = make_prompt([1, 2])
    mask = np.array([False, True, True])
    group = Group(prompt, (make_sample(prompt, [3], loss_mask=mask), make_sample(prompt, [4], loss_mask=mask)))
    pack = make_pack([group])
    assert pack.input_ids.tolist() == [1, 2]
    assert pack.targets.tolist() == [2, 3, 2, 4]
    assert pack.predict_from.tolist() == [0, 1, 0, 1]


def test_the_first_token_cannot_be_trained():
    prompt = make_prompt([1])
    sample = make_sample(prompt, [2], loss_mask=np.array([True, True]))
    with pytest.raises(AssertionError, match="first token"):
        make_pack([Group(prompt, (sample,))])


@pytest.mark.parametrize(
    ("average", "of_three", "of_one"),
    [
        ("token", 1 / 4, 1 / 4),  # 4 trained tokens
        ("sequence", 1 / (3 * 2), 1 / (1 * 2)),  # each sample half, spread over its tokens
        ("max_length", 1 / (8 * 2), 1 / (8 * 2)),  # 8 tokens allowed, 2 samples
    ],
)
def test_weights(average, of_three, of_one):
    groups = [make_group([1], [[2, 3, 4], [5]])]
    pack = make_pack(groups, count_totals(groups, 8), average)
    torch.testing.assert_close(pack.weights, torch.tensor([of_three] * 3 + [of_one]))


def test_unknown_average_is_refused():
    with pytest.raises(ValueError, match="unknown average 'mean'"):
        Totals(1, 1, 1).token_weight("mean", 1)


def test_totals_never_divide_by_nothing():
    assert count_totals([], 8) == Totals(1, 1, 8)


def test_columns_of_every_sample_reach_their_target():
    groups = random_groups(np.random.default_rng(0), [3, 1, 2], old_and_ref=True)
    pack = make_pack(groups, count_totals(groups, 8))
    samples = [s for g in groups for s in g.samples]
    for name in ("advantages", "old_logprobs", "ref_logprobs", "sampler_logprobs"):
        field = "logprobs" if name == "sampler_logprobs" else name
        expected = np.concatenate([getattr(s, field)[s.loss_mask] for s in samples])
        np.testing.assert_array_equal(getattr(pack, name).numpy(), expected)
    assert pack.targets.tolist() == np.concatenate([s.token_ids[s.loss_mask] for s in samples]).tolist()


def test_fresh_tokens_are_those_of_the_version_that_begins_the_step():
    # the first sample was begun by version 2 and went on under 3; the second is of 3, all of it
    group = make_group([10, 11], [[20, 21, 22], [30, 31]])
    first, second = group.samples
    group = group.with_samples([
        replace(first, weight_versions=np.array([-1, -1, 2, 3, 3], dtype=np.int32)),
        replace(second, weight_versions=np.array([-1, -1, 3, 3], dtype=np.int32)),
    ])  # fmt: skip
    assert make_pack([group], version=3).fresh.tolist() == [False, True, True, True, True]
    assert make_pack([group], version=2).fresh.tolist() == [True, False, False, False, False]
    assert make_pack([group], version=4).fresh.tolist() == [False] * 5
    assert make_pack([group]).fresh.tolist() == [False] * 5
    assert make_pack([group]).fresh.dtype == torch.bool


@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_sharing_a_prompt_changes_nothing_but_the_layout(seed, sizes):
    """Each target is predicted from the same token at the same position, packed or alone; values come back in place."""
    groups = random_groups(np.random.default_rng(seed), sizes)
    shared, single = make_pack(groups), make_pack(alone(groups))
    for pack in (shared, single):
        assert len(pack.input_ids) == len(pack.position_ids)
    assert len(shared.input_ids) == sum(map(fed_tokens, groups))
    assert torch.equal(shared.targets, single.targets)
    assert torch.equal(shared.sample_of, single.sample_of)
    for column in ("input_ids", "position_ids"):
        assert torch.equal(getattr(shared, column)[shared.predict_from], getattr(single, column)[single.predict_from])
    back = unpack(groups, shared.sampler_logprobs.numpy())
    for group, arrays in zip(groups, back, strict=True):
        for sample, array in zip(group.samples, arrays, strict=True):
            np.testing.assert_array_equal(array, sample.logprobs)


# ---- plans ----


def seeded(groups: list[Group]) -> list[Group]:
    """Give each sample a number of its own, as its seed."""
    numbers = iter(range(1000))
    return [g.with_samples([replace(s, seed=next(numbers)) for s in g.samples]) for g in groups]


@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 9), max_size=8),
    num_ranks=st.integers(1, 4),
    max_tokens=st.integers(1, 60),
)
@settings(deadline=None, max_examples=150)
def test_a_plan_deals_out_every_sample_once_within_the_budget(seed, sizes, num_ranks, max_tokens):
    groups = seeded(random_groups(np.random.default_rng(seed), sizes))
    plan = plan_micro_batches(groups, num_ranks, max_tokens)
    assert len(plan) == num_ranks
    assert len({len(rank) for rank in plan}) == 1, "every rank runs as many micro-batches as every other"
    assert len(plan[0]) >= 1
    pieces = [p for rank in plan for batch in rank for p in batch]
    dealt = Counter(s.seed for p in pieces for s in p.samples)
    assert dealt == Counter(s.seed for g in groups for s in g.samples)
    prompts = {s.seed: g.prompt for g in groups for s in g.samples}
    assert all(p.samples and p.prompt is prompts[p.samples[0].seed] for p in pieces)
    for rank in plan:
        for batch in rank:
            fed = sum(map(fed_tokens, batch))
            assert fed <= max_tokens or sum(len(p.samples) for p in batch) == 1, "only a lone sample may be larger"
    assert len(plan[0]) <= max(1, len(pieces)), "micro-batches beyond the number of pieces would be empty"


def test_a_group_that_is_too_large_is_split_between_its_samples():
    # prompt 4, completions of 4 (3 fed): two samples share 4 + 3 + 3 = 10 fed tokens, three would be 13
    group = seeded([make_group([1, 2, 3, 4], [[5, 6, 7, 8]] * 5)])[0]
    plan = plan_micro_batches([group], 1, 12)
    pieces = [p for batch in plan[0] for p in batch]
    assert sorted(len(p.samples) for p in pieces) == [1, 2, 2]
    assert all(fed_tokens(p) <= 12 for p in pieces)
    assert len(plan[0]) == 3


def test_one_large_sample_stands_alone_and_does_not_scatter_the_others():
    groups = [make_group([1] * 30, [[5, 6]]), *[make_group([1], [[2, 3]])] * 4]
    plan = plan_micro_batches(groups, 1, 10)
    assert sorted(sum(map(fed_tokens, batch)) for batch in plan[0]) == [8, 31]


def test_work_is_balanced_over_ranks():
    groups = [make_group([1], [list(range(2, 2 + n))]) for n in (8, 7, 6, 5, 4, 3, 2, 1)]
    plan = plan_micro_batches(groups, 2, 100)
    assert [sum(map(fed_tokens, rank[0])) for rank in plan] == [18, 18]


def test_fewer_samples_than_ranks_leave_some_empty():
    plan = plan_micro_batches([make_group([1], [[2]])], 3, 100)
    assert [[len(batch) for batch in rank] for rank in plan] == [[1], [0], [0]]
    assert plan_micro_batches([], 2, 100) == [[[]], [[]]]


def test_sample_seed_is_fixed_and_differs_in_each_argument():
    assert sample_seed(0, 0, 0, 0) == sample_seed(0, 0, 0, 0)
    near = {sample_seed(*(a + b for a, b in zip((5, 5, 5, 5), d))) for d in np.eye(4, dtype=int).tolist()}
    assert len(near | {sample_seed(5, 5, 5, 5)}) == 5
    assert all(0 <= seed < 2**63 for seed in near)
    assert sample_seed(0, -1, 0, 0) != sample_seed(0, 0, 0, 0)  # evaluation's step


def test_like_lengths_share_a_micro_batch():
    """Two sequences of 600 tokens and 40 of 30: dealt out by tokens alone, each long one would have 20 short beside it,
    whose attention would be padded to 600."""
    groups = [make_group([1], [[5] * 600]) for _ in range(2)] + [make_group([1], [[5] * 30]) for _ in range(40)]
    (plan,) = plan_micro_batches(groups, 1, 1300)
    assert sorted(sorted({len(g.samples[0].token_ids) for g in batch}) for batch in plan) == [[31], [601]]
    ranks = plan_micro_batches(groups, 2, 700)
    assert [[len(batch) for batch in rank] for rank in ranks] == [[1, 20], [1, 20]], "and so on every rank"
