"""A run that is killed in the middle and resumed is the run that nobody killed, to the last digit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.running import (
    DPO,
    GRPO,
    KTO,
    SFT,
    STEPS,
    assert_learns,
    children,
    metrics_of,
    num_lines,
    rollouts_of,
    start,
    still_alive,
    succeeds,
    train_here,
    wait_until,
    weights_of,
    write_config,
)

EVALUATED = {
    "evaluation.path": "eval.jsonl",
    "evaluation.max_rows": 8,
    "evaluation.every": 3,
    "evaluation.temperature": 1.0,
}
PPO = {  # a critic with an optimizer of its own, and a KL coefficient that moves
    "algorithm.type": "ppo", "algorithm.group_size": 4, "algorithm.kl_in": "loss", "algorithm.kl_estimator": "k3",
    "algorithm.kl_target": 0.01, "algorithm.kl_horizon": 50, "critic.lr": 1e-3,
}  # fmt: skip
LORA = {"type": "lora", "rank": 4, "dropout": 0.1}
P_TUNING = {"type": "p_tuning", "num_tokens": 4, "encoder": "lstm"}


def killed_in_the_middle(task: Path, config: str, *words: str, after: int) -> list[psutil.Process]:
    """SIGKILL the driver once `after` steps are done; gives the processes that it had started."""
    metrics = task / "runs" / Path(config).stem / "metrics.jsonl"
    (task / "hold").write_text(f"{metrics} {after}")
    process = start(task, "train", config, *words)
    wait_until(lambda: num_lines(metrics) >= after, process)
    others = children(process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (task / "hold").unlink()
    assert process.returncode == -signal.SIGKILL
    return others


def assert_same_run(one: Path, other: Path, steps: int, weights: str = "model.safetensors") -> None:
    assert metrics_of(one) == metrics_of(other)
    assert metrics_of(one, "eval.jsonl") == metrics_of(other, "eval.jsonl")
    assert [line["step"] for line in metrics_of(one)] == list(range(1, steps + 1))
    assert rollouts_of(one) == rollouts_of(other)
    assert weights_of(one, steps, weights) == weights_of(other, steps, weights)


@pytest.fixture(scope="module")
def uninterrupted(task: Path) -> Path:
    """The run that nobody kills, in one process."""
    train_here(task, write_config(task, "uninterrupted", GRPO, EVALUATED))
    run = task / "runs" / "uninterrupted"
    assert_learns(run)
    assert len(rollouts_of(run)) == 8 * 4 * 4
    assert any(line["policy/loss"] != other["policy/loss"] for line, other in zip(metrics_of(run), metrics_of(run)[1:]))
    return run


def test_inline(task: Path, uninterrupted: Path) -> None:
    config = write_config(task, "inline", GRPO, EVALUATED)
    killed_in_the_middle(task, config, after=5)
    run = task / "runs" / "inline"
    assert [path.name for path in sorted((run / "checkpoints").glob("step-*"))] == ["step-000002", "step-000004"]

    done = succeeds(task, "train", config, "--resume", "auto")
    assert f"Going on from {run / 'checkpoints' / 'step-000004'}." in done.stderr
    assert "step=4/8" not in done.stderr and "step=5/8" in done.stderr
    assert_same_run(run, uninterrupted, steps=8)
    # What the killed run made of step 5 is kept, and it was the same.
    assert metrics_of(run, "metrics.before-resume-1.jsonl") == metrics_of(uninterrupted)[4:5]


@pytest.mark.ray
@pytest.mark.slow
def test_local(task: Path, uninterrupted: Path) -> None:
    config = write_config(task, "local", GRPO, EVALUATED)
    others = killed_in_the_middle(task, config, "--cluster.mode", "local", after=5)
    assert len(others) > 6, "Ray and the actors"
    assert still_alive(others, 20) == [], "only the driver was killed: its actors and its Ray go too"

    succeeds(task, "train", config, "--cluster.mode", "local", "--resume", "auto")
    assert_same_run(task / "runs" / "local", uninterrupted, steps=8)


@pytest.mark.parametrize(
    ("name", "changes", "weights"),
    [
        ("stale", {"loop.max_staleness": 1, "loop.in_flight": False}, "model.safetensors"),
        ("lora", {"model.adapter": LORA, "learner.lr": 3e-2}, "adapter_model.safetensors"),
        ("p_tuning", {"model.adapter": P_TUNING, "learner.lr": 3e-2}, "adapter_model.safetensors"),
        ("ppo", PPO, "model.safetensors"),
    ],
)
def test_inline_variants(task: Path, name: str, changes: dict, weights: str) -> None:
    """Samples drawn before the checkpoint and learned from after it; adapters, with dropout's random numbers."""
    train_here(task, write_config(task, f"{name}-whole", GRPO, changes))
    config = write_config(task, name, GRPO, changes)
    killed_in_the_middle(task, config, after=5)
    succeeds(task, "train", config, "--resume", "auto")
    run, whole = task / "runs" / name, task / "runs" / f"{name}-whole"
    assert_learns(whole)
    assert max(line["staleness/max"] for line in metrics_of(whole)) == changes.get("loop.max_staleness", 0)
    assert_same_run(run, whole, steps=8, weights=weights)


