"""The run folder: who may write it, and from where a run goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlft.config import Config
from rlft.errors import RunError, UserError
from rlft.runs.checkpoints import Checkpoints
from rlft.runs.folder import RunFolder, config_changes

ROOT = Path(__file__).parents[2]


def config(**sections: object) -> str:
    return yaml.safe_dump(Config.model_validate(sections).model_dump(mode="json"))


def start(path: Path, resume: str | None = None, text: str | None = None) -> RunFolder:
    return RunFolder.create(path, text if text is not None else config(), resume)


def save(path: Path, *steps: int) -> None:
    for step in steps:
        Checkpoints(path / "checkpoints", keep=9).save(step, {}, lambda folder: (folder / "w").write_text("w"))


def test_a_new_folder(tmp_path: Path):
    with start(tmp_path / "runs" / "a") as run:
        assert run.resumed is None and run.messages == []
        assert run.config_path.read_text() == config()
        assert run.rollouts.is_dir() and run.logs.is_dir() and run.tensorboard.is_dir() and run.checkpoints.is_dir()


def test_an_existing_run_needs_resume(tmp_path: Path):
    start(tmp_path / "a").close()
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"runs?.*a: already holds a run.*--resume auto.*--run.name or --run.dir"):
        start(tmp_path / "a")


def test_an_existing_folder_without_a_run_is_fine(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    start(tmp_path).close()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "config.yaml").is_file()


def test_a_start_that_failed_is_no_run(tmp_path: Path):
    start(tmp_path).close()
    (tmp_path / "metrics.jsonl").touch()
    new = config(loop={"steps": 9})
    start(tmp_path, text=new).close()
    assert (tmp_path / "config.yaml").read_text() == new
    assert not list(tmp_path.glob("*before-resume*"))


def test_a_file_or_a_closed_folder_in_the_way(tmp_path: Path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        start(tmp_path / "a")
    with pytest.raises(UserError, match="cannot be made"):
        start(tmp_path / "a" / "b", resume="auto")


def test_auto_without_a_folder_or_checkpoint_starts_from_the_beginning(tmp_path: Path):
    for _ in range(2):
        with start(tmp_path / "a", "auto") as run:
            assert run.resumed is None and "starting from the beginning" in run.messages[0]


def test_auto_takes_the_newest_good_checkpoint(tmp_path: Path):
    start(tmp_path).close()
    save(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / ".tmp-step-000003-77").mkdir()
    (tmp_path / "checkpoints" / "step-000002" / "w").write_text("v")
    with start(tmp_path, "auto") as run:
        assert run.resumed == (tmp_path / "checkpoints" / "step-000001", {"step": 1})
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-000001", "step-000002.corrupt"]
    (run.checkpoints / "step-000001" / "w").unlink()
    with pytest.raises(RunError, match="w is missing"):
        start(tmp_path, "auto")
    start(tmp_path, "auto").close()  # the lock was given back, and what is left is kept aside


def test_a_chosen_checkpoint_puts_the_later_ones_aside(tmp_path: Path):
    start(tmp_path).close()
    save(tmp_path, 1, 2, 3)
    with start(tmp_path, str(tmp_path / "checkpoints" / "step-000002")) as run:
        assert run.resumed == (run.checkpoints / "step-000002", {"step": 2})
    aside = run.checkpoints / "step-000003.before-resume-1"
    assert Checkpoints(run.checkpoints, 9).paths() == [run.checkpoints / f"step-00000{i}" for i in (1, 2)]
    with start(tmp_path, str(aside)) as run:  # and back again
        assert run.resumed == (run.checkpoints / "step-000003", {"step": 3})


@pytest.mark.parametrize("chosen", ["nowhere", "elsewhere", "checkpoints"])
def test_a_chosen_checkpoint_must_be_one_of_this_run(tmp_path: Path, chosen: str):
    start(tmp_path).close()
    save(tmp_path, 1)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match=r"(?s)--resume .*is not a.*step-000001"):
        start(tmp_path, str(tmp_path / chosen))


def test_a_chosen_checkpoint_that_is_corrupt(tmp_path: Path):
    start(tmp_path).close()
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-000001" / "w").write_text("v")
    with pytest.raises(UserError, match="w has SHA-256"):
        start(tmp_path, str(tmp_path / "checkpoints" / "step-000001"))


def test_resume_with_another_configuration(tmp_path: Path):
    start(tmp_path, text=config(learner={"lr": 0.001}, loop={"steps": 5})).close()
    save(tmp_path, 1)
    changed = config(learner={"lr": 0.002, "cpus": 2}, loop={"steps": 9}, rewards={"functions": [{"function": "math"}]})
    with pytest.raises(UserError) as caught:
        start(tmp_path, "auto", changed)
    message = str(caught.value)
    assert "learner.lr: was 0.001, now 0.002" in message and "rewards.functions" in message
    assert "loop.steps" not in message and "cpus" not in message
    assert "config.yaml" in message and "--run.name" in message


def test_keys_that_may_change(tmp_path: Path):
    rewards = {"functions": [{"function": "math", "timeout_s": 5}]}
    old = config(rewards=rewards)
    start(tmp_path, text=old).close()
    save(tmp_path, 1)
    rewards = {"functions": [{"function": "math", "timeout_s": 9}], "num_actors": 3, "resources": {"cpu_node": 1}}
    new = config(
        rewards=rewards,
        run={"dir": "elsewhere"},
        loop={"steps": 9, "save_every": 2, "keep_checkpoints": 5},
        evaluation={"path": "test.jsonl"},
        tracking={"tensorboard": False},
        cluster={"mode": "inline", "stage_timeout_s": 5},
    )
    start(tmp_path, "auto", new).close()
    assert (tmp_path / "config.yaml").read_text() == new
    assert (tmp_path / "config.before-resume-1.yaml").read_text() == old


def test_config_changes_by_dotted_key():
    assert config_changes("a: {b: [1, {c: 2}]}", "a: {b: [1, {c: 3}], d: {}}") == [
        ("a.b.1.c", "2", "3"),
        ("a.d", "(absent)", "{}"),
    ]
    assert config_changes("loop: {steps: 100}", config()) == []  # a default that was not written down


HOLD = """
import os, sys, time
from pathlib import Path
from rlft.runs.folder import RunFolder
run = RunFolder.create(Path(sys.argv[1]), "", "auto")
with_child = len(sys.argv) > 2
if with_child and os.fork() == 0:  # a child that outlives the run must not keep its lock
    print("holding", flush=True)  # the child says it: it has given the lock back by now
    time.sleep(30)
    os._exit(0)
if not with_child:
    print("holding", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("with_child", [False, True])
def test_two_live_processes_cannot_write_one_folder(tmp_path: Path, with_child: bool):
    args = [sys.executable, "-c", HOLD, str(tmp_path), *(["child"] if with_child else [])]
    process = subprocess.Popen(args, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "holding\n"
        with pytest.raises(UserError, match=rf"another live process is writing it \(pid {process.pid} on "):
            start(tmp_path, "auto", "")
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        start(tmp_path, "auto", "").close()
    finally:
        os.killpg(process.pid, signal.SIGKILL) if with_child else process.kill()
