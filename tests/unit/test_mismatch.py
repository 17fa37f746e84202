"""What people are told when generator and learner compute different log-probs from the same weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rlft.loops import on_policy
from rlft.loops.mismatch import MismatchWarning
from tests.fakes import FakeLearner, FakePrompts, FakeRun, make_roles
from tests.helpers import make_config

WARN = 1e-4  # the limit in float32


def told(config: Any, mismatches: dict[int, float | None]) -> list[str]:
    messages: list[str] = []
    warn = MismatchWarning(messages.append, config)
    for step, mismatch in mismatches.items():
        known = mismatch is not None
        warn(step, {"sampler/logprob_diff_mean": mismatch, "sampler/logprob_diff_max": 0.25} if known else {})
    return messages


def test_a_warning_says_what_was_measured_what_is_expected_and_where_to_look(tmp_path):
    (message,) = told(make_config(tmp_path), {3: 0.0012})
    for said in (
        "step 3", "differ by 0.0012", "largest by 0.25", "float32", "at most 0.0001", "loop.mismatch_warn",
        "above 0.01", "loop.mismatch_stop", "dtype, attention and library versions", "top-p, temperature",
    ):  # fmt: skip
        assert said in message


@pytest.mark.parametrize("mismatch", [0.9 * WARN, 0.0, None])
def test_nothing_is_said_below_the_limit_or_without_fresh_tokens(tmp_path, mismatch):
    assert told(make_config(tmp_path), {step: mismatch for step in range(1, 20)}) == []


def test_the_limit_is_the_configurations(tmp_path):
    config = make_config(tmp_path, {"loop.mismatch_warn": 5e-3})
    assert len(told(config, {1: 4e-3, 2: 6e-3})) == 1
    assert told(make_config(tmp_path, {"model.dtype": "bfloat16"}), {1: 0.04}) == []


def test_what_is_not_a_number_is_said(tmp_path):
    assert len(told(make_config(tmp_path), {1: float("nan")})) == 1


def test_a_lasting_mismatch_is_said_every_ten_steps(tmp_path):
    steps: dict[int, float | None] = {step: 2 * WARN for step in range(1, 26)} | {1: None, 2: None, 12: 0.0}
    messages = told(make_config(tmp_path), steps)
    assert [m.split(":")[1] for m in messages] == [" step 3", " step 13", " step 23"]


@dataclass
class Disagreeing(FakeLearner):
    """Reports a mismatch at each update."""

    def update(self, *args: Any) -> dict[str, float]:
        return super().update(*args) | {"sampler/logprob_diff_mean": 2 * WARN, "sampler/logprob_diff_max": 0.25}


def test_the_loop_warns_on_the_runs_console(tmp_path: Path):
    roles, journal = make_roles()
    config = make_config(tmp_path, {"loop.steps": 12})
    for learner, expected in ((FakeLearner(journal), []), (Disagreeing(journal), ["step 1", "step 11"])):
        run = FakeRun()
        players = replace(roles, learner=learner)
        on_policy.train(players, FakePrompts(), None, run, config)  # type: ignore[arg-type]
        assert [m.removeprefix("warning: ").split(":")[0] for m in run.console.messages] == expected
