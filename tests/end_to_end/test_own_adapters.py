"""Runs with adapters that are ours: they resume exactly, and `rlft eval` measures of a checkpoint what the run did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlft import cli
from tests.end_to_end.test_eval import answers, logged
from tests.end_to_end.test_resume import assert_same_run, killed_in_the_middle
from tests.running import GRPO, SFT, metrics_of, succeeds, train_here, write_config

HELD_OUT = {"evaluation.path": "marked.jsonl", "evaluation.max_rows": 10, "evaluation.every": 4}
DRAWN = {**HELD_OUT, "evaluation.temperature": 1.0, "evaluation.samples_per_prompt": 3}
DROP = {"model.tiny.num_layers": 3, "model.adapter": {"type": "lora_drop", "sample_steps": 3, "keep_share": 0.3}}
TASKS = {"type": "lora_experts", "num_experts": 2, "rank": 4, "tasks": ["even", "odd"]}
MIXED = {
    "data": {"mixture": [{"path": f"{name}.jsonl", "completion_column": "answer"} for name in ("even", "odd")]},
    "model.adapter": TASKS, "evaluation.source_column": "kind",
}  # fmt: skip
KINDS = {
    "bottleneck": {"model.adapter": {"type": "bottleneck", "bottleneck_size": 8}},
    "delta_lora": {"model.adapter": {"type": "delta_lora", "rank": 4, "delta_start": 2}},
    "lora_experts": {**MIXED, "data": {"mixture": [{"path": "even.jsonl"}, {"path": "odd.jsonl"}]}},
}


@pytest.fixture(scope="module", autouse=True)
def marked(task: Path) -> None:
    """Rows of two sources, and held-out rows that say which they are of."""
    for file, out in (("train.jsonl", None), ("eval.jsonl", "marked.jsonl")):
        rows = [json.loads(line) for line in (task / file).read_text().splitlines()]
        rows = [row | {"kind": "even" if i % 2 else "odd"} for i, row in enumerate(rows)]
        for name in ("even", "odd") if out is None else (out,):
            kept = [row for row in rows if out or row["kind"] == name]
            (task / (out or f"{name}.jsonl")).write_text("".join(json.dumps(row) + "\n" for row in kept))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_is_measured_by_the_command_as_by_itself(
    task: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(task, write_config(task, f"own-{kind}", GRPO, {**DRAWN, **KINDS[kind], "learner.lr": 0.1}))
    monkeypatch.chdir(task)
    for step in (8, 6):
        assert cli.main(["eval", f"runs/own-{kind}/checkpoints/step-00000{step}"]) == 0
        found = answers(capsys.readouterr().out)
        found.pop("checkpoint")
        if step == 8:
            assert found == logged(task / "runs" / f"own-{kind}", 8) != logged(task / "runs" / f"own-{kind}", 0)


def test_lora_drop_killed_and_resumed_is_the_run_that_nobody_killed(task: Path) -> None:
    """Killed while it still measures, and its checkpoint is from before that too."""
    whole = task / train_here(task, write_config(task, "drop-whole", GRPO, {**HELD_OUT, **DROP})).folder
    config = write_config(task, "drop", GRPO, {**HELD_OUT, **DROP})
    killed_in_the_middle(task, config, after=2)
    succeeds(task, "train", config, "--resume", "auto")
    assert_same_run(task / "runs" / "drop", whole, steps=8, weights="adapter_model.safetensors")
    assert [line["adapter/sharing_layers"] > 0 for line in metrics_of(whole)] == [False] * 2 + [True] * 6


def test_experts_learn_by_supervision_from_a_mixture_and_are_measured_by_source(
    task: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**HELD_OUT, **MIXED, "evaluation.every": 20}
    train_here(task, write_config(task, "experts-sft", SFT, {**changes, "model.adapter": TASKS | {"rank": 8}}))
    run = task / "runs" / "experts-sft"
    first, *_, last = metrics_of(run, "eval.jsonl")
    assert last["eval/nll"] < first["eval/nll"]
    monkeypatch.chdir(task)
    assert cli.main(["eval", "runs/experts-sft", "--perplexity", "--data", "marked.jsonl"]) == 2
    assert "rows of source '', but model.adapter.tasks knows even, odd" in capsys.readouterr().err
