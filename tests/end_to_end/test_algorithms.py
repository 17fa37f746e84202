"""Every algorithm trains: a few steps of each on the small task, with the roles that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlft.config.algorithm import FROM_DATA, PRESETS
from tests.running import DPO, GRPO, metrics_of, rollouts_of, train_here, weights_of, write_config

SHORT: dict[str, Any] = {"loop.steps": 3, "loop.save_every": 0, "algorithm.kl_coef": 0.0}
MORE: dict[str, dict[str, Any]] = {  # what an algorithm needs besides its name
    "rft": {"algorithm.accept_reward": 0.25},
    "online_dpo": {},
    "ppo": {"critic.lr": 1e-3, "algorithm.kl_coef": 0.05},
    "reinforce_pp": {"algorithm.kl_coef": 0.05},
    "rloo": {"algorithm.kl_coef": 0.05},
}


def run(task: Path, name: str, changes: dict[str, Any]) -> Path:
    config = write_config(task, name, GRPO, {**SHORT, **changes})
    return task / train_here(task, config).folder


@pytest.fixture(scope="module")
def teacher(task: Path) -> str:
    """A checkpoint of another run, with the same vocabulary."""
    changes = {"run.seed": 3, "learner.lr": 3e-3, "loop.steps": 6}
    return str(run(task, "teacher", changes) / "checkpoints" / "step-000006")


@pytest.mark.parametrize("name", [n for n in PRESETS if n not in (*FROM_DATA, "distill", "grpo")])
def test_trains(task: Path, name: str) -> None:
    folder = run(task, f"type-{name}", {"algorithm.type": name, **MORE.get(name, {})})
    lines = metrics_of(folder)
    assert [line["policy/skipped_updates"] for line in lines] == [0, 0, 0]
    assert any(line["policy/grad_norm"] > 0 for line in lines)
    assert all(line["samples/trained"] > 0 for line in lines)
    if name == "ppo":
        assert all(line["critic/grad_norm"] > 0 and line["critic/value_mean"] != 0 for line in lines[1:])
        assert lines[0]["critic/return_mean"] == pytest.approx(lines[0]["reward/mean"], abs=0.1), "values begin with 0"
        rows = rollouts_of(folder)
        each = [row for row in rows if row["advantages"] is not None]
        assert len(each) > len(rows) / 2 and all(len(row["advantages"]) == row["num_tokens"] for row in each)
    if name == "rft":
        rows = rollouts_of(folder)
        assert all((row["advantage"] == 1) is (row["reward"] >= 0.25) for row in rows)
        assert {row["advantage"] for row in rows} == {1, None}
    if name == "online_dpo":
        assert all(0 <= line["preference/accuracy"] <= 1 for line in lines)
        groups = {row["prompt_id"] for row in rollouts_of(folder) if row["advantage"] is not None}
        for group in groups:
            mine = {row["advantage"]: row["reward"] for row in rollouts_of(folder) if row["prompt_id"] == group}
            assert mine[1] > mine[-1]


@pytest.mark.parametrize("name", ["ipo", "cpo", "orpo", "simpo"])
def test_learns_from_pairs(task: Path, name: str) -> None:
    changes = {"algorithm.type": name, "loop.steps": 10, "loop.save_every": 0}
    folder = task / train_here(task, write_config(task, f"pairs-{name}", DPO, changes)).folder
    first, *_, last = metrics_of(folder)
    assert last["policy/loss"] < first["policy/loss"]
    assert last["preference/margin"] > first["preference/margin"]
    before, last = metrics_of(folder, "eval.jsonl")[:: len(metrics_of(folder, "eval.jsonl")) - 1]
    assert last["eval/margin"] > before["eval/margin"]


def test_a_critic_may_learn_first(task: Path) -> None:
    changes = {
        "algorithm.type": "ppo",
        "critic.lr": 1e-3,
        "critic.alone_steps": 2,
        "loop.save_every": 1,
        "loop.keep_checkpoints": 5,
        "learner.schedule": "constant",
    }
    folder = run(task, "alone", {**changes, "loop.steps": 4})
    first, second, third, fourth = [weights_of(folder, step) for step in range(1, 5)]
    assert first == second != third != fourth
    lines = metrics_of(folder)
    assert ["policy/loss" in line for line in lines] == [False, False, True, True]
    assert all(line["critic/grad_norm"] > 0 for line in lines)


@pytest.mark.parametrize("signal", ["sampled", "reverse_kl", "forward_kl", "js"])
@pytest.mark.parametrize("mixed", [False, True])
def test_distills(task: Path, teacher: str, signal: str, mixed: bool) -> None:
    """From a teacher alone, without any reward function, and beside rewards."""
    changes: dict[str, Any] = {
        "algorithm.type": "distill", "teacher.path": teacher, "algorithm.teacher_signal": signal,
        "loop.steps": 8, "algorithm.group_size": 4, "learner.lr": 1e-2,
    }  # fmt: skip
    if signal != "sampled":
        changes["algorithm.teacher_top_k"] = 16
    if mixed:
        changes |= {"algorithm.type": "grpo", "algorithm.teacher_coef": 0.5}
    else:
        changes["rewards.functions"] = []
        changes["evaluation.path"] = None
    folder = run(task, f"distill-{signal}-{mixed}", changes)
    lines = metrics_of(folder)
    assert all(line["policy/grad_norm"] > 0 for line in lines)
    if signal != "sampled" and not mixed:
        assert lines[-1]["teacher/distance"] < 0.9 * lines[0]["teacher/distance"]


MINE = """
import torch


def my_loss(logprobs, old_logprobs, advantages):
    ratio = torch.exp(logprobs - old_logprobs)
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)


