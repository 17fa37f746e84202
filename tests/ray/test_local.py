"""The same run through Ray actors: the same numbers as in one process, however many actors share the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlft import cli
from rlft.runs.metrics import read_metrics
from tests.running import (
    DPO,
    GRPO,
    KTO,
    SFT,
    assert_close,
    assert_learns,
    metrics_of,
    rollouts_of,
    train_here,
    weights_of,
    write_config,
)

pytestmark = pytest.mark.ray

SHORT = {"loop.steps": 4, "loop.save_every": 0}


def run_both(task: Path, name: str, changes: dict[str, Any], in_ray: dict[str, Any]) -> tuple[Path, Path]:
    """The run folders of a configuration inline and through Ray."""
    runs = []
    for mode, more in (("inline", {}), ("local", in_ray)):
        config = write_config(task, f"{name}-{mode}", GRPO, {**SHORT, **changes, "cluster.mode": mode, **more})
        runs.append(train_here(task, config).folder)
    return task / runs[0], task / runs[1]


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 2])
def test_local_is_inline_to_the_last_digit(task: Path, joined_ray: None, staleness: int) -> None:
    changes = {"loop.max_staleness": staleness, "loop.steps": 5} | ({"loop.in_flight": False} if staleness else {})
    inline, local = run_both(task, f"same-{staleness}", changes, {})
    assert_learns(inline)
    assert metrics_of(local) == metrics_of(inline)
    assert rollouts_of(local) == rollouts_of(inline)
    assert weights_of(local, 5) == weights_of(inline, 5)
    # Samples of step i are drawn with the weights of step i - k at the oldest: the bound is reached, never passed.
    assert [line["staleness/max"] for line in metrics_of(local)] == [min(step, staleness) for step in range(5)]
    versions = [(row["step"] - 1, row["weight_version_min"], row["weight_version_max"]) for row in rollouts_of(local)]
    assert all(low == high == max(0, step - staleness) for step, low, high in versions)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_many_actors_share_the_work(task: Path, joined_ray: None, stage: int) -> None:
    two = {"generator.num_actors": 2, "rewards.num_actors": 2, "scorer.num_actors": 2}
    many, count = (two, 2) if stage == 2 else ({}, 1)
    in_ray = {**many, "learner.num_ranks": 2, "learner.zero_stage": stage}
    inline, local = run_both(task, f"many-{stage}", {"loop.steps": 3}, in_ray)
    assert_learns(inline)
    assert_close(local, inline, 1e-3)
    texts = [
        [(row["prompt_id"], row["seed"], row["completion"]) for row in rollouts_of(run)] for run in (local, inline)
    ]
    assert texts[0] == texts[1]
    places = json.loads((local / "logs" / "actors.json").read_text())
    assert sorted(places) == sorted(
        [*(f"{role}-{i}" for role in ("generator", "reward_worker", "scorer") for i in range(count))]
        + ["learner-0", "learner-1"]
    )
    assert len({place.split()[-1] for place in places.values()}) == len(places), "a process for each"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "online_dpo", "distill"])
def test_critics_and_teachers_are_actors_too(task: Path, joined_ray: None, algorithm: str) -> None:
    """Two ranks of a critic (ZeRO-3), two teachers; pairs dealt to two learner ranks."""
    changes: dict[str, Any] = {"algorithm.type": algorithm, "loop.steps": 3}
    in_ray: dict[str, Any] = {"learner.num_ranks": 2}
    if algorithm == "ppo":
        changes |= {"critic.lr": 1e-3, "algorithm.group_size": 4}
        in_ray |= {"critic.num_ranks": 2, "critic.zero_stage": 3}
    if algorithm == "distill":
        folder = task / train_here(task, write_config(task, "teacher", GRPO, {"run.seed": 4, "loop.steps": 1})).folder
        changes |= {"teacher.path": str(folder / "model"), "algorithm.teacher_signal": "js", "algorithm.group_size": 4}
        changes |= {"algorithm.teacher_top_k": 16, "algorithm.kl_coef": 0.0}
        in_ray |= {"teacher.num_actors": 2}
    if algorithm == "online_dpo":
        changes |= {"algorithm.kl_coef": 0.0, "algorithm.reference_every": 2}
        in_ray |= {"scorer.num_actors": 2}
    inline, local = run_both(task, algorithm, changes, in_ray)
    assert_close(local, inline, 2e-3)
    places = json.loads((local / "logs" / "actors.json").read_text())
    role = {"ppo": "critic", "distill": "teacher", "online_dpo": "scorer"}[algorithm]
    assert {f"{role}-0", f"{role}-1", "learner-0", "learner-1"} <= set(places)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "kto", "reward"])
def test_learning_from_data_through_actors(task: Path, joined_ray: None, name: str) -> None:
    """Two ranks of the learner (ZeRO-2), and for what has a reference two scorers."""
    changes: dict[str, Any] = {"algorithm.type": name, "loop.steps": 3, "loop.save_every": 0}
    changes |= KTO if name == "kto" else {}
    in_ray: dict[str, Any] = {"cluster.mode": "local", "learner.num_ranks": 2}
    if name != "reward":
        in_ray |= {"scorer.num_actors": 2}
    inline, local = (
        task / train_here(task, write_config(task, f"{name}-{mode}", DPO, {**changes, **more})).folder
        for mode, more in (("inline", {}), ("local", in_ray))
    )
    assert_close(local, inline, 1e-3)
    places = json.loads((local / "logs" / "actors.json").read_text())
    scorers = set() if name == "reward" else {"scorer-0", "scorer-1"}
    assert set(places) == {"learner-0", "learner-1"} | scorers


@pytest.mark.slow
def test_a_teacher_on_data_through_actors(task: Path, joined_ray: None) -> None:
    teacher = task / train_here(task, write_config(task, "kd-teacher", GRPO, {"run.seed": 4, "loop.steps": 1})).folder
    changes: dict[str, Any] = {
        "algorithm.type": "kd", "algorithm.teacher_signal": "js", "algorithm.sft_coef": 0.5, "loop.steps": 3,
        "teacher.path": str(teacher / "model"), "loop.save_every": 0,
    }  # fmt: skip
    in_ray = {"cluster.mode": "local", "learner.num_ranks": 2, "teacher.num_actors": 2}
    inline, local = (
        task / train_here(task, write_config(task, f"kd-{mode}", SFT, {**changes, **more})).folder
        for mode, more in (("inline", {}), ("local", in_ray))
    )
    assert_close(local, inline, 1e-3)
    assert {"teacher-0", "teacher-1"} < set(json.loads((local / "logs" / "actors.json").read_text()))


@pytest.mark.slow
def test_a_reward_that_raises_is_masked_and_counted(task: Path, joined_ray: None) -> None:
    functions = [{"function": "my_rewards.py:raises_at_times"}, {"function": "my_rewards.py:share_of_digits"}]
    changes = {
        **SHORT, "rewards.functions": functions, "rewards.max_failed_fraction": 0.9, "algorithm.kl_coef": 0.0,
        "cluster.mode": "local", "loop.prompts_per_step": 16, "loop.steps": 2,
    }  # fmt: skip
    run = task / train_here(task, write_config(task, "raises", GRPO, changes)).folder
    rows = rollouts_of(run)
    failed = [row for row in rows if row["columns"]["answer"].startswith("0")]
    assert 0 < len(failed) < len(rows)
    for row in rows:
        bad = row in failed
        assert row["status/raises_at_times"] == ("error" if bad else "ok")
        assert (row["reward"] is None) is (row["advantage"] is None) is (row["reward/raises_at_times"] is None) is bad
        assert row["status/share_of_digits"] == "ok"
    assert "no zeros, please" in failed[0]["detail/raises_at_times"]
    for line in metrics_of(run):
        mine = [row for row in failed if row["step"] == line["step"]]
        assert line["samples/failed"] == line["reward/raises_at_times/failed"] == len(mine)
        assert line["reward/share_of_digits/failed"] == 0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--generator.resources={tpu: 1}", ["tpu: the run needs 1 (generator 1 x 1), the cluster has 0"]),
        ("--learner.cpus=64", ["CPU: the run needs 67 (learner 1 x 64, ", "the cluster has 9", "--learner.num_ranks"]),
    ],
)
def test_a_cluster_too_small_is_bad_input(
    task: Path, joined_ray: None, override: str, words: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task)
    config = write_config(task, "small", GRPO, {"cluster.mode": "local"})
    name = "--run.name=small-" + override[2:9]
    assert cli.main(["train", config, name, override]) == 2
    err = capsys.readouterr().err
    assert "the cluster is too small for this run" in err
    assert all(word in err for word in words), err


def test_metrics_of_a_step_name_its_stages(task: Path, joined_ray: None) -> None:
    """Rides on a run of the first test."""
    line = read_metrics(task / "runs" / "same-0-local" / "metrics.jsonl")[0]
    stages = {"generate", "score", "reference", "learn", "sync", "step"}
    assert stages <= {key.removeprefix("time/").removesuffix("_s") for key in line if key.startswith("time/")}
    assert all(line[f"time/{stage}_s"] > 0 for stage in stages) and line["tokens_per_s"] > 0
