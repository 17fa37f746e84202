"""`rlft eval`: what a run measured of its checkpoints is what the command measures of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from actors.evaluate import evaluate
from rlft import cli
from rlft.errors import UserError
from rlft.evaluation import text_metrics
from rlft.runs.metrics import read_metrics
from tests.running import DPO, GRPO, KTO, SFT, changed, fails, rlft, succeeds, train_here, write_config, write_files

EVALUATED = {
    "loop.steps": 4, "evaluation.path": "eval.jsonl", "evaluation.max_rows": 10, "evaluation.every": 2,
    "evaluation.temperature": 1.0, "evaluation.samples_per_prompt": 3, "evaluation.pass_threshold": 0.25,
}  # fmt: skip


@pytest.fixture(scope="module")
def full(task: Path) -> Path:
    train_here(task, write_config(task, "full", GRPO, EVALUATED))
    return task / "runs" / "full"


def answers(out: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in out.splitlines())


def logged(run: Path, step: int) -> dict[str, str]:
    (line,) = [line for line in read_metrics(run / "eval.jsonl") if line["step"] == step]
    return {key: f"{value:.4g}" for key, value in line.items() if key != "step"}


def test_a_run_and_a_checkpoint(
    task: Path, full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = answers(succeeds(task, "eval", "runs/full").stdout)
    assert newest.pop("checkpoint") == "runs/full/checkpoints/step-000004"
    assert newest == logged(full, 4)
    assert {"eval/accuracy", "eval/pass@3", "eval/reward_mean", "eval/failed"} <= newest.keys()
    monkeypatch.chdir(task)
    assert cli.main(["eval", "runs/full/checkpoints/step-000002"]) == 0
    older = answers(capsys.readouterr().out)
    assert older.pop("checkpoint") == "runs/full/checkpoints/step-000002"
    assert older == logged(full, 2) != newest


def test_an_adapter(task: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lora = {**EVALUATED, "model.adapter": {"type": "lora", "rank": 4}, "learner.lr": 0.1}
    train_here(task, write_config(task, "lora", GRPO, lora))
    monkeypatch.chdir(task)
    assert cli.main(["eval", "runs/lora"]) == 0
    found = answers(capsys.readouterr().out)
    found.pop("checkpoint")
    run = task / "runs" / "lora"
    assert found == logged(run, 4) != logged(run, 0), "the adapter counts"


@pytest.mark.parametrize("kind", ["prompt", "p_tuning", "prefix", "p_tuning_v2"])
def test_virtual_tokens(
    task: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Checkpoints hold what the encoder of virtual tokens made, and no encoder."""
    changes = {**EVALUATED, "model.adapter": {"type": kind, "num_tokens": 4}, "learner.lr": 0.1}
    train_here(task, write_config(task, kind, GRPO, changes))
    monkeypatch.chdir(task)
    assert cli.main(["eval", f"runs/{kind}"]) == 0
    found = answers(capsys.readouterr().out)
    found.pop("checkpoint")
    run = task / "runs" / kind
    assert found == logged(run, 4) != logged(run, 0), "the virtual tokens count"
    assert cli.main(["eval", f"runs/{kind}", "--generator.engine", "vllm"]) == 2
    assert f"{kind} cannot be served by vLLM" in capsys.readouterr().err


def test_other_data_and_samples(
    task: Path, full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task)
    assert cli.main(["eval", "runs/full", "--data", "train.jsonl", "--samples", "5", "--evaluation.max_rows", "4"]) == 0
    found = answers(capsys.readouterr().out)
    assert "eval/pass@5" in found and found != logged(full, 4)
    before = (full / "eval.jsonl").read_bytes()
    assert cli.main(["eval", "runs/full", "--temperature", "0", "--samples", "1"]) == 0
    assert "eval/pass@1" not in answers(capsys.readouterr().out)
    assert (full / "eval.jsonl").read_bytes() == before, "the run's own record stays as it was"


