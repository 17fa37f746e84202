"""The on-policy loop with roles that only pretend: what is drawn with which weights, when, and what is proved of it."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from rlft.errors import RunError
from rlft.evaluation.accuracy import Evaluation
from rlft.loops import on_policy
from rlft.loops.on_policy import Roles
from rlft.loops.rollouts import Rollouts, sampling_params
from rlft.rollout import collect
from rlft.samples import Group, SamplingParams, sample_seed
from tests.fakes import FakeGenerator, FakePrompts, FakeRewarder, FakeRun, Journal, make_roles
from tests.helpers import make_config, make_group


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


def in_order(staleness: int = 1) -> dict[str, bool]:
    """What makes a run with staleness repeatable."""
    return {"loop__in_flight": False} if staleness else {}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_no_sample_is_older_than_max_staleness(tmp_path, staleness, background):
    config = config_of(tmp_path, loop__steps=6, loop__max_staleness=staleness, **in_order(staleness))
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
    _, journal, _ = run(config_of(tmp_path, loop__steps=4, loop__max_staleness=2, **in_order()), background)
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
    config = config_of(
        tmp_path, loop__steps=7, loop__max_staleness=staleness, loop__probe_every=2, **in_order(staleness)
    )
    whole, _, whole_run = run(config, record=FakeRun(save_every=3, save_to=tmp_path))
    step, progress = whole_run.saved[0]
    places = [] if progress is None else sorted(progress.finished)
    assert (step, places) == (3, list(range(12, 12 + 4 * staleness)))
    assert (progress is None) == (staleness == 0)
    (tmp_path / "updates").write_text("3")
    again, journal, again_run = run(config, record=FakeRun(step=3, progress=progress, restore_from=tmp_path))
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
    config = config_of(tmp_path, loop__steps=5, evaluation__every=2, evaluation__path="some/prompts")
    prompts, params = FakePrompts().take(0, 2), SamplingParams(2, 4)
    evaluation = Evaluation(prompts, params, 0, config.evaluation)
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


@dataclass
class Gates:
    """A generator that lets each group through when its gate is opened, in whatever order; groups in `flat` are all
    rewarded alike."""

    inner: FakeGenerator
    flat: set[str] = field(default_factory=set)
    open: dict[str, threading.Event] = field(default_factory=lambda: defaultdict(threading.Event))

    def generate(self, prompts: Any, seeds: Any, params: Any, version: int) -> Any:
        groups = list(self.inner.generate(prompts, seeds, params, version))
        waiting = {group.prompt.id: (i, group) for i, group in groups}

        def stream() -> Iterator[tuple[int, Group]]:
            while waiting:
                for name in list(waiting):
                    if self.open[name].wait(0.001):
                        yield waiting.pop(name)

        return stream()

    def score(self, groups: Any) -> Any:
        for i, group in groups:
            rewards = [0.0 if group.prompt.id in self.flat else float(j % 2) for j in range(len(group.samples))]
            yield i, group.with_samples([replace(s, reward=r) for s, r in zip(group.samples, rewards, strict=True)])


def make_rollouts(
    tmp_path: Any, background: bool = False, progress: Any = None, first_step: int = 0, flat: set[str] = frozenset(),
    **changes: Any,
) -> tuple[Rollouts, Journal, Gates]:  # fmt: skip
    journal = Journal()
    gates = Gates(FakeGenerator(journal, version=0), set(flat))
    roles = Roles(generator=gates, rewarder=gates, learner=None, background=background)  # type: ignore[arg-type]
    return Rollouts(roles, FakePrompts(), config_of(tmp_path, **changes), progress, first_step), journal, gates


def open_gates(gates: Gates, *names: str) -> None:
    for name in names:
        gates.open[name].set()


def names_of(groups: Any) -> list[str]:
    return [group.prompt.id for group in groups]


ALL = [f"{step}/{i}" for step in range(9) for i in range(4)]


@pytest.mark.parametrize("background", [False, True])
def test_rollouts_start_once_and_not_beyond_the_last_step(tmp_path, background):
    rollouts, journal, gates = make_rollouts(tmp_path, background, loop__steps=4, loop__max_staleness=2, **in_order())
    open_gates(gates, *ALL)
    rollouts.admit(0)
    rollouts.admit(0)
    assert [event[2] for event in journal.of("generate")] == ["0/0", "1/0", "2/0"]
    assert names_of(rollouts.take(0).groups) == ALL[:4]
    progress = rollouts.progress(1)  # waits for the rest
    assert (progress.next_place, sorted(progress.finished), progress.begun) == (12, list(range(4, 12)), ())
    for step in range(1, 4):
        gates.inner.version = step
        rollouts.admit(step)
        assert names_of(rollouts.take(step).groups) == ALL[4 * step : 4 * step + 4]
    assert [event[2] for event in journal.of("generate")] == ["0/0", "1/0", "2/0", "3/0"]
    assert rollouts.progress(4) is None


def test_a_step_learns_from_what_finishes_first_and_carries_the_rest_over(tmp_path):
    rollouts, _, gates = make_rollouts(tmp_path, True, loop__steps=3, loop__max_staleness=2)
    rollouts.admit(0)
    open_gates(gates, "0/0", "0/2", "1/1", "1/3")
    assert names_of(rollouts.take(0).groups) == ["0/0", "0/2", "1/1", "1/3"]
    gates.inner.version = 1
    rollouts.admit(1)
    open_gates(gates, "2/0", "2/1", "2/2")  # of version 1; the four of version 0 may wait for step 2, if all do
    threading.Timer(0.1, open_gates, (gates, "1/0")).start()
    assert names_of(rollouts.take(1).groups) == ["1/0", "2/0", "2/1", "2/2"]
    gates.inner.version = 2
    rollouts.admit(2)  # three of version 0 are due now, and the last of version 1
    threading.Timer(0.1, open_gates, (gates, "0/1", "0/3", "1/2", "2/3")).start()
    assert names_of(rollouts.take(2).groups) == ["0/1", "0/3", "1/2", "2/3"]


def test_groups_that_are_due_hold_a_step_up(tmp_path):
    rollouts, _, gates = make_rollouts(tmp_path, True, loop__steps=5, loop__max_staleness=1)
    rollouts.admit(0)
    open_gates(gates, "0/0", "0/2", "1/1", "1/3")
    rollouts.take(0)
    gates.inner.version = 1
    rollouts.admit(1)
    open_gates(gates, "2/0", "2/1", "2/2", "2/3", "1/0", "1/2")
    threading.Timer(0.2, open_gates, (gates, "0/1", "0/3")).start()
    assert names_of(rollouts.take(1).groups) == ["0/1", "0/3", "1/0", "1/2"]


def test_nothing_is_lost_or_learned_from_twice_whatever_finishes_first(tmp_path):
    """Gates open in random order while the loop goes on; every prompt of the run is learned from once, none later than
    max_staleness allows."""
    rng = np.random.default_rng(0)
    for staleness in (1, 2, 4):
        rollouts, _, gates = make_rollouts(tmp_path, True, loop__steps=8, loop__max_staleness=staleness)
        order = list(ALL[:32])
        rng.shuffle(order)
        threading.Thread(target=lambda o=order, g=gates: [(time.sleep(0.002), open_gates(g, n)) for n in o]).start()
        taken = []
        for step in range(8):
            gates.inner.version = step
            rollouts.admit(step)
            for group in rollouts.take(step).groups:
                taken.append(group.prompt.id)
                assert min(s.weight_versions.max() for s in group.samples) >= step - staleness
        assert sorted(taken) == sorted(ALL[:32])


def test_flat_groups_are_replaced_up_to_a_bound(tmp_path):
    for background in (False, True):
        rollouts, _, gates = make_rollouts(
            tmp_path, background, flat={"0/1", "0/3", "1/0", "1/1"}, loop__steps=3, algorithm__replace_flat_groups=3
        )
        open_gates(gates, *ALL)
        rollouts.admit(0)
        rollout = rollouts.take(0)  # 1/0 comes for 0/1, 1/1 for 0/3, 1/2 for 1/0; then no more may be replaced
        assert (names_of(rollout.groups), rollout.num_replaced) == (["0/0", "0/2", "1/1", "1/2"], 3)
        gates.inner.version = 1
        rollouts.admit(1)
        rollout = rollouts.take(1)
        assert (names_of(rollout.groups), rollout.num_replaced) == (["1/3", "2/0", "2/1", "2/2"], 0)


def test_in_order_it_does_not_matter_which_flat_group_comes_first(tmp_path):
    """Two are flat and one may be replaced: the first in the data, whatever is finished first."""
    outcomes = []
    for order in (ALL, ALL[::-1]):
        rollouts, _, gates = make_rollouts(
            tmp_path, True, flat={"0/1", "0/3"}, loop__steps=3, loop__max_staleness=1, algorithm__replace_flat_groups=1,
            **in_order(),
        )  # fmt: skip

        def open_slowly(gates: Gates = gates, order: list[str] = order) -> None:
            for name in order:
                time.sleep(0.005)
                open_gates(gates, name)

        threading.Thread(target=open_slowly, daemon=True).start()
        rollouts.admit(0)
        outcomes.append(names_of(rollouts.take(0).groups))
    assert outcomes[0] == outcomes[1] == ["0/0", "0/2", "0/3", "1/0"]


def test_failed_groups_are_not_replaced_in_silence(tmp_path):
    rollouts, _, gates = make_rollouts(tmp_path, algorithm__replace_flat_groups=9, loop__steps=1)
    rollouts._rewarder = FakeRewarder(Journal(), failing=frozenset(range(4)))
    open_gates(gates, *ALL)
    rollouts.admit(0)
    rollout = rollouts.take(0)
    assert (names_of(rollout.groups), rollout.num_replaced) == (ALL[:4], 0)


def test_what_was_not_finished_at_a_checkpoint_is_begun_anew(tmp_path):
    rollouts, _, gates = make_rollouts(tmp_path, True, loop__steps=4, loop__max_staleness=1)
    rollouts.admit(0)
    open_gates(gates, "0/0", "0/1", "0/2", "1/0", "1/3")
    rollouts.take(0)
    deadline = time.monotonic() + 10
    while (progress := rollouts.progress(1)) and len(progress.finished) < 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert progress.next_place == 8 and len(progress.finished) == 1 and len(progress.begun) == 3
    again, _, gates = make_rollouts(tmp_path, True, progress, 1, loop__steps=4, loop__max_staleness=1)
    gates.inner.version = 1
    open_gates(gates, *ALL)
    again.admit(1)
    rest = []
    for step in (1, 2, 3):
        gates.inner.version = step
        again.admit(step)
        rest += names_of(again.take(step).groups)
    first = {0, 1, 2, 4, 7} - set(progress.finished)
    assert sorted(rest) == sorted(ALL[place] for place in range(16) if place not in first)


@pytest.mark.parametrize("background", [False, True])
def test_an_error_while_drawing_reaches_the_loop(tmp_path, background):
    rollouts, _, gates = make_rollouts(tmp_path, background)
    open_gates(gates, *ALL)

    def broken(stream: Any) -> Any:
        for _ in stream:
            raise RunError("a reward worker died")
        yield

    rollouts._rewarder.score = broken  # type: ignore[method-assign]
    rollouts.admit(0)
    rollouts.await_drawn()  # does not wait for what will never come
    with pytest.raises(RunError, match="a reward worker died"):
        rollouts.take(0)


def test_a_wait_that_runs_out_says_what_it_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("rlft.loops.rollouts._LATER_S", 0.0)
    rollouts, _, _ = make_rollouts(tmp_path, True, cluster__stage_timeout_s=0.1)
    rollouts.admit(0)
    with pytest.raises(RunError, match=r"no group was finished for 0 s.*4 are being drawn or scored.*version 0"):
        rollouts.take(0)
    with pytest.raises(RunError, match=r"1 batches were not drawn"):
        rollouts.await_drawn()


def test_a_lost_prompt_is_an_error():
    journal = Journal()
    stream = iter([(0, make_group([4], [[5]])), (2, make_group([4], [[5]]))])
    with pytest.raises(RunError, match=r"1 of 3 prompts never came back \(places \[1\]\)"):
        collect(stream, FakeRewarder(journal), 3)


def test_sampling_params_of_training(tmp_path):
    changes = {"generator__temperature": 0.7, "generator__stop": ["x"]}
    params = sampling_params(config_of(tmp_path, **changes))
    assert params == SamplingParams(4, 8, temperature=0.7, stop=("x",), ignore_eos=False)
    assert sampling_params(config_of(tmp_path, generator__min_new_tokens=2)).min_new_tokens == 2
