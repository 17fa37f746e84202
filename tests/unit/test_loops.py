"""The on-policy loop with roles that only pretend: what is drawn with which weights, when, and what is proved of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlft.config.data import EvaluationConfig
from rlft.errors import RunError, WeightSyncError
from rlft.evaluation.accuracy import Evaluation
from rlft.loops import on_policy
from rlft.loops.rollouts import Rollouts, sampling_params
from rlft.loops.sync import WeightSync, probe_group
from rlft.rollout import Rollout, collect
from rlft.samples import SamplingParams, sample_seed
from tests.fakes import FakeGenerator, FakePrompts, FakeRewarder, FakeRun, Journal, make_roles
from tests.helpers import make_config, make_group, make_prompt


def config_of(tmp_path: Any, **changes: Any) -> Any:
    return make_config(tmp_path, {key.replace("__", "."): value for key, value in changes.items()})


def run(config: Any, background: bool = False, record: FakeRun | None = None, **roles: Any) -> tuple[Any, Any, FakeRun]:
    made, journal = make_roles(background, **roles)
    record = record or FakeRun()
    on_policy.train(made, FakePrompts(), None, record, config)  # type: ignore[arg-type]
    return made, journal, record


def lags(roles: Any) -> list[set[int]]:
    """For each update: how many versions older than the learner its tokens are."""
    return [
        {int(step - v) for g in groups for s in g.samples for v in s.weight_versions[s.loss_mask]}
        for groups, _, step in roles.learner.given
    ]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_no_sample_is_older_than_max_staleness(tmp_path, staleness, background):
    config = config_of(tmp_path, loop__steps=6, loop__max_staleness=staleness)
    roles, _, record = run(config, background)
    # the first steps learn from samples of version 0; from step k on every sample is exactly k versions old
    assert lags(roles) == [{min(step, staleness)} for step in range(6)]
    assert [m["staleness/max"] for _, m in record.logged] == [min(step, staleness) for step in range(6)]


@pytest.mark.parametrize("background", [False, True])
def test_synchronous_order(tmp_path, background):
    _, journal, _ = run(config_of(tmp_path, loop__steps=3), background)
    expected = [("publish", 0, True), ("load", 0)]
    for step in range(3):
        expected += [("generate", step, f"{step}/0"), ("update", step)]
        expected += [("publish", step + 1, False), ("load", step + 1)]
    assert journal.of("publish", "load", "generate", "update") == expected


@pytest.mark.parametrize("background", [False, True])
def test_pipelined_order(tmp_path, background):
    """Rollouts of a step k ahead begin right after a load, with its version, before the update that they overlap."""
    _, journal, _ = run(config_of(tmp_path, loop__steps=4, loop__max_staleness=2), background)
    assert journal.of("load", "generate", "update") == [
        ("load", 0), ("generate", 0, "0/0"), ("generate", 0, "1/0"), ("generate", 0, "2/0"), ("update", 0),
        ("load", 1), ("generate", 1, "3/0"), ("update", 1),
        ("load", 2), ("update", 2),
        ("load", 3), ("update", 3),
        ("load", 4),
    ]  # fmt: skip


def test_every_publish_is_loaded_at_once(tmp_path):
    _, journal, _ = run(config_of(tmp_path, loop__steps=5, loop__max_staleness=2), True)
    events = journal.of("publish", "load", "generate", "update")
    for i, event in enumerate(events):
        if event[0] == "publish":
            assert events[i + 1] == ("load", event[1])


def test_samples_have_the_seeds_of_their_place(tmp_path):
    roles, _, _ = run(config_of(tmp_path, loop__steps=2, run__seed=5))
    groups, _, step = roles.learner.given[1]
    assert [[s.seed for s in g.samples] for g in groups] == [
        [sample_seed(5, step, i, j) for j in range(4)] for i in range(4)
    ]
    assert [g.prompt.id for g in groups] == ["1/0", "1/1", "1/2", "1/3"]


def test_only_the_first_sync_brings_every_weight(tmp_path):
    _, journal, record = run(config_of(tmp_path, loop__steps=3))
    assert [event[2] for event in journal.of("publish")] == [True, False, False, False]
    assert [m["sync/bytes"] for _, m in record.logged] == [10, 10, 10]
    assert [m["sync/version"] for _, m in record.logged] == [1, 2, 3]


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_resumed_run_learns_from_the_same_samples(tmp_path, staleness):
    """Stopped after step 3 with rollouts under way; those are learned from with the versions that drew them."""
    config = config_of(tmp_path, loop__steps=7, loop__max_staleness=staleness, loop__probe_every=2)
    whole, _, whole_run = run(config, record=FakeRun(save_every=3, save_to=tmp_path))
    step, ready = whole_run.settled[0]
    assert (step, sorted(ready)) == (3, [3 + i for i in range(staleness)])
    (tmp_path / "updates").write_text("3")
    again, journal, again_run = run(config, record=FakeRun(step=3, ready=ready, restore_from=tmp_path))
    assert lags(again) == lags(whole)[3:]
    assert [m.keys() for _, m in again_run.logged] == [m.keys() for _, m in whole_run.logged[3:]]
    for (ours, totals, _), (theirs, expected, _) in zip(again.learner.given, whole.learner.given[3:], strict=True):
        assert totals == expected
        for a, b in zip(ours, theirs, strict=True):
            for s, t in zip(a.samples, b.samples, strict=True):
                np.testing.assert_array_equal(s.token_ids, t.token_ids)
                np.testing.assert_array_equal(s.logprobs, t.logprobs)
    drawn = [event[2] for event in journal.of("generate")]
    assert drawn == [f"{i}/0" for i in range(3 + staleness, 7)]


def test_evaluation_before_the_first_step_when_due_and_after_the_last(tmp_path):
    config = config_of(tmp_path, loop__steps=5)
    prompts, params = FakePrompts().batch(0, 2), SamplingParams(2, 4)
    evaluation = Evaluation(prompts, params, 0, EvaluationConfig(path="x", every=2))
    roles, _ = make_roles()
    record = FakeRun()
    on_policy.train(roles, FakePrompts(), evaluation, record, config)  # type: ignore[arg-type]
    assert [step for step, _ in record.evaluations] == [0, 2, 4, 5]
    assert record.evaluations[0][1]["eval/accuracy"] == 0.5


def test_too_many_failed_rewards_stop_the_run(tmp_path):
    roles, _ = make_roles()
    roles.rewarder.failing = frozenset({0})  # 1 of 4
    with pytest.raises(RunError, match="4 of 16 samples have no reward"):
        on_policy.train(roles, FakePrompts(), None, FakeRun(), config_of(tmp_path))  # type: ignore[arg-type]
    on_policy.train(
        roles,
        FakePrompts(),
        None,
        FakeRun(),
        config_of(tmp_path, rewards__max_failed_fraction=0.25),  # type: ignore[arg-type]
    )
    assert all(len(g.samples) == 3 for groups, _, _ in roles.learner.given for g in groups)


# ---- rollouts ----


def make_rollouts(
    tmp_path: Any, background: bool = False, ready: Any = None, **changes: Any
) -> tuple[Rollouts, Journal]:
    journal = Journal()
    generator = FakeGenerator(journal, version=0)
    config = config_of(tmp_path, **changes)
    return Rollouts(generator, FakeRewarder(journal), FakePrompts(), config, background, ready or {}), journal


@pytest.mark.parametrize("background", [False, True])
def test_rollouts_start_once_and_not_beyond_the_last_step(tmp_path, background):
    rollouts, journal = make_rollouts(tmp_path, background, loop__steps=4, loop__max_staleness=2)
    rollouts.start_through(1, first=0, version=0)
    rollouts.start_through(2, first=0, version=0)
    rollouts.start_through(9, first=2, version=0)
    assert [event[2] for event in journal.of("generate")] == ["0/0", "1/0", "2/0", "3/0"]
    assert rollouts.take(2).groups[0].prompt.id == "2/0"
    assert sorted(rollouts.settle()) == [0, 1, 3]  # waited for, and still there to be taken
    assert rollouts.take(0).groups[0].prompt.id == "0/0"
    assert sorted(rollouts.settle()) == [1, 3]
    rollouts.close()


def test_rollouts_of_a_checkpoint_are_not_drawn_again(tmp_path):
    kept = Rollout([make_group([4], [[5]])], 1.0, 2.0)
    rollouts, journal = make_rollouts(tmp_path, ready={3: kept}, loop__steps=9)
    rollouts.start_through(4, first=2, version=0)
    assert [event[2] for event in journal.of("generate")] == ["2/0", "4/0"]
    assert rollouts.take(3) is kept


@pytest.mark.parametrize("background", [False, True])
def test_an_error_while_drawing_reaches_the_loop(tmp_path, background):
    rollouts, _ = make_rollouts(tmp_path, background)

    def broken(stream: Any) -> Any:
        for _ in stream:
            raise RunError("a reward worker died")
        yield

    rollouts._rewarder.score = broken  # type: ignore[method-assign]
    with pytest.raises(RunError, match="a reward worker died"):
        rollouts.start_through(0, first=0, version=0)
        rollouts.take(0)
    rollouts.close()


def test_a_lost_prompt_is_an_error():
    journal = Journal()
    stream = iter([(0, make_group([4], [[5]])), (2, make_group([4], [[5]]))])
    with pytest.raises(RunError, match=r"1 of 3 prompts never came back \(places \[1\]\)"):
        collect(stream, FakeRewarder(journal), 3)


def test_sampling_params_of_training(tmp_path):
    changes = {"generator__temperature": 0.7, "generator__min_new_tokens": 2, "generator__stop": ["x"]}
    params = sampling_params(config_of(tmp_path, **changes))
    assert params == SamplingParams(4, 8, temperature=0.7, min_new_tokens=2, stop=("x",), ignore_eos=False)


# ---- weight sync and probe ----


def sync_of(tmp_path: Any, changes: dict[str, Any], **generator: Any) -> tuple[WeightSync, Journal]:
    roles, journal = make_roles(**generator)
    probe = probe_group(FakePrompts().batch(0, 3))
    return WeightSync(roles.learner, roles.generator, probe, config_of(tmp_path, **changes)), journal


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-3), ("bfloat16", 0.5)])
def test_a_generator_that_computes_something_else_is_found(tmp_path, dtype, allowed):
    sync, _ = sync_of(tmp_path, {"model__dtype": dtype}, drift=0.9 * allowed)
    assert sync(version=0)["sync/probe_diff"] == pytest.approx(0.9 * allowed, rel=1e-3)
    sync, _ = sync_of(tmp_path, {"model__dtype": dtype}, drift=-1.1 * allowed)
    with pytest.raises(WeightSyncError, match=r"probe after weight version 4: .* disagree on prompt 0/2, token \d"):
        sync(version=4)


def test_a_generator_that_says_nan_is_found(tmp_path):
    sync, _ = sync_of(tmp_path, {}, drift=float("nan"))
    with pytest.raises(WeightSyncError, match="disagree"):
        sync(version=0)


@pytest.mark.parametrize(
    ("every", "first", "probed"), [(0, 0, [0]), (3, 0, [0, 3, 6]), (3, 4, [4, 6]), (1, 5, [5, 6, 7])]
)
def test_probes_come_at_the_first_sync_and_at_fixed_versions(tmp_path, every, first, probed):
    """At fixed versions, so that a resumed run logs what an uninterrupted one does."""
    sync, journal = sync_of(tmp_path, {"loop__probe_every": every})
    for version in range(first, 8):
        sync(version)
    assert [event[1] for event in journal.of("probe")] == probed


def test_both_sides_of_the_probe_are_asked_at_the_temperature_of_sampling(tmp_path):
    sync, journal = sync_of(tmp_path, {"generator__temperature": 0.7})
    sync(0)
    assert journal.of("probe") == [("probe", 0, 0.7)]


def test_probe_is_the_longest_prompt_with_its_own_tokens_as_targets():
    group = probe_group([make_prompt([4]), make_prompt([4, 5, 6]), make_prompt([4, 5])])
    assert group.samples[0].token_ids.tolist() == [4, 5, 6]
    assert group.samples[0].loss_mask.tolist() == [False, True, True]
    one = probe_group([make_prompt([4])])  # nothing to predict in it: twice its token
    assert one.samples[0].token_ids.tolist() == [4, 4]
    assert one.samples[0].loss_mask.tolist() == [False, True]