def test_errors(task: Path, full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "runs/ful:" in (err := fails(2, rlft(task, "eval", "runs/ful"))) and "runs/full" in err
    monkeypatch.chdir(task)
    (task / "runs" / "nothing").mkdir()
    cases = {
        ("runs/nothing",): "is neither a run folder nor a checkpoint in one",
        ("runs/full", "--data", "evil.jsonl"): "eval.jsonl",
        ("runs/full", "--samples", "2", "--temperature", "0"): "evaluation.samples_per_prompt",
        ("runs/full", "--cluster.mode", "local"): "leave the key out",
        ("runs/full", "--evaluation.max_row", "3"): "did you mean evaluation.max_rows?",
    }
    for words, expected in cases.items():
        assert cli.main(["eval", *words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and expected in err, err


def test_a_run_without_held_out_data_or_with_a_corrupt_checkpoint(
    task: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import running

    def share_of_digits(completions, **columns):
        return [1.0 for _ in completions]

    config = changed(running.GRPO, {"loop.steps": 2, "run.name": "script"})
    del config["rewards"]
    train_here(task, config, rewards=[share_of_digits])  # type: ignore[arg-type]
    monkeypatch.chdir(task)
    assert cli.main(["eval", "runs/script"]) == 2
    assert "--data FILE" in capsys.readouterr().err
    assert cli.main(["eval", "runs/script", "--data", "eval.jsonl"]) == 2
    assert "reward" in capsys.readouterr().err
    words = ["--data", "eval.jsonl", "--rewards.functions", "[{function: exact_match}]"]
    words += ["--generator.max_new_tokens", "8"]
    assert cli.main(["eval", "runs/script", *words]) == 0
    weights = task / "runs" / "script" / "checkpoints" / "step-000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    capsys.readouterr()
    assert cli.main(["eval", "runs/script/checkpoints/step-000002", *words]) == 2
    assert "the checkpoint is corrupt: model.safetensors has" in capsys.readouterr().err


def test_a_run_that_many_shared_is_evaluated_by_one(tmp_path: Path) -> None:
    """What shared the work of the run does not matter here, and needs no flag."""
    write_files(tmp_path)
    run = tmp_path / train_here(tmp_path, write_config(tmp_path, "many", GRPO, {"loop.steps": 1})).folder
    config = (run / "config.yaml").read_text().replace("num_ranks: 1", "num_ranks: 2")
    config = config.replace("mode: inline", "mode: local")
    (run / "config.yaml").write_text(config.replace("num_actors: 1", "num_actors: 2"))
    with contextlib.chdir(tmp_path):
        metrics = evaluate(str(run), ["--evaluation.path=eval.jsonl"])
    assert 0 <= metrics["eval/accuracy"] <= 1


def test_text_metrics_in_a_run_and_of_it(
    task: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = {"evaluation.metrics": ["exact_match", "f1", "rougeL", "bleu"], "evaluation.reference_column": "answer"}
    train_here(task, write_config(task, "texts", GRPO, {**EVALUATED, **metrics, "loop.steps": 1}))
    monkeypatch.chdir(task)
    assert cli.main(["eval", "runs/texts"]) == 0
    found = answers(capsys.readouterr().out)
    found.pop("checkpoint")
    assert found == logged(task / "runs" / "texts", 1)
    assert {"eval/accuracy", "eval/exact_match", "eval/f1", "eval/rougeL", "eval/bleu", "eval/pass@2"} <= found.keys()


def test_a_supervised_run_is_compared_with_text_alone(
    task: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(task, write_config(task, "sft", SFT, {"loop.steps": 60, "generator": {}}))
    monkeypatch.chdir(task)
    words = ["eval", "runs/sft", "--data", "train.jsonl", "--generator.max_new_tokens", "8", "--evaluation.metrics"]
    assert cli.main([*words, "[rouge1, f1]"]) == 2
    assert "evaluation.reference_column: is empty" in capsys.readouterr().err
    assert cli.main([*words, "[rouge1, f1]", "--evaluation.reference_column", "anwser"]) == 2
    assert "Did you mean 'answer'?" in capsys.readouterr().err
    assert cli.main([*words, "[rouge1, f1]", "--evaluation.reference_column", "answer"]) == 0
    found = answers(capsys.readouterr().out)
    assert {"eval/rouge1", "eval/f1", "eval/length_mean"} <= found.keys()
    assert "eval/accuracy" not in found
    assert found["rewards"].startswith("none")


def test_a_missing_package_is_told_before_anything_starts(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_metrics, "find_spec", lambda module: None)
    metrics = {"evaluation.metrics": ["bleu"], "evaluation.reference_column": "answer"}
    with pytest.raises(UserError, match=r"bleu cannot be computed, because sacrebleu is not installed here"):
        train_here(task, write_config(task, "without", GRPO, {**EVALUATED, **metrics}))
    assert not (task / "runs" / "without").exists()


@pytest.mark.parametrize("name", ["dpo", "kto", "reward", "orpo"])
def test_a_run_that_learns_from_data_is_measured_on_rows(
    task: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"algorithm.type": name, "loop.steps": 4, "loop.save_every": 2, "evaluation.every": 2}
    changes |= KTO if name == "kto" else {}
    train_here(task, write_config(task, f"rows-{name}", DPO, changes))
    monkeypatch.chdir(task)
    for step, target in ((4, f"runs/rows-{name}"), (2, f"runs/rows-{name}/checkpoints/step-000002")):
        assert cli.main(["eval", target]) == 0
        found = answers(capsys.readouterr().out)
        assert found.pop("checkpoint").endswith(f"step-00000{step}")
        assert found == logged(task / "runs" / f"rows-{name}", step)
    words = ["--data", "eval.jsonl", "--rewards.functions", "[{function: exact_match}]"]
    words += ["--generator.max_new_tokens", "8"]
    assert cli.main(["eval", f"runs/rows-{name}", *words]) == (2 if name == "reward" else 0)
    said = capsys.readouterr()
    assert "draws nothing" in said.err if name == "reward" else "eval/accuracy" in said.out
