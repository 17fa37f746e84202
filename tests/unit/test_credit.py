"""From rewards to updates: advantages, what is left out of training and of the counts, epochs and minibatches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlft.config.algorithm import AlgorithmConfig
from rlft.loops.clock import Clock
from rlft.loops.credit import assign_advantages, reward_matrix, rollout_metrics, select, worth_scoring
from rlft.loops.learning import KlControl, learn
from rlft.rollout import Rollout
from rlft.samples import Group, RewardResult, Totals
from tests.fakes import believed, make_roles
from tests.helpers import make_config, make_group

N = np.nan
UNSCALED = AlgorithmConfig(advantage_scale="none")


def rewarded(rewards: list[float | None], length: int = 2) -> Group:
    """A group with these rewards; completion i has `length` + i tokens."""
    group = make_group([4, 5], [[10 + i] * (length + i) for i in range(len(rewards))])
    return group.with_samples([replace(s, reward=r) for s, r in zip(group.samples, rewards, strict=True)])


def test_advantages_stand_on_trained_tokens_only():
    first, second = assign_advantages([rewarded([1.0, 3.0])], UNSCALED)[0].samples
    assert first.advantages.tolist() == [0, 0, -1, -1]
    assert second.advantages.tolist() == [0, 0, 1, 1, 1]
    assert first.advantages.dtype == np.float32


def test_a_sample_without_reward_has_no_advantage_and_does_not_move_the_mean():
    samples = assign_advantages([rewarded([1.0, None, 3.0])], UNSCALED)[0].samples
    assert samples[1].advantages is None
    assert [samples[0].advantages[2], samples[2].advantages[2]] == [-1, 1]


def test_reward_matrix():
    np.testing.assert_array_equal(reward_matrix([rewarded([1.0, None])]), [[1.0, np.nan]])


def chosen(groups: list[Group], **settings: Any) -> tuple[list[Group], Totals]:
    algorithm = AlgorithmConfig(**settings)
    return select(assign_advantages(groups, algorithm), algorithm, max_new_tokens=8)


def test_failed_samples_are_out_of_training_and_of_the_counts():
    groups, totals = chosen([rewarded([1.0, None, 0.0])])
    assert [len(s.token_ids) for s in groups[0].samples] == [4, 6]
    assert totals == Totals(2 + 4, 2, 8)


def test_flat_groups_are_out_of_training_but_counted():
    """Their advantage is 0: leaving them out of the counts would make the others weigh more."""
    groups, totals = chosen([rewarded([1.0, 1.0]), rewarded([1.0, 0.0])])
    assert len(groups) == 1
    assert groups[0].samples[0].advantages[2] > 0
    assert totals == Totals(2 * (2 + 3), 4, 8)
    groups, same = chosen([rewarded([1.0, 1.0]), rewarded([1.0, 0.0])], skip_flat_groups=False)
    assert len(groups) == 2
    assert same == totals


def test_groups_that_failed_altogether_vanish():
    groups, totals = chosen([rewarded([None, None]), rewarded([1.0, None])], skip_flat_groups=False)
    assert [len(g.samples) for g in groups] == [1]
    assert totals == Totals(2, 1, 8)
    groups, totals = chosen([rewarded([None, None])])
    assert groups == []
    assert totals == Totals(1, 1, 8)


def test_metrics_of_a_rollout():
    parts = [
        {"math": RewardResult(1.0, "ok")},
        {"math": RewardResult(None, "timeout")},
        {"math": RewardResult(0.0, "wrong")},
    ]
    group = rewarded([1.0, None, 0.0])
    samples = [replace(s, reward_parts=p) for s, p in zip(group.samples, parts, strict=True)]
    samples[2] = replace(
        samples[2], finish_reason="length", weight_versions=np.array([-1, -1, 3, 3, 4, 5], dtype=np.int32)
    )
    old = [replace(s, weight_versions=np.where(s.loss_mask, 5, -1)) for s in samples[:2]]
    metrics = rollout_metrics(Rollout([group.with_samples([*old, samples[2]])], 2.0, 1.0), version=5)
    # lags: 0 for 2 + 3 tokens; 2 2 1 0 for the last sample
    assert metrics == {
        "samples/failed": 1,
        "samples/flat_groups": 0,
        "samples/replaced_groups": 0,
        "completion/length_mean": 3,
        "completion/length_max": 4,
        "completion/duplicates": 0,
        "completion/truncated": pytest.approx(1 / 3),
        "staleness/mean": pytest.approx(5 / 9),
        "staleness/max": 2,
        "time/generate_s": 2,
        "time/score_s": 1,
        "reward/mean": 0.5,
        "reward/std": 0.5,
        "reward/math/mean": 0.5,
        "reward/math/failed": 1,
        "reward/math/timeout": 1,
        "reward/math/wrong": 1,
    }


def test_duplicates_are_counted_within_groups():
    """Of 3 and 3 samples one and two say what an earlier one of their group says: 3 of 6."""
    one = rewarded([1.0, 0.0, 0.0])
    tokens = [s.token_ids for s in one.samples]
    groups = [
        one.with_samples([replace(s, token_ids=tokens[i]) for s, i in zip(one.samples, which, strict=True)])
        for which in ((0, 1, 0), (2, 2, 2))
    ]
    assert rollout_metrics(Rollout(groups, 1.0, 1.0), version=5)["completion/duplicates"] == 0.5


# ---- learn ----


def learned(tmp_path: Any, groups: list[Group], changes: dict[str, Any], reference: bool = False) -> tuple[Any, dict]:
    roles, _ = make_roles(reference=reference)
    config = make_config(tmp_path, changes)
    return roles, learn(roles, groups, 7, config, Clock(), KlControl(config))[1]


FOUR = [rewarded([1.0, 0.0], length) for length in (1, 2, 3, 4)]


def lengths(groups: list[Group]) -> list[int]:
    return [s.num_trained for g in groups for s in g.samples]


def test_one_update_for_all_samples(tmp_path):
    roles, metrics = learned(tmp_path, FOUR, {})
    ((groups, totals, step),) = roles.learner.given
    assert lengths(groups) == [1, 2, 2, 3, 3, 4, 4, 5]
    assert totals == Totals(24, 8, 8)
    assert step == 7
    assert metrics["policy/loss"] == 1
    samples = [s for g in groups for s in g.samples]
    assert all(s.old_logprobs is None and s.ref_logprobs is None for s in samples)


def test_epochs_and_minibatches(tmp_path):
    changes = {"algorithm.num_epochs": 3, "algorithm.num_minibatches": 2}
    roles, metrics = learned(tmp_path, FOUR, changes)
    assert [lengths(groups) for groups, _, _ in roles.learner.given] == [[1, 2, 2, 3], [3, 4, 4, 5]] * 3
    assert [totals for _, totals, _ in roles.learner.given] == [Totals(8, 4, 8), Totals(16, 4, 8)] * 3
    assert metrics["policy/loss"] == np.mean([1, 2, 3, 4, 5, 6])
    assert metrics["sampler/logprob_diff_max"] == 6


@pytest.mark.parametrize("reference", [False, True])
def test_later_updates_compare_with_the_policy_before_the_first(tmp_path, reference):
    changes = {"algorithm.num_epochs": 2, "algorithm.kl_coef": 0.1 if reference else 0.0}
    roles, _ = learned(tmp_path, FOUR, changes, reference)
    assert len(roles.learner.given) == 2
    for groups, _, _ in roles.learner.given:
        for sample in (s for g in groups for s in g.samples):
            np.testing.assert_array_equal(sample.old_logprobs, believed(sample, 0))
            if reference:
                np.testing.assert_allclose(sample.ref_logprobs, believed(sample, 0) - 0.5 * sample.loss_mask)
            else:
                assert sample.ref_logprobs is None


def test_reference_is_asked_only_about_what_is_trained_on(tmp_path):
    groups = [rewarded([1.0, 1.0, 1.0]), rewarded([1.0, None, 0.0])]
    roles, _ = learned(tmp_path, groups, {"algorithm.kl_coef": 0.1}, reference=True)
    assert roles.learner.journal.of("reference") == [("reference", 2)]
    ((given, _, _),) = roles.learner.given
    assert all(s.ref_logprobs is not None for g in given for s in g.samples)


def test_an_update_without_samples_keeps_the_metrics_of_the_others(tmp_path):
    groups = [rewarded([1.0, 1.0]), rewarded([0.0, 1.0])]
    roles, metrics = learned(tmp_path, groups, {"algorithm.num_minibatches": 2})
    assert [len(given) for given, _, _ in roles.learner.given] == [0, 1]
    assert metrics["sampler/logprob_diff_max"] == 2
    assert metrics["policy/skipped_updates"] == 0


def test_metrics_of_episodes_and_of_parts_that_only_some_samples_have():
    turns = tuple({"role": role, "content": "x"} for role in ("assistant", "tool", "assistant"))
    group = rewarded([1.0, 0.0])
    assert not any(name.startswith("episode/") for name in rollout_metrics(Rollout([group], 1.0, 0.5), version=0))
    first, second = group.samples
    samples = [
        replace(first, turns=turns, tool_errors=2, reward_parts={"environment": RewardResult(1.0, "ok")}),
        replace(second, turns=turns[:1], reward_parts={"math": RewardResult(None, "error")}),
    ]
    metrics = rollout_metrics(Rollout([group.with_samples(samples)], 1.0, 0.5), version=0)
    assert [metrics[f"episode/{name}"] for name in ("turns_mean", "turns_max", "tool_errors")] == [1.5, 2, 2]
    assert (metrics["reward/environment/mean"], metrics["reward/environment/failed"]) == (1, 0)
    assert metrics["reward/math/failed"] == 1


# ---- estimators ----


def trained(groups: list[Group]) -> list[list[float] | None]:
    """Advantages of trained tokens of all samples."""
    return [
        None if s.advantages is None else s.advantages[s.loss_mask].tolist() for g in groups for s in g.samples
    ]  # fmt: skip


def with_arrays(group: Group, **arrays: list[list[float]]) -> Group:
    """Put numbers for trained tokens on samples."""
    samples = []
    for i, s in enumerate(group.samples):
        full = {}
        for name, rows in arrays.items():
            full[name] = np.zeros(len(s.token_ids), np.float32)
            full[name][s.loss_mask] = rows[i]
        samples.append(replace(s, **full))
    return group.with_samples(samples)


def test_kl_in_the_reward():
    """k1 of each token off its reward; what a token earns is from there on. Weighed 0.5, unwhitened."""
    group = with_arrays(
        rewarded([1.0, 0.0], 2), logprobs=[[-1, -1], [-1, -2, -1]], ref_logprobs=[[-2, -1], [-1, -1, -3]]
    )
    settings = AlgorithmConfig(type="reinforce_pp", advantage_scale="none")
    # rewards: 0 - 0.5, 1 | 0, +0.5, 0 - 1
    ours = trained(assign_advantages([group], settings, kl_coef=0.5))
    assert ours == [[0.5, 1.0], [-0.5, -0.5, -1.0]]
    rloo = AlgorithmConfig(type="rloo")
    assert trained(assign_advantages([group], rloo, kl_coef=0.5)) == [[1.0, 1.0], [-1.0, -1.0, -1.0]]


def test_whitened_over_all_tokens_of_the_step():
    """Two tokens that earn 1 and three that earn 0: mean 0.4, variance 0.3."""
    ours = trained(assign_advantages([rewarded([1.0, 0.0], 2)], AlgorithmConfig(type="reinforce_pp")))
    assert ours[0] == pytest.approx([0.6 / 0.3**0.5] * 2, rel=1e-5)
    assert ours[1] == pytest.approx([-0.4 / 0.3**0.5] * 3, rel=1e-5)


def test_the_groups_mean_goes_first():
    groups = [rewarded([1.0, 0.0], 1), rewarded([8.0, 6.0], 1)]
    settings = AlgorithmConfig(type="reinforce_pp_baseline", advantage_scale="none")
    assert trained(assign_advantages(groups, settings)) == [[0.5], [-0.5] * 2, [1.0], [-1.0] * 2]


def test_gae_with_a_critic():
    group = with_arrays(rewarded([1.0], 2), values=[[0.5, 0.25]])
    settings = AlgorithmConfig(type="ppo", gae_lambda=0.5, advantage_scale="none")
    (sample,) = assign_advantages([group], settings)[0].samples
    assert sample.advantages[sample.loss_mask].tolist() == [0.125, 0.75]
    assert sample.returns[sample.loss_mask].tolist() == [0.625, 1.0]
    assert sample.returns[:2].tolist() == [0, 0]


def test_rewards_divided_by_their_deviation():
    group = with_arrays(rewarded([2.0], 2), values=[[0.0, 0.0]])
    settings = AlgorithmConfig(type="ppo", gae_lambda=1.0, advantage_scale="none", whiten_rewards=True)
    # rewards 0 and 2: deviation sqrt(2)
    assert trained(assign_advantages([group], settings))[0] == pytest.approx([2**0.5] * 2, rel=1e-5)


def test_accepted_samples_are_imitated():
    groups = assign_advantages([rewarded([1.0, 0.4, None, 2.0])], AlgorithmConfig(type="rft"))
    assert trained(groups) == [[1, 1], None, None, [1] * 5]
    chosen, totals = select(groups, AlgorithmConfig(type="rft"), 8)
    assert [len(g.samples) for g in chosen] == [2] and totals == Totals(7, 2, 8)
    everyone = assign_advantages([rewarded([1.0, 1.0])], AlgorithmConfig(type="rft"))
    assert len(select(everyone, AlgorithmConfig(type="rft"), 8)[0]) == 1, "a group that is all right is worth imitating"


def test_reward_functions_apart():
    """0 1 and 100 0, the second weighed by a half: -a + a/2 and a - a/2 with a = 1 / sqrt(2); whitened. One that failed
    is left out."""
    parts = [
        {"x": RewardResult(x, "ok"), "y": RewardResult(y, "ok", weight=0.5)} for x, y in ((0, 100), (1, 0), (1, 1))
    ]
    group = rewarded([50.0, 1.0, None], 1)
    group = group.with_samples([replace(s, reward_parts=p) for s, p in zip(group.samples, parts, strict=True)])
    ours = trained(assign_advantages([group], AlgorithmConfig(type="gdpo")))
    assert ours[2] is None
    assert [a[0] for a in ours[:2]] == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-3)


def test_pairs_are_the_best_and_the_worst():
    groups = [rewarded([0.5, 2.0, None, 0.0, 2.0], 1), rewarded([1.0, 1.0], 1), rewarded([3.0, None], 1)]
    signs = trained(assign_advantages(groups, AlgorithmConfig(type="online_dpo")))
    assert signs == [None, [1] * 2, None, [-1] * 4, None, None, None, None, None]


def test_a_turn_earns_what_comes_after_it():
    """Two samples of two turns, rewards 1 0 and 0 2 with weight 2, and 0.5 from a function at the end."""
    sample = rewarded([0.0, 0.0], 4).samples[0]
    mask = np.array([0, 0, 1, 1, 0, 1], bool)
    first = replace(sample, loss_mask=mask, reward=2.5, turn_rewards=np.array([N, N, N, 1, N, 0], np.float32))
    second = replace(sample, loss_mask=mask, reward=4.5, turn_rewards=np.array([N, N, N, 0, N, 2], np.float32))
    group = rewarded([0.0], 4).with_samples([first, second])
    settings = AlgorithmConfig(turn_credit=True, advantage_scale="none")
    # from the first turn on 2.5 and 4.5, from the second on 0.5 and 4.5
    assert trained(assign_advantages([group], settings, turn_weight=2.0)) == [[-1, -1, -2], [1, 1, 2]]
    plain = AlgorithmConfig(advantage_scale="none")
    assert trained(assign_advantages([group], plain, turn_weight=2.0)) == [[-1, -1, -1], [1, 1, 1]]


def test_a_teacher_in_the_advantages():
    """What the teacher's log-prob is above the student's, on top of the group's."""
    group = with_arrays(rewarded([1.0, 0.0], 1), logprobs=[[-1], [-1, -2]], teacher_logprobs=[[-0.5], [-1, -4]])
    settings = AlgorithmConfig(teacher_coef=0.5, advantage_scale="none")
    assert trained(assign_advantages([group], settings)) == [[0.75], [-0.5, -1.5]]
    alone = AlgorithmConfig(type="distill")
    assert trained(assign_advantages([group], alone)) == [[0.5], [0, -2]]


