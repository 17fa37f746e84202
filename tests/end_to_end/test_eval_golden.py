"""`rlft eval --golden`: a model that got better, and one that got worse, with the exit code that tells."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from rlft import cli
from tests.running import GRPO, SFT, fails, rlft, succeeds, train_here, write_config

SHAPE = """\
groups:
  form: {must_pass: true}
cases:
  - {name: six digits, group: form, prompt: "685324=", regex: "^[0-9]{6}$", max_tokens: 7}
  - {name: no letters, prompt: "123456=", not_contains: [a, b]}
"""


@pytest.fixture(scope="module")
def runs(task: Path) -> Path:
    """runs/sft, which has learned to write six digits and to stop; golden.yaml; damaged/, its weights with noise."""
    import torch
    from safetensors.torch import load_file, save_file

    train_here(task, write_config(task, "sft", SFT, {"loop.steps": 60}))
    (task / "golden.yaml").write_text(SHAPE)
    shutil.copytree(task / "runs/sft/checkpoints/step-000060", task / "damaged")
    weights = load_file(task / "damaged/model.safetensors")
    noise = torch.Generator().manual_seed(0)
    for tensor in weights.values():
        tensor += torch.randn(tensor.shape, generator=noise)
    save_file(weights, task / "damaged/model.safetensors", {"format": "pt"})
    return task


SHORT = ["--generator.max_new_tokens", "8"]


def test_a_model_that_got_better(runs: Path) -> None:
    out = succeeds(runs, "eval", "runs/sft", "--golden", "golden.yaml", *SHORT).stdout
    assert "golden set golden.yaml: 2 cases" in out
    (line,) = [line for line in out.splitlines() if line.startswith("six digits (must pass)")]
    assert line.split()[4:] == ["fail", "0/2", "pass", "better"]
    assert out.splitlines()[-1].startswith("fine: ")


def test_a_model_that_got_worse_is_exit_code_3(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = rlft(runs, "eval", "damaged", "--golden", "golden.yaml", "--against", "runs/sft", *SHORT)
    assert (done.returncode, done.stderr) == (3, "")
    assert "NOT FINE  worse than the base: six digits" in done.stdout
    assert "NOT FINE  must pass and does not: six digits" in done.stdout
    monkeypatch.chdir(runs)
    assert cli.main(["eval", "damaged", "--golden", "golden.yaml", "--against", "runs/sft", *SHORT]) == 3
    assert capsys.readouterr().out == done.stdout, "the same each time"


def test_what_the_base_says_may_be_the_golden_set(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A threshold alone, and nothing worse than itself."""
    monkeypatch.chdir(runs)
    cases = {"threshold": 1.0, "cases": [{"prompt": "111=", "equals": "never said"}]}
    Path("never.yaml").write_text(yaml.safe_dump(cases))
    assert cli.main(["eval", "runs/sft", "--golden", "never.yaml", "--against", "runs/sft", *SHORT]) == 3
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "NOT FINE  all: 0 of 1 cases pass (0), threshold 1"
    assert "worse" not in out


def test_an_adapter_is_compared_with_the_model_without_it(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"model": {"path": "runs/sft/checkpoints/step-000060", "adapter": {"type": "lora", "rank": 4}}}
    train_here(runs, write_config(runs, "lora", GRPO, {**changes, "loop.steps": 2, "learner.lr": 1.0}))
    monkeypatch.chdir(runs)
    code = cli.main(["eval", "runs/lora", "--golden", "golden.yaml"])
    out = capsys.readouterr().out
    assert "base  runs/sft/checkpoints/step-000060" in out and "now   runs/lora/checkpoints/step-000002" in out
    (line,) = [line for line in out.splitlines() if line.startswith("six digits")]
    assert line.split()[4] == "pass", "the base is the model that was trained before"
    assert code == 3 and "worse" in line, "a learning rate of 1 destroys an adapter"


def test_errors(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "typo.yaml").write_text("cases:\n  - prompt: x\n    contians: y\n")
    said = fails(2, rlft(runs, "eval", "runs/sft", "--golden", "typo.yaml"))
    assert "typo.yaml:3: cases.0.contians (case 1): unknown key; did you mean contains?" in said
    monkeypatch.chdir(runs)
    cases = {
        ("damaged", "--golden", "golden.yaml", *SHORT): "nothing says what it was: give --against BASE",
        ("runs/sft", "--golden", "golden.yaml", "--data", "x"): "--data has no effect with --golden",
        ("runs/sft", "--golden", "golden.yaml", "--temperature", "1"): "--temperature has no effect with --golden",
        ("runs/sft", "--golden", "golden.yaml", "--generator.temperature", "1"): "has no effect on a golden set",
        ("runs/sft", "--golden", "golden.yaml", "--against", "runs/stf"): "runs/stf: there is no such checkpoint",
        ("runs/sft", "--golden", "golden.yaml", "--generator.max_new_tokens", "4"): "is more than generator.max_new",
        ("runs/sft", "--golden", "golden.yaml"): "too long",
    }
    for words, expected in cases.items():
        assert cli.main(["eval", *words]) == 2, words
        err = capsys.readouterr().err
        assert err.startswith("error: ") and expected in err, err
