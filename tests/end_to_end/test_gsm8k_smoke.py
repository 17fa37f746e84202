"""The main job on real questions, with the configuration that the repository ships."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.running import ROOT, metrics_of, rollouts_of, succeeds

DATA = ROOT.parent / "shared" / "data" / "gsm8k_train_300.jsonl"
CONFIG = ROOT / "configs" / "grpo_gsm8k_smoke.yaml"

pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"the GSM8K questions are not at {DATA}")


@pytest.mark.parametrize("mode", ["inline", pytest.param("local", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_every_part_runs(tmp_path: Path, mode: str) -> None:
    words = ["--data.path", str(DATA), "--cluster.mode", mode, "--cluster.threads", "1"]
    done = succeeds(tmp_path, "train", str(CONFIG), *words)
    run = tmp_path / "runs" / "grpo_gsm8k_smoke"
    assert "question -> prompt" in done.stderr and "step=3/3" in done.stderr

    lines = [json.loads(line) for line in DATA.read_text().splitlines()]
    rows = rollouts_of(run)
    assert len(rows) == 3 * 4 * 4
    for row in rows:
        file, line = row["prompt_id"].split(":")
        question = lines[int(line) - 1]
        assert file == DATA.name and row["columns"] == question
        assert row["prompt"].strip() == question["question"].strip()
        assert 0 < row["num_tokens"] == len(row["token_ids"]) <= 48
        assert row["status/finished"] == "ok" and row["status/math"] in ("ok", "wrong", "unparsed")
        assert (row["reward/math"], row["detail/math"] is None) == (
            (1, True) if row["status/math"] == "ok" else (0, False)
        )
        assert row["reward"] == pytest.approx(row["reward/math"] + 0.1 * row["reward/finished"])
    assert sum(len(row["completion"]) > 10 for row in rows) > len(rows) / 2, "most have text"
    assert len({row["prompt_id"] for row in rows}) == 12, "three batches of four questions"
    lines = metrics_of(run)
    assert [line["samples/failed"] for line in lines] == [0, 0, 0]
    assert all(line["policy/grad_norm"] > 0 for line in lines), "the rewards differ, so every step trains"
    assert "policy/kl" in lines[-1], "the scorer runs"
    trained, fresh = (run / part / "model.safetensors" for part in ("checkpoints/step-000003", "model"))
    assert trained.read_bytes() != fresh.read_bytes()
    assert list((run / "tensorboard").iterdir())


def test_supervised(tmp_path: Path) -> None:
    """The worked answers, three steps of them, and how likely the rest is before and after."""
    rows = DATA.read_text().splitlines(keepends=True)
    (tmp_path / "held_out.jsonl").write_text("".join(rows[250:270]))
    words = ["--data.path", str(DATA), "--data.max_rows", "250", "--cluster.mode", "inline", "--cluster.threads", "1"]
    words += ["--loop.steps", "12", "--learner.warmup_steps", "2", "--evaluation.path", "held_out.jsonl"]
    done = succeeds(tmp_path, "train", str(ROOT / "configs" / "sft_gsm8k_smoke.yaml"), *words)
    assert "question -> prompt (text), answer -> completion; 250 rows" in done.stderr
    run = tmp_path / "runs" / "sft_gsm8k_smoke"
    before, after = metrics_of(run, "eval.jsonl")
    assert before["eval/perplexity"] > 200 and after["eval/perplexity"] < 60, "of bytes: 256 and some when it begins"
    assert after["eval/perplexity"] == pytest.approx(float(np.exp(after["eval/nll"])))