def test_what_is_worth_a_look():
    """Flat groups are not scored by a reference, unless they teach something."""
    groups = [rewarded([1.0, 1.0]), rewarded([1.0, None])]
    assert len(worth_scoring(groups, AlgorithmConfig())) == 0, "a lone scored sample is compared with nobody"
    assert [len(g.samples) for g in worth_scoring(groups, AlgorithmConfig(type="ppo"))] == [2, 1]
    assert len(worth_scoring(groups, AlgorithmConfig(skip_flat_groups=False))) == 2
    assert len(worth_scoring(groups, AlgorithmConfig(type="rloo", kl_coef=0.1))) == 2


def test_kl_follows_its_target():
    """0.6 nats a sample against a target of 0.1: at most a fifth more for `horizon` samples."""
    config = make_config("m", {"algorithm.kl_coef": 0.1, "algorithm.kl_target": 0.1, "algorithm.kl_horizon": 4})
    kl = KlControl(config)
    group = with_arrays(rewarded([1.0, 0.0], 1), logprobs=[[-1], [-1, -1]], ref_logprobs=[[-1.6], [-1.3, -1.3]])
    metrics = kl([group])
    assert metrics == {"kl/sample_mean": pytest.approx(0.6), "kl/coef": 0.1}
    assert kl.coef == pytest.approx(0.1 * (1 + 0.2 * 2 / 4))
    assert KlControl(config, 0.7).coef == 0.7
    assert kl([rewarded([1.0])]) == {}, "nothing was measured"


