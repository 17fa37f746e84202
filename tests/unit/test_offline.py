"""The loop that learns from data, with roles that write down what they are asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from rlft.config.algorithm import AlgorithmConfig
from rlft.config.load import load_config
from rlft.data.pairs import signed_sample
from rlft.errors import RunError
from rlft.evaluation.held_out import HeldOut
from rlft.loops.offline import OfflineRoles, divergence_on_others, train
from rlft.loops.remembered import Reference, TaughtRows
from rlft.runs.store import RowStore
from rlft.samples import Group, TopTokens
from tests.fakes import FakeLearner, FakeRun, FakeScorer, Journal, believed
from tests.helpers import make_group


def config_of(tmp_path: Any, name: str, **changes: Any) -> Any:
    base = {"model": {"path": str(tmp_path)}, "algorithm": {"type": name}, "loop": {"steps": 4, "prompts_per_step": 2}}
    return load_config(base, changes)


def pair(number: int) -> Group:
    return make_group([4, number], [[7, 8], [9]], advantages=[1.0, -1.0])


@dataclass
class Pairs:
    """Four pairs, two in each step, again and again."""

    groups: list[Group] = field(default_factory=lambda: [pair(10 + i) for i in range(4)])

    def batch(self, step: int, num_examples: int) -> list[Group]:
        return [self.groups[(step * num_examples + i) % 4] for i in range(num_examples)]


def play(config: Any, source: Any, run: Any, held_out: HeldOut | None = None) -> tuple[FakeLearner, Journal]:
    journal = Journal()
    learner = FakeLearner(journal)
    train(OfflineRoles(learner, FakeScorer(journal)), source, run, config, held_out)
    return learner, journal


def test_the_reference_looks_at_each_pair_once(tmp_path: Any) -> None:
    learner, journal = play(config_of(tmp_path, "dpo"), Pairs(), FakeRun())
    assert journal.of("reference") == [("reference", 4), ("reference", 4)], "two steps are an epoch; the rest is known"
    assert len(learner.given) == 4
    for groups, totals, _ in learner.given:
        assert (totals.num_samples, totals.num_tokens, totals.kl) == (4, 6, 0.0)
        for sample in (s for g in groups for s in g.samples):
            expected = believed(sample, 0) - 0.5 * sample.loss_mask
            np.testing.assert_array_equal(sample.ref_logprobs, expected.astype(np.float32))


def test_what_the_reference_said_is_kept_in_checkpoints(tmp_path: Any) -> None:
    class Keeping(FakeRun):
        kept: Any = None

        def save(self, step: int, learner: Any, loop: Any = None, others: Any = ()) -> None:
            self.kept = dict(loop)

        def restore(self, learner: Any, others: Any = ()) -> Any:
            return self.step, self.kept

    run = Keeping(save_every=2)
    play(config_of(tmp_path, "dpo"), Pairs(), run)
    assert len(run.kept) == 8, "the samples of four pairs"
    run.step = 2
    _, journal = play(config_of(tmp_path, "dpo"), Pairs(), run)
    assert journal.of("reference") == []


def test_kto_measures_on_the_others_and_does_not_learn_from_them(tmp_path: Any) -> None:
    @dataclass
    class Labelled:
        def batch(self, step: int, num_examples: int) -> list[Group]:
            group = make_group([4], [[7, 8], [9, 9, 9]], advantages=[1.0, 0.0])
            return [group] * num_examples

    learner, _ = play(config_of(tmp_path, "kto"), Labelled(), FakeRun())
    kls = [totals.kl for _, totals, _ in learner.given]
    # The policy gives each token 0.5 more than the reference, and 0.01 less after each update: 3 tokens.
    assert kls == pytest.approx([1.5, 1.47, 1.44, 1.41], abs=1e-5)
    assert all([len(s.samples) for s in groups] == [1, 1] for groups, _, _ in learner.given)
    assert all(totals.num_samples == 2 and totals.num_tokens == 4 for _, totals, _ in learner.given)


def test_a_divergence_below_0_counts_as_0() -> None:
    group = make_group([4], [[7], [9]], advantages=[1.0, 0.0])

    class Likelier(FakeScorer):
        def logprobs(self, groups: Any) -> Any:
            return [[believed(s, 0) + 1.0 * s.loss_mask for s in g.samples] for g in groups]

    groups = Reference(Likelier(Journal()))([group])
    assert divergence_on_others(FakeLearner(Journal()), groups)[1] == 0.0


def test_a_reference_that_says_nan_stops_the_run(tmp_path: Any) -> None:
    class Broken(FakeScorer):
        def logprobs(self, groups: Any) -> Any:
            return [[np.full(len(s.token_ids), np.nan, np.float32) for s in g.samples] for g in groups]

    with pytest.raises(RunError, match="the reference says nan of token 2"):
        train(OfflineRoles(FakeLearner(Journal()), Broken(Journal())), Pairs(), FakeRun(), config_of(tmp_path, "dpo"))  # type: ignore[arg-type]


def test_held_out_pairs_before_between_and_after(tmp_path: Any) -> None:
    config = config_of(tmp_path, "dpo", **{"evaluation.path": "some/pairs", "evaluation.every": 3})
    run = FakeRun()
    held_out = HeldOut([make_group([4], [[7], [9, 9]], advantages=[1.0, -1.0])], config.algorithm)
    play(config, Pairs(), run, held_out)
    assert [step for step, _ in run.evaluations] == [0, 3, 4]
    # Each token is 0.5 above the reference: one token against two, so the margin is beta * -0.5.
    assert run.evaluations[0][1] == pytest.approx({"eval/pair_accuracy": 0.0, "eval/margin": -0.05}, abs=1e-6)


def test_pairs_of_which_none_is_better_count_half(tmp_path: Any) -> None:
    """As before the first step, where the policy is the reference."""
    config = config_of(tmp_path, "orpo", **{"evaluation.path": "some/pairs"})
    held_out = HeldOut([make_group([4], [[7], [7]], advantages=[1.0, -1.0])], config.algorithm)
    assert held_out(FakeLearner(Journal()), None) == {"eval/pair_accuracy": 0.5, "eval/margin": 0.0}


def test_held_out_examples_and_labels() -> None:
    learner = FakeLearner(Journal())
    group = make_group([4], [[100, 200]])
    metrics = HeldOut([group], AlgorithmConfig(type="sft"))(learner, None)
    assert metrics == pytest.approx({"eval/nll": 1.15, "eval/perplexity": np.exp(1.15)}, rel=1e-6)
    good, bad = (
        g.with_samples([signed_sample(g.samples[0], sign)])
        for g, sign in ((make_group([4], [[7, 7]]), 1.0), (make_group([4], [[7, 7, 7]]), -1.0))
    )
    metrics = HeldOut([good, bad], AlgorithmConfig(type="kto"))(learner, Reference(FakeScorer(Journal())))
    assert metrics == pytest.approx({"eval/good": 0.1, "eval/bad": 0.15}, rel=1e-6)


@dataclass
class FakeTeacher(FakeScorer):
    """Its two likeliest tokens in each place are the token itself and the next."""

    def top_tokens(self, groups: Any, count: int) -> Any:
        self.journal.write("teacher", sum(len(g.samples) for g in groups))

        def top(sample: Any) -> TopTokens:
            ids = np.stack([sample.token_ids, sample.token_ids + 1], 1) * sample.loss_mask[:, None]
            return TopTokens(ids.astype(np.int32), -0.1 * ids.astype(np.float32), 2.0)

        return [[top(s) for s in g.samples] for g in groups]


@pytest.mark.parametrize("kept", [True, False])
def test_the_teacher_looks_at_each_row_once_if_that_is_kept(tmp_path: Any, kept: bool) -> None:
    config = config_of(tmp_path, "kd", **{"teacher.path": "some/teacher"})
    learner, journal = FakeLearner(Journal()), Journal()
    roles = OfflineRoles(learner, teacher=FakeTeacher(journal))
    store = RowStore(tmp_path / "top") if kept else None
    train(roles, Pairs(), FakeRun(), config, store=store)  # type: ignore[arg-type]
    assert journal.of("teacher") == [("teacher", 4)] * (2 if kept else 4)
    for groups, _, _ in learner.given:
        for sample in (s for g in groups for s in g.samples):
            assert sample.teacher_top.temperature == 2.0
            assert sample.teacher_top.ids[sample.loss_mask, 0].tolist() == sample.token_ids[sample.loss_mask].tolist()
            assert not sample.teacher_top.ids[~sample.loss_mask].any()


def test_what_the_teacher_said_outlives_the_run(tmp_path: Any) -> None:
    groups = Pairs().groups
    first = TaughtRows(FakeTeacher(Journal()), 2, RowStore(tmp_path))(groups, 0)
    journal = Journal()
    (tmp_path / "step-000001.safetensors.part").write_bytes(b"half a file")
    again = TaughtRows(FakeTeacher(journal), 2, RowStore(tmp_path))(groups, 3)
    assert journal.events == []
    for a, b in zip((s for g in first for s in g.samples), (s for g in again for s in g.samples), strict=True):
        assert a.teacher_top is not None and b.teacher_top is not None
        np.testing.assert_array_equal(a.teacher_top.ids, b.teacher_top.ids)
        np.testing.assert_array_equal(a.teacher_top.logprobs, b.teacher_top.logprobs)
