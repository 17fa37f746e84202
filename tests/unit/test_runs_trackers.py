"""TensorBoard for real, W&B by a fake of its few functions."""

import sys
import types
from pathlib import Path

import pytest

from rlft.config.run import TrackingConfig
from rlft.errors import UserError
from rlft.runs.folder import RunFolder
from rlft.runs.trackers import TensorBoardTracker, WandbTracker, make_trackers


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_goes_on_where_the_run_does(tmp_path: Path):
    first = TensorBoardTracker(tmp_path)
    for step in (1, 2, 3):
        first.log(step, {"step": step, "reward/mean": 0.5, "note": "text", "kl": None})
    first.close()
    again = TensorBoardTracker(tmp_path, from_step=3)
    for step in (3, 4):
        again.log(step, {"reward/mean": 0.75})
    again.close()
    assert scalars(tmp_path, "reward/mean") == [(1, 0.5), (2, 0.5), (3, 0.75), (4, 0.75)]


def test_a_missing_package_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        TensorBoardTracker(tmp_path)
    with pytest.raises(UserError, match=r"tracking.wandb_project is mine.*pip install wandb"):
        WandbTracker("mine", "run", tmp_path, {})


def test_wandb_resumes_under_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, object]] = []
    run = types.SimpleNamespace(
        define_metric=lambda *args, **options: None,
        log=lambda metrics: calls.append(("log", metrics)),
        finish=lambda: calls.append(("finish", None)),
    )
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: calls.append(("init", options["id"])) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        tracker = WandbTracker("mine", "run", tmp_path, {"a": 1})
        tracker.log(3, {"reward/mean": 0.5, "note": "text"})
        tracker.close()
    assert calls[:3] == [calls[0], ("log", {"step": 3, "reward/mean": 0.5}), ("finish", None)]
    assert calls[3:] == calls[:3] and calls[0][1]


def test_what_is_switched_on(tmp_path: Path):
    with RunFolder.create(tmp_path / "a", "", None) as run:
        assert make_trackers(TrackingConfig.model_validate({"tensorboard": False}), run, "a", {}) == []
        (tracker,) = make_trackers(TrackingConfig.model_validate({}), run, "a", {}, from_step=2)
        tracker.log(2, {"x": 1.0})
        tracker.close()
        assert scalars(run.tensorboard, "x") == [(2, 1.0)]
