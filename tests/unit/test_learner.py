"""The learner over its ranks, with ranks that only pretend; learning rates by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlft.algorithms.statistics import Mean
from rlft.config.derived import learning_rate
from rlft.engines.learner import RankedLearner
from rlft.engines.policy_rank import RankUpdate
from rlft.errors import RunError
from rlft.samples import Group, Totals, count_totals
from tests.helpers import make_config, random_groups


class FakeRanks:
    """Answers for every rank. `outcomes` says for each update whether the ranks applied it."""

    def __init__(self, outcomes: list[list[bool]] | None = None) -> None:
        self.outcomes, self.calls = outcomes or [], list[tuple[str, list[tuple]]]()

    def __call__(self, method: str, args: list[tuple[Any, ...]]) -> list[Any]:
        self.calls.append((method, list(args)))
        if method == "logprobs":
            return [
                [[[s.token_ids * s.loss_mask for s in g.samples] for g in batch] for batch in part] for (part,) in args
            ]
        if method == "update":
            applied = self.outcomes.pop(0) if self.outcomes else [True] * len(args)
            return [self._answer(part, ok) for (part, *_), ok in zip(args, applied, strict=True)]
        return [f"{method} of rank {i}" if i == 0 else None for i in range(len(args))]

    @staticmethod
    def _answer(part: list[list[Group]], ok: bool) -> RankUpdate:
        tokens = sum(s.num_trained for batch in part for g in batch for s in g.samples)
        stats = {"policy/entropy": Mean(2.0 * tokens, tokens), "sampler/logprob_diff_max": float(tokens)}
        return RankUpdate(0.25, stats if tokens else {}, 3.0 if ok else float("inf"), ok)


def learner_of(tmp_path: Path, ranks: FakeRanks, num_ranks: int = 2, **changes: Any) -> RankedLearner:
    overrides = {"learner.num_ranks": num_ranks, "learner.tokens_per_micro_batch": 12, "learner.zero_stage": 2}
    return RankedLearner(make_config(tmp_path, overrides | {f"learner.{k}": v for k, v in changes.items()}), ranks)


def some_groups(sizes: tuple[int, ...] = (3, 1, 4)) -> list[Group]:
    return random_groups(np.random.default_rng(0), sizes)


def test_logprobs_come_back_in_the_order_they_were_asked_for(tmp_path):
    groups = some_groups()
    answers = learner_of(tmp_path, FakeRanks()).logprobs(groups)
    for group, arrays in zip(groups, answers, strict=True):
        for sample, array in zip(group.samples, arrays, strict=True):
            np.testing.assert_array_equal(array, sample.token_ids * sample.loss_mask)
    assert learner_of(tmp_path, FakeRanks()).logprobs([]) == []


def test_update_adds_up_the_ranks(tmp_path):
    groups, ranks = some_groups(), FakeRanks()
    totals = Totals(1000, 9, 8)
    metrics = learner_of(tmp_path, ranks, lr=0.5).update(groups, totals, step=3, kl_coef=0.25)
    ((_, args),) = ranks.calls
    tokens = [sum(s.num_trained for b in part for g in b for s in g.samples) for part, *_ in args]
    assert sum(tokens) == count_totals(groups, 8).num_tokens
    assert min(tokens) > 0
    assert all(rest == [totals, 0.5, 3, 0.25] for _, *rest in args)
    assert metrics == {
        "policy/loss": 0.5,  # the ranks' parts of one sum
        "policy/grad_norm": 3.0,
        "policy/lr": 0.5,
        "policy/skipped_updates": 0,
        "policy/entropy": 2.0,  # mean over the tokens that were trained on
        "sampler/logprob_diff_max": max(tokens),
    }


def test_a_rank_without_samples_does_not_disturb_the_means(tmp_path):
    metrics = learner_of(tmp_path, FakeRanks()).update(some_groups((1,)), Totals(5, 1, 8), 0)
    assert metrics["policy/entropy"] == 2.0
    metrics = learner_of(tmp_path, FakeRanks()).update([], Totals(1, 1, 8), 0)
    assert "policy/entropy" not in metrics
    assert metrics["policy/loss"] == 0.5


def test_skipped_updates_are_counted_and_stop_the_run_after_the_limit(tmp_path):
    no, yes = [False, False], [True, True]
    ranks = FakeRanks([no, no, yes, no, no, no])
    learner = learner_of(tmp_path, ranks, max_skipped_updates=2)
    counts = [learner.update(some_groups(), Totals(1, 1, 8), i)["policy/skipped_updates"] for i in range(5)]
    assert counts == [1, 1, 0, 1, 1]
    with pytest.raises(RunError, match=r"step 5: 3 updates in a row were skipped .* gradient norm inf"):
        learner.update(some_groups(), Totals(1, 1, 8), 5)


def test_no_skip_is_allowed_at_limit_zero(tmp_path):
    learner = learner_of(tmp_path, FakeRanks([[False, False]]), max_skipped_updates=0)
    with pytest.raises(RunError, match="1 updates in a row"):
        learner.update(some_groups(), Totals(1, 1, 8), 0)


def test_ranks_that_part_ways_stop_the_run(tmp_path):
    learner = learner_of(tmp_path, FakeRanks([[True, False]]))
    with pytest.raises(RunError, match="some learner ranks applied the update and some did not"):
        learner.update(some_groups(), Totals(1, 1, 8), 0)


def test_means_of_the_ranks_are_weighed_by_their_counts(tmp_path):
    """A rank with 1 fresh token that is off by 0.8 and one with 3 that are off by 0.4 in all: 1.2 / 4. What a rank has
    no fresh tokens for, it leaves out; without any the metric is absent."""
    fresh = [
        {"sampler/logprob_diff_mean": Mean(0.8, 1), "sampler/logprob_diff_max": 0.8},
        {"sampler/logprob_diff_mean": Mean(0.4, 3), "sampler/logprob_diff_max": 0.3},
        {},
    ]

    def metrics_with(stats: list[dict[str, Any]]) -> dict[str, float]:
        def ranks(method: str, args: Any) -> list[Any]:
            return [RankUpdate(0.0, s, 1.0, True) for s in stats]

        return learner_of(tmp_path, ranks, num_ranks=3).update(some_groups(), Totals(1, 1, 8), 0)  # type: ignore[arg-type]

    metrics = metrics_with(fresh)
    assert metrics["sampler/logprob_diff_mean"] == pytest.approx(0.3)
    assert metrics["sampler/logprob_diff_max"] == 0.8
    assert not [name for name in metrics_with([{}, {}, {}]) if name.startswith("sampler/")]


def test_a_refused_update_stops_the_run_and_says_why(tmp_path):
    def ranks(method: str, args: Any) -> list[Any]:
        stats = {"sampler/logprob_diff_mean": Mean(0.06, 2), "sampler/logprob_diff_max": 0.05}
        return [RankUpdate(0.0, stats, float("nan"), False, refused=True)] * 2

    with pytest.raises(RunError) as caught:
        learner_of(tmp_path, ranks).update(some_groups(), Totals(1, 1, 8), 5)  # type: ignore[arg-type]
    for said in ("step 5", "differ by 0.03", "by 0.05", "allowed is 0.01", "was not made", "raise loop.mismatch_stop"):
        assert said in str(caught.value)


def test_everything_else_goes_to_all_ranks(tmp_path):
    ranks = FakeRanks()
    learner = learner_of(tmp_path, ranks)
    assert learner.publish(3, everything=True) == "publish of rank 0"
    learner.save(tmp_path)
    learner.restore(tmp_path)
    assert ranks.calls == [
        ("publish", [(3, True, False)] * 2),
        ("save", [(tmp_path,)] * 2),
        ("restore", [(tmp_path,)] * 2),
    ]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # warm-up over 3 steps rises to 1 without ever being 0; then 4 steps: 0, 1/3, 2/3 and all of the way down to 0.1
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 0.7, 0.4, 0.1]),
        # cosine: 0.1 + 0.9 * (1 + cos) / 2 with cos 0 = 1, cos 60 = 0.5, cos 120 = -0.5, cos 180 = -1
        ("cosine", [0.25, 0.5, 0.75, 1, 0.775, 0.325, 0.1]),
        # the root of 4 / (step + 1), where the warm-up ends with step 3
        ("inverse_sqrt", [0.25, 0.5, 0.75, 1, (4 / 5) ** 0.5, (4 / 6) ** 0.5, (4 / 7) ** 0.5]),
        # wsd with the last 2 steps: 1, then half of the way down to 0.1, then there
        ("wsd", [0.25, 0.5, 0.75, 1, 1, 0.55, 0.1]),
    ],
)
def test_learning_rates(tmp_path, schedule, expected):
    changes = {"learner.schedule": schedule, "learner.lr": 2e-3, "learner.warmup_steps": 3, "loop.steps": 7}
    if schedule not in ("constant", "inverse_sqrt"):
        changes["learner.min_lr_ratio"] = 0.1
    if schedule == "wsd":
        changes["learner.decay_steps"] = 2
    config = make_config(tmp_path, changes)
    np.testing.assert_allclose(
        [learning_rate(config.learner, config.loop.steps, step) for step in range(7)], 2e-3 * np.array(expected)
    )


def test_a_fifth_of_the_run_is_the_decay_of_wsd(tmp_path):
    config = make_config(tmp_path, {"learner.schedule": "wsd", "learner.lr": 1.0, "loop.steps": 10})
    found = [learning_rate(config.learner, config.loop.steps, step) for step in range(10)]
    assert found == pytest.approx([1] * 8 + [0.5, 0])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "inverse_sqrt", "wsd"])
def test_the_learning_rate_of_a_single_step_is_the_peak(tmp_path, schedule):
    config = make_config(tmp_path, {"learner.schedule": schedule, "loop.steps": 1, "learner.lr": 0.5})
    assert learning_rate(config.learner, config.loop.steps, 0) == 0.5


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_beyond_the_last_step_it_stays_down(tmp_path, schedule):
    config = make_config(tmp_path, {"learner.schedule": schedule, "loop.steps": 3, "learner.min_lr_ratio": 0.25})
    assert learning_rate(config.learner, config.loop.steps, 9) == pytest.approx(0.25 * 1e-3)
