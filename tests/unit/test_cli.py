"""The command line, as people run it: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlft import __version__, cli
from rlft.cli import main
from rlft.errors import RunError

ROOT = Path(__file__).resolve().parents[2]
GOOD = "model: {tiny: {}}\nrewards: {functions: [{function: exact_match}]}\n"


def rlft(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlft", *words]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def write(folder: Path, text: str, name: str = "x.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_help_names_the_commands_and_an_example():
    done = rlft("--help")
    assert done.returncode == 0
    for word in ("quickstart", "train", "eval", "config", "rlft train configs/"):
        assert word in done.stdout
    assert rlft().stdout == done.stdout


@pytest.mark.parametrize(
    "command", [["quickstart"], ["train"], ["eval"], ["data", "inspect"], ["config", "show"], ["config", "check"]]
)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: rlft {' '.join(command)}" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = "import sys; from rlft.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print('LOADED', [name for name in ('torch', 'ray', 'numpy', 'pydantic', 'yaml') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("LOADED []\n")


def test_version():
    assert rlft("--version").stdout == f"rlft {__version__}\n"


def test_bad_input_is_one_message_and_exit_code_2(tmp_path):
    done = rlft("train", write(tmp_path, GOOD + "loop: {stpes: 3}\n"), "--algorithm.group_size", "1", "--data.path=a/b")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: 2 problems in ")
    assert "did you mean loop.steps?" in done.stderr
    assert "--algorithm.group_size: 1 sample" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_traceback_on_request():
    done = rlft("train", "nowhere.yaml", RLFT_TRACEBACK="1")
    assert "Traceback" in done.stderr
    assert "nowhere.yaml: there is no such configuration file" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: there is no such configuration file. Near it: configs/"),
        (["train", "x.yaml", "--group_size", "4"], "did you mean --algorithm.group_size?"),
        (["train", "x.yaml", "more"], 'unexpected argument "more"'),
        (["eval", "nowhere/run"], "nowhere/run: there is no such checkpoint or run folder"),
        (["quickstart", "--loop.steps", "3"], "takes no configuration keys, found --loop.steps"),
        (["config", "show"], "name a YAML file"),
        (["train", "configs/grpo_gsm8k_smoke.yaml"], "data.path: nothing to train on: give --data.path FILE"),
    ],
)
def test_mistakes_on_the_command_line(words, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_overrides_may_stand_anywhere(tmp_path, capsys):
    path = write(tmp_path, GOOD)
    for words in (
        ["config", "show", path, "--loop.steps", "7"],
        ["config", "show", "--loop.steps", "7", path],
        ["--loop.steps=7", "config", "show", path],
    ):
        assert main(words) == 0
        assert "steps: 7\n" in capsys.readouterr().out


def test_config_show_is_complete_and_loads_again(tmp_path, capsys):
    assert main(["config", "show", write(tmp_path, GOOD)]) == 0
    shown = capsys.readouterr().out
    assert "name: x\n" in shown
    assert main(["config", "show", write(tmp_path, shown, "y.yaml")]) == 0
    assert capsys.readouterr().out == shown


def test_config_show_all_keys(capsys):
    assert main(["config", "show", "--all-keys"]) == 0
    assert "loop.max_staleness: an integer, at least 0; default 0\n    Samples may be" in capsys.readouterr().out


def test_config_check_goes_through_all_files(tmp_path, capsys):
    bad, good = write(tmp_path, "loop: 3", "bad.yaml"), write(tmp_path, GOOD)
    assert main(["config", "check", bad, good]) == 2
    said = capsys.readouterr()
    assert f"ok: {good}" in said.out
    assert "note: data.path is empty" in said.out
    assert f"{bad}:1: loop: found 3" in said.err
    assert main(["config", "check", good]) == 0


def test_a_run_that_cannot_go_on_exits_with_1(monkeypatch, capsys):
    def fail(args, overrides):
        raise RunError("learner rank 0 died in step 3")

    monkeypatch.setattr(cli, "_config_check", fail)
    assert main(["config", "check", "x.yaml"]) == 1
    assert capsys.readouterr().err == "error: learner rank 0 died in step 3\n"


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    def stop(args, overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_train", stop)
    assert main(["train", "x.yaml"]) == 130
    assert "--resume auto" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(tmp_path):
    command = f"{sys.executable} -m rlft config show --all-keys | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.startswith("run: its name and place.")