def test_learning_from_uncertain_tokens_only(tmp_path):
    """The fake learner is as uncertain of a token as its number: half of the tokens, those with the larger ones, keep
    their advantage. The counts stay those of all."""
    roles, _ = learned(tmp_path, [rewarded([1.0, 0.0], 2)], {"algorithm.entropy_share": 0.5})
    ((groups, totals, _),) = roles.learner.given
    kept = [s.advantages[s.loss_mask] != 0 for g in groups for s in g.samples]
    assert [k.tolist() for k in kept] == [[False, False], [True, True, True]]  # tokens 10 10 | 11 11 11
    assert totals.num_tokens == 5


def test_a_reward_of_one_in_parts_is_accepted():
    """0.7 + 0.2 + 0.1 is a little less than 1 in floating point."""
    assert 0.7 + 0.2 + 0.1 < 1
    assert trained(assign_advantages([rewarded([0.7 + 0.2 + 0.1], 1)], AlgorithmConfig(type="rft"))) == [[1]]


def test_equal_rewards_are_not_blown_up():
    group = with_arrays(rewarded([1.0, 1.0], 1), values=[[0.0], [0.0, 0.0]])
    group = group.with_samples([s for s in group.samples if s.num_trained == 1] * 3)
    settings = AlgorithmConfig(type="ppo", whiten_rewards=True, advantage_scale="none")
    assert [s.returns.max() for s in assign_advantages([group], settings)[0].samples] == [1, 1, 1]


def test_flat_groups_teach_where_entropy_has_a_bonus():
    groups = assign_advantages([rewarded([1.0, 1.0])], AlgorithmConfig())
    assert select(groups, AlgorithmConfig(), 8)[0] == []
    assert len(select(groups, AlgorithmConfig(entropy_coef=0.1), 8)[0]) == 1


def test_what_is_trained_on_is_told(tmp_path):
    """Of four groups of two, one is flat."""
    groups = [rewarded([1.0, 1.0]), *FOUR[1:]]
    assert learned(tmp_path, groups, {})[1]["samples/trained"] == 6 / 8