def test_a_reference_that_moves(task: Path) -> None:
    """Iterative DPO: the checkpoint after step 4 keeps the policy of step 3, which is the reference."""
    changes = {"algorithm.type": "online_dpo", "algorithm.reference_every": 3, "algorithm.kl_coef": 0.0}
    whole = task / train_here(task, write_config(task, "iterative-whole", GRPO, changes)).folder
    config = write_config(task, "iterative", GRPO, changes)
    killed_in_the_middle(task, config, after=5)
    succeeds(task, "train", config, "--resume", "auto")
    assert_same_run(task / "runs" / "iterative", whole, steps=8)


def test_sft(task: Path) -> None:
    train_here(task, write_config(task, "sft-whole", SFT))
    config = write_config(task, "sft", SFT)
    killed_in_the_middle(task, config, after=43)
    run, whole = task / "runs" / "sft", task / "runs" / "sft-whole"
    assert 43 <= num_lines(run / "metrics.jsonl") < 80, "the kill came too late to tell anything"
    succeeds(task, "train", config, "--resume", "auto")
    losses = [line["policy/loss"] for line in metrics_of(whole)]
    assert losses[-1] < 0.9 * losses[0]
    assert metrics_of(run) == metrics_of(whole)
    assert weights_of(run, 80) == weights_of(whole, 80)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dpo", {}),
        ("kto", KTO),
        ("reward", {"algorithm.type": "reward"}),
        ("process_reward", STEPS),
    ],
)
def test_from_data(task: Path, name: str, changes: dict) -> None:
    """What the reference said in the first epoch (of 5 steps) is in the checkpoint."""
    changes = {"loop.steps": 60, "loop.save_every": 15, **changes}
    train_here(task, write_config(task, f"{name}-whole", DPO, changes))
    config = write_config(task, name, DPO, changes)
    killed_in_the_middle(task, config, after=33)
    run, whole = task / "runs" / name, task / "runs" / f"{name}-whole"
    assert 33 <= num_lines(run / "metrics.jsonl") < 60, "the kill came too late to tell anything"
    succeeds(task, "train", config, "--resume", "auto")
    assert metrics_of(run) == metrics_of(whole)
    assert metrics_of(run, "eval.jsonl") == metrics_of(whole, "eval.jsonl")
    assert weights_of(run, 60) == weights_of(whole, 60)
    before, *_, after = metrics_of(whole, "eval.jsonl")
    if name == "process_reward":
        assert after["eval/step_accuracy"] > 0.9 and after["eval/first_error_accuracy"] > 0.8
    elif name == "kto":
        assert after["eval/good"] - after["eval/bad"] > before["eval/good"] - before["eval/bad"]
    else:
        assert after["eval/pair_accuracy"] > 0.9 and after["eval/margin"] > before["eval/margin"]


def test_a_teacher_on_data(task: Path) -> None:
    """Two passes over the rows; the second, after the kill, learns from what the teacher said in the first."""
    teacher = task / train_here(task, write_config(task, "kd-teacher", SFT, {"run.seed": 4})).folder
    changes = {
        "algorithm.type": "kd", "algorithm.teacher_temperature": 2.0, "algorithm.teacher_top_k": 16, "loop.steps": 60,
        "teacher.path": str(teacher / "checkpoints" / "step-000080"), "algorithm.sft_coef": 0.1,
        "algorithm.neftune_alpha": 1.0, "loop.prompts_per_step": 4, "loop.save_every": 15,
    }  # fmt: skip
    train_here(task, write_config(task, "kd-whole", SFT, changes))
    config = write_config(task, "kd", SFT, changes)
    killed_in_the_middle(task, config, after=33)
    run, whole = task / "runs" / "kd", task / "runs" / "kd-whole"
    assert 33 <= num_lines(run / "metrics.jsonl") < 60, "the kill came too late to tell anything"
    succeeds(task, "train", config, "--resume", "auto")
    assert metrics_of(run) == metrics_of(whole)
    assert weights_of(run, 60) == weights_of(whole, 60)
    assert len(list((run / "teacher_top").glob("step-*.safetensors"))) == 25, "100 rows, 4 a step, each asked for once"
    distances = [line["teacher/distance"] for line in metrics_of(whole)]
    assert sum(distances[-10:]) < 0.9 * sum(distances[:10])


def test_a_finished_run_has_nothing_left_to_do(task: Path, uninterrupted: Path) -> None:
    before = metrics_of(uninterrupted), metrics_of(uninterrupted, "eval.jsonl")
    train_here(task, "uninterrupted.yaml", resume="auto")
    assert (metrics_of(uninterrupted), metrics_of(uninterrupted, "eval.jsonl")) == before