def summed(logprobs, advantages):
    return -(logprobs * advantages).sum()


def greedy(logprobs, temperature):
    return -logprobs


def bold(logprobs, advantages, entropy):
    return -logprobs * advantages - entropy


def detached(logprobs, advantages):
    return -(logprobs.detach() * advantages)


def positional(logprobs, /):
    return -logprobs


def broken(logprobs):
    return logprobs / missing


def to_reference(logprobs, ref_logprobs):
    return (logprobs - ref_logprobs) ** 2
"""


def test_a_loss_from_a_users_file(task: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """One function, one line. This one is PPO's clip, so the run is GRPO's to the digit."""
    (task / "my_file.py").write_text(MINE)
    mine = run(task, "mine", {"algorithm.type": "my_file.py:my_loss"})
    ours = run(task, "ours", {})
    assert weights_of(mine, 3) == weights_of(ours, 3)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("my_file.py:summed", "my_file.py:summed returned (). Expected a tensor"),
        (
            "my_file.py:greedy",
            "my_file.py:greedy asks for temperature. A policy loss is offered logprobs, old_logprobs",
        ),
        ("my_file.py:nothing", "my_file.py has no function 'nothing'. Functions there: my_loss, summed, greedy"),
        ("my_file.py:detached", "returned a torch.float32 tensor that does not depend on the policy"),
        ("my_file.py:positional", "my_file.py:positional has positional-only parameters"),
        ("my_file.py:broken", "my_file.py:broken raised NameError: name 'missing' is not defined, at "),
        ("not_there.py:loss", 'algorithm.type: the file "not_there.py" does not exist. Near it: my_file.py'),
    ],
)
def test_a_loss_that_does_not_fit_is_bad_input(
    task: Path, function: str, words: str, capsys: Any, monkeypatch: Any
) -> None:
    from rlft import cli

    (task / "my_file.py").write_text(MINE)
    monkeypatch.chdir(task)
    config = write_config(task, "bad", GRPO, {**SHORT, "algorithm.type": function})
    assert cli.main(["train", config, "--run.name", f"bad-{function.replace('/', '-')}"]) == 2
    assert words in capsys.readouterr().err


def test_a_users_loss_may_use_the_entropy(task: Path) -> None:
    """It has a gradient then: the policy stays more uncertain than without."""
    (task / "my_file.py").write_text(MINE)
    ends = []
    for name in ("my_loss", "bold"):
        changes = {"algorithm.type": f"my_file.py:{name}", "learner.schedule": "constant", "loop.steps": 6}
        ends.append(metrics_of(run(task, f"entropy-{name}", changes))[-1]["policy/entropy"])
    assert ends[1] > ends[0] + 1e-3


def test_a_users_loss_may_use_the_reference(task: Path) -> None:
    """Also in a step that has nothing to train on."""
    (task / "my_file.py").write_text(MINE)
    (task / "flat.py").write_text("def same(completions, **columns):\n    return [1.0] * len(completions)\n")
    changes = {"algorithm.type": "my_file.py:to_reference", "algorithm.kl_coef": 0.1}
    idle = metrics_of(run(task, "to-reference", changes | {"rewards.functions": [{"function": "flat.py:same"}]}))
    assert [line["samples/trained"] for line in idle] == [0, 0, 0]
    busy = metrics_of(run(task, "to-reference-busy", changes))
    assert all(line["samples/trained"] > 0 for line in busy)


def test_teachers_of_another_size(task: Path, teacher: str, capsys: Any, monkeypatch: Any) -> None:
    """More tokens asked for than there are; a teacher with rows behind its vocabulary; one that is not there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlft import cli

    wide = AutoModelForCausalLM.from_pretrained(teacher)
    wide.resize_token_embeddings(80)
    wide.save_pretrained(task / "wide")
    AutoTokenizer.from_pretrained(teacher).save_pretrained(task / "wide")
    changes = {"algorithm.type": "distill", "algorithm.teacher_signal": "forward_kl", "algorithm.teacher_top_k": 100}
    run(task, "wide-teacher", {**changes, "teacher.path": str(task / "wide")})
    monkeypatch.chdir(task)
    config = write_config(task, "no-teacher", GRPO, {**SHORT, **changes, "teacher.path": "./nothere"})
    assert cli.main(["train", config]) == 2
    assert 'teacher.path: "./nothere" does not exist' in capsys.readouterr().err


def test_kl_adapts(task: Path) -> None:
    changes = {"algorithm.kl_coef": 0.1, "algorithm.kl_target": 1e-4, "algorithm.kl_horizon": 32, "loop.steps": 6}
    lines = metrics_of(run(task, "adapts", {**changes, "learner.lr": 1e-2}))
    coefs = [line["kl/coef"] for line in lines]
    assert coefs[0] == 0.1 and coefs[-1] > 0.12, "the policy moves further than it should, so it is held more firmly"


def test_high_entropy_tokens_only(task: Path) -> None:
    lines = metrics_of(run(task, "uncertain", {"algorithm.entropy_share": 0.2, "algorithm.entropy_coef": 0.01}))
    assert all(line["policy/grad_norm"] > 0 for line in lines)


def test_iterative_dpo_renews_its_reference(task: Path) -> None:
    """After each renewal the policy is its own reference: the margin begins at 0 again."""
    changes = {"algorithm.type": "online_dpo", "algorithm.reference_every": 2, "loop.steps": 4, "learner.lr": 1e-2}
    lines = metrics_of(run(task, "iterative", changes))
    margins = [abs(line["preference/margin"]) for line in lines]
    assert margins[0] == margins[2] == 0 and margins[1] > 0 and margins[3] > 0
