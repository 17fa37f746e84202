"""What people get wrong, from the command line: one message that names the thing, exit code 2, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlft import cli
from tests.running import GRPO, fails, metrics_of, rlft, train_here, write_config

GOOD_ROW = '{"prompt": "12=", "answer": "12"}\n'


@pytest.fixture(scope="module")
def trained(task: Path) -> Path:
    """A run with the checkpoints 2 and 4."""
    train_here(task, write_config(task, "trained", GRPO, {"loop.steps": 4}))
    return task / "runs" / "trained"


@pytest.fixture(scope="module")
def broken(task: Path) -> Path:
    """Files that are wrong in one way each."""
    (task / "malformed.jsonl").write_text(GOOD_ROW * 3 + '{"prompt": "34=", "answer": \n' + GOOD_ROW)
    (task / "not_an_object.jsonl").write_text(GOOD_ROW + '["12=", "12"]\n')
    (task / "empty.jsonl").write_text("\n")
    long_row = {"prompt": "1" * 100 + "=", "answer": "1"}
    (task / "long.jsonl").write_text(GOOD_ROW * 2 + json.dumps(long_row) + "\n")
    write_config(task, "base", GRPO)
    return task


# What each case gives to `rlft train base.yaml`, and what the message must say.
BEFORE_ANYTHING_STARTS = {
    "missing data file": (["--data.path", "trian.jsonl"], ["data.path", "trian.jsonl", "train.jsonl"]),
    "unknown reward": (["--rewards.functions.0.function", "exact_mach"], ["exact_mach", "did you mean 'exact_match'?"]),
    "unknown function": (
        ["--rewards.functions.0.function", "my_rewards.py:share_of_digit"],
        ["share_of_digit", "share_of_digits"],
    ),
    "unknown key": (["--algorithm.group_sise", "4"], ["algorithm.group_sise", "did you mean algorithm.group_size?"]),
    "unknown option": (["--resum", "auto"], ["--resum", "did you mean --resume?"]),
    "wrong type": (["--loop.steps", "many"], ["loop.steps", "many", "an integer"]),
    "group of one": (["--algorithm.group_size", "1"], ["algorithm.group_size", "at least 2"]),
    "reward file": (
        ["--rewards.functions.0.function", "my_reward.py:share_of_digits"],
        ["rewards.functions.0.function", "my_reward.py", "my_rewards.py"],
    ),
    "no model there": (
        ["--model.path", "./no/such/model", "--model.tiny", "null"],
        ["model.path", "no/such/model", "does not exist"],
    ),
}
ONCE_THE_INPUT_IS_READ = {
    "malformed row": (["--data.path", "malformed.jsonl"], ["malformed.jsonl", "line 4", "JSON"]),
    "row of the wrong kind": (["--data.path", "not_an_object.jsonl"], ["not_an_object.jsonl", "line 2", "a list"]),
    "empty data set": (["--data.path", "empty.jsonl"], ["empty.jsonl", "no rows"]),
    "too long prompt": (["--data.path", "long.jsonl"], ["long.jsonl:3", "101 tokens", "window 64", "data.too_long"]),
    "reward of wrong length": (
        ["--rewards.functions.0.function", "my_rewards.py:one_too_few"],
        ["one_too_few", "4", "3"],
    ),
    "model that is none": (["--model.path", "./runs", "--model.tiny", "null"], ["model.path: ./runs has no tokenizer"]),
    "model on no hub": (
        ["--model.path", "nobody/no-such-model", "--model.tiny", "null"],
        ["model.path", "nobody/no-such-model", "no such folder here, nor on the Hub"],
    ),
}
IN_A_PROCESS = (
    "missing data file",
    "unknown key",
    "malformed row",
    "too long prompt",
    "reward of wrong length",
    "no model there",
)
CASES = BEFORE_ANYTHING_STARTS | ONCE_THE_INPUT_IS_READ


@pytest.mark.parametrize("case", CASES)
def test_bad_input(
    broken: Path, trained: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, expected = CASES[case]
    name = "bad-" + case.replace(" ", "-")
    arguments = ["train", "base.yaml", "--run.name", name, *words]
    if case in IN_A_PROCESS:
        err = fails(2, rlft(broken, *arguments))
    else:
        monkeypatch.chdir(broken)
        assert cli.main(arguments) == 2
        err = capsys.readouterr().err
        assert err.count("error: ") == 1
    message = err[err.index("error: ") :]
    assert all(word in message for word in expected), message
    assert (broken / "runs" / name).exists() is (case in ONCE_THE_INPUT_IS_READ)


def test_a_start_that_failed_does_not_stand_in_the_way(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mend what was wrong, and the same command works, with the model that it now asks for."""
    monkeypatch.chdir(broken)
    words = ["train", "base.yaml", "--run.name", "again", "--loop.steps", "1", "--data.path", "long.jsonl"]
    assert cli.main(words) == 2
    assert cli.main([*words, "--model.tiny.max_length", "128"]) == 0
    model = json.loads((broken / "runs" / "again" / "model" / "config.json").read_text())
    assert model["max_position_embeddings"] == 128


def test_existing_run_folder(task: Path, trained: Path) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    err = fails(2, rlft(task, "train", "trained.yaml"))
    assert "runs/trained" in err and "--resume auto" in err and "--run.name" in err
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_resume_with_another_configuration(
    task: Path, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task)
    assert cli.main(["train", "trained.yaml", "--resume", "auto", "--learner.lr", "0.5"]) == 2
    assert "learner.lr: was 0.01, now 0.5" in capsys.readouterr().err


def test_corrupt_newest_checkpoint(task: Path) -> None:
    """One flipped bit: the one before is used, loudly, and the run ends where it would have."""
    train_here(task, write_config(task, "whole", GRPO, {"loop.steps": 6}))
    config = write_config(task, "corrupt", GRPO, {"loop.steps": 4})
    train_here(task, config)
    run = task / "runs" / "corrupt"
    weights = run / "checkpoints" / "step-000004" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = rlft(task, "train", config, "--resume", "auto", "--loop.steps", "6")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert any("step-000004 is corrupt and not used: model.safetensors has SHA-256" in line for line in lines), lines
    assert any("step-000002 is the newest checkpoint that is whole" in line for line in lines), lines
    assert "step=3/6" in done.stderr
    assert (run / "checkpoints" / "step-000004.corrupt").is_dir()
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3, 4, 5, 6]
