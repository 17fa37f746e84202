"""Training on a mixture: it keeps its proportions, and killed and resumed it is the run that nobody killed."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.end_to_end.test_resume import assert_same_run, killed_in_the_middle
from tests.running import (
    GRPO,
    SFT,
    fails,
    metrics_of,
    num_lines,
    rlft,
    rollouts_of,
    succeeds,
    train_here,
    weights_of,
    write_config,
)  # fmt: skip

PER_STEP = 6  # prompts; 3 to 2 to 1 in 6 places, and 4 in a step of 4 do not divide evenly


@pytest.fixture(scope="module")
def sources(task: Path) -> list[dict[str, Any]]:
    """Three sources of different size and shape: sums of one digit, copies, and what the other tests use."""
    random = Random(0)
    copies = [{"question": f"{n}=", "out": str(n)} for n in random.sample(range(100_000, 999_999), 17)]
    (task / "copy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in copies))
    import pyarrow
    from pyarrow import parquet

    sums = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(5)]
    parquet.write_table(pyarrow.Table.from_pylist(sums), task / "sums.parquet", row_group_size=20)
    return [
        {"path": "train.jsonl", "name": "sort", "weight": 3},
        {"path": "sums.parquet", "weight": 2},
        {"path": "copy.jsonl", "prompt_column": "question"},
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_sft(task: Path, sources: list[dict[str, Any]], streaming: bool) -> None:
    mine = [{**source, "completion_column": "out" if "copy" in source["path"] else "answer"} for source in sources]
    name = f"mixed-sft-{streaming}"
    data = {"mixture": mine, "streaming": streaming}
    changes = {"data": data, "loop.prompts_per_step": PER_STEP, "run.seed": 5}
    whole = task / train_here(task, write_config(task, f"{name}-whole", SFT, changes)).folder
    config = write_config(task, name, SFT, changes)
    killed_in_the_middle(task, config, after=43)
    run = task / "runs" / name
    assert 43 <= num_lines(run / "metrics.jsonl") < 80, "the kill came too late to tell anything"
    done = succeeds(task, "train", config, "--resume", "auto")
    assert "data: a mixture of 3\n  sort, 0.5 of the samples: train.jsonl: prompt -> prompt (text)" in done.stderr
    lines = metrics_of(whole)
    assert metrics_of(run) == lines and weights_of(run, 80) == weights_of(whole, 80)
    for source in ("sort", "sums", "copy"):
        assert lines[-1][f"sft/nll/{source}"] < 0.9 * lines[0][f"sft/nll/{source}"], "each of them is learned"
    if streaming:
        held = metrics_of(task / "runs" / "mixed-sft-False-whole")
        assert lines == held, "streaming changes nothing but the memory"


def test_grpo(task: Path, sources: list[dict[str, Any]]) -> None:
    """Four prompts a step, of three sources with shares of 3, 2 and 1 in 6."""
    held_out = {"evaluation.path": "marked.jsonl", "evaluation.source_column": "kind", "evaluation.max_rows": 8}
    rows = [json.loads(line) for line in (task / "eval.jsonl").read_text().splitlines()[:8]]
    marked = [row | {"kind": "even" if i % 2 else "odd"} for i, row in enumerate(rows)]
    (task / "marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))
    changes = {"data": {"mixture": sources}, **held_out}
    whole = task / train_here(task, write_config(task, "mixed-grpo-whole", GRPO, changes)).folder
    config = write_config(task, "mixed-grpo", GRPO, changes)
    killed_in_the_middle(task, config, after=5)
    succeeds(task, "train", config, "--resume", "auto")
    assert_same_run(task / "runs" / "mixed-grpo", whole, steps=8)
    rows = rollouts_of(whole)
    prompts = [row["source"] for row in rows if row["sample"] == 0]
    assert len(prompts) == 8 * 4
    for n in range(1, len(prompts) + 1):  # after any number of prompts within one of the share
        for source, share in (("sort", 1 / 2), ("sums", 1 / 3), ("copy", 1 / 6)):
            assert abs(prompts[:n].count(source) - share * n) < 1
    first = [row for row in rows if row["step"] == 1]
    means = {s: [row["reward"] for row in first if row["source"] == s] for s in {row["source"] for row in first}}
    line = metrics_of(whole)[0]
    told = {name.rpartition("/")[2]: value for name, value in line.items() if name.startswith("reward/mean/")}
    assert told == {source: pytest.approx(sum(rewards) / len(rewards)) for source, rewards in means.items()}
    evaluated = metrics_of(whole, "eval.jsonl")[-1]
    assert {"eval/accuracy/even", "eval/accuracy/odd"} <= evaluated.keys()


def test_dpo(task: Path) -> None:
    """Pairs are mixed like examples."""
    for name in ("up", "down"):
        pairs = [
            {"prompt": f"{n}=", "better": str(n + (name == "up")), "rejected": str(n + 7)} for n in range(100, 130)
        ]
        (task / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    sources = [{"path": f"{name}.jsonl", "chosen_column": "better"} for name in ("up", "down")]
    changes = {"algorithm": {"type": "dpo"}, "data": {"mixture": sources}, "loop.steps": 4, "loop.save_every": 0}
    run = task / train_here(task, write_config(task, "mixed-dpo", SFT, changes)).folder
    assert len(metrics_of(run)) == 4 and metrics_of(run)[-1]["preference/accuracy"] > 0.5


def test_bad_mixtures(task: Path, sources: list[dict[str, Any]]) -> None:
    changes = {"data": {"mixture": [*sources[:2], {"path": "copy.jsonl", "prompt_column": "qestion"}]}}
    said = fails(2, rlft(task, "train", write_config(task, "mixed-bad", GRPO, changes)))
    assert "source copy of data.mixture: data.prompt_column: copy.jsonl has no column 'qestion'" in said
    assert "Did you mean 'question'?" in said
    (task / "mine.py").write_text("def right(completions, answer, **columns):\n    return [1.0 for _ in answer]\n")
    changes = {"data": {"mixture": sources}, "rewards": {"functions": [{"function": "mine.py:right"}]}}
    said = fails(2, rlft(task, "train", write_config(task, "mixed-columns", GRPO, changes)))
    assert "source copy of data.mixture: reward 'right' needs the parameter 'answer'" in said
