"""Accuracy and pass@k by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from rlft.config.data import EvaluationConfig
from rlft.evaluation.accuracy import Evaluation, pass_at_k, reported_ks
from rlft.samples import SamplingParams
from tests.fakes import FakeGenerator, FakePrompts, FakeRewarder, Journal

REWARDS = [[1.0, 0.0], [0.5, 0.75], [None, 1.0], [None, None]]


class FixedRewarder(FakeRewarder):
    """The rewards of REWARDS; every second sample was cut off at the limit."""

    def score(self, groups: Any) -> Any:
        for place, group in groups:
            yield place, group.with_samples([
                replace(s, reward=reward, finish_reason="length" if i else "stop")
                for i, (s, reward) in enumerate(zip(group.samples, REWARDS[place], strict=True))
            ])  # fmt: skip


def evaluated(threshold: float, num_samples: int = 2) -> dict[str, float]:
    settings = EvaluationConfig(path="x", pass_threshold=threshold)
    evaluation = Evaluation(FakePrompts().take(0, 4), SamplingParams(num_samples, 8), 0, settings)
    journal = Journal()
    metrics = evaluation(FakeGenerator(journal, version=3), FixedRewarder(journal), version=3)
    assert [g.prompt.id for g in evaluation.last] == ["0/0", "0/1", "0/2", "0/3"]
    return metrics


def test_metrics_by_hand():
    # passed at 1.0: 1 of 2, 0 of 2, 1 of 1, nothing scored; the last prompt counts nowhere
    assert evaluated(1.0) == {
        "eval/failed": 3,
        "eval/accuracy": pytest.approx((0.5 + 0 + 1) / 3),
        "eval/pass@2": pytest.approx(2 / 3),
        "eval/reward_mean": pytest.approx((0.5 + 0.625 + 1) / 3),
        "eval/length_mean": 2,
        "eval/truncated": 0.5,
    }


def test_the_threshold_counts_as_passed():
    assert evaluated(0.75)["eval/accuracy"] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_every_evaluation_draws_with_the_same_seeds_which_no_training_step_has():
    evaluation = Evaluation(FakePrompts().take(0, 4), SamplingParams(2, 8), 0, EvaluationConfig(path="x"))
    seeds = []
    for version in (0, 4):
        journal = Journal()
        evaluation(FakeGenerator(journal, version=version), FixedRewarder(journal), version=version)
        seeds.append([s.seed for g in evaluation.last for s in g.samples])
    assert seeds[0] == seeds[1]


@pytest.mark.parametrize(("every", "due"), [(0, [5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5])])
def test_when_it_is_due(every, due):
    assert [step for step in range(1, 6) if EvaluationConfig(path="x", every=every).is_due(step, 5)] == due


def test_pass_at_k_by_hand():
    assert pass_at_k(4, 1, 1) == pytest.approx(1 / 4)
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)  # 1 - C(3, 2) / C(4, 2) = 1 - 3 / 6
    assert pass_at_k(4, 0, 2) == 0
    assert pass_at_k(4, 4, 1) == 1
    assert pass_at_k(3, 1, 8) == 1  # fewer samples than k: of all three one passed


@pytest.mark.parametrize(("num", "passed", "k"), [(6, 2, 3), (8, 3, 2), (5, 1, 5), (7, 5, 2)])
def test_pass_at_k_is_the_share_of_choices_with_a_passing_sample(num, passed, k):
    choices = list(combinations(range(num), k))
    share = sum(any(i < passed for i in choice) for choice in choices) / len(choices)
    assert pass_at_k(num, passed, k) == pytest.approx(share)


@pytest.mark.parametrize(("num", "ks"), [(1, []), (2, [2]), (3, [2, 3]), (8, [2, 4, 8]), (10, [2, 4, 8, 10])])
def test_powers_of_two_below_the_number_of_samples_are_reported_too(num, ks):
    assert reported_ks(num) == ks


def test_smaller_k_are_estimated_from_all_samples():
    settings = EvaluationConfig(path="x")
    evaluation = Evaluation(FakePrompts().take(0, 2), SamplingParams(4, 8), 0, settings)
    journal = Journal()
    metrics = evaluation(FakeGenerator(journal, version=0), FakeRewarder(journal), version=0)
    # rewards 0, 1, 0, 1: of the C(4, 2) = 6 pairs one has no 1, so 5 / 6; of four one always passes
    assert metrics["eval/accuracy"] == 0.5
    assert metrics["eval/pass@2"] == pytest.approx(5 / 6)
    assert metrics["eval/pass@4"] == 1
    assert "eval/pass@3" not in metrics


def test_text_metrics_stand_beside_the_rewards_or_alone():
    prompts = [replace(prompt, columns={"right": "10 21"}) for prompt in FakePrompts().take(0, 2)]
    settings = EvaluationConfig(path="x", metrics=["exact_match"], reference_column="right")
    journal = Journal()
    found = [
        Evaluation(prompts, SamplingParams(2, 8), 0, settings, has_rewards)(
            FakeGenerator(journal, version=1), FakeRewarder(journal), version=1
        )
        for has_rewards in (True, False)
    ]
    assert found[0]["eval/exact_match"] == found[1]["eval/exact_match"] == 0.5  # they say "10 21" and "11 21"
    assert found[0]["eval/accuracy"] == 0.5
    assert found[1].keys() == {"eval/exact_match", "eval/length_mean", "eval/truncated"}
