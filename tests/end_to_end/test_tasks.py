"""Three tasks are learned at once; a run that is killed in the middle and resumed is the run that nobody killed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlft.data.tokenizer import load_tokenizer
from tests.end_to_end.test_resume import killed_in_the_middle
from tests.running import TINY, fails, metrics_of, num_lines, rlft, succeeds, train_here, write_config

TASKS: dict[str, Any] = {
    "model": {"tiny": TINY},
    "algorithm": {"type": "tasks"},
    "tasks": [
        {"name": "mood", "kind": "sequence_classification", "path": "mood.jsonl", "held_out": "mood.jsonl"},
        {"name": "words", "kind": "token_classification", "path": "words.jsonl", "held_out": "words.jsonl"},
        {
            "name": "where", "kind": "question_answering", "path": "where.jsonl", "held_out": "where.jsonl",
            "columns": {"question": "asked"}, "share": 2.0, "lr": 3e-2,
        },
    ],
    "learner": {"lr": 1e-2, "schedule": "cosine"},
    "loop": {"steps": 60, "prompts_per_step": 16, "save_every": 15},
    "evaluation": {"every": 30},
    "tracking": {"tensorboard": False},
    "cluster": {"mode": "inline", "threads": 1},
}  # fmt: skip
APART = {
    "model.adapter": {"rank": 8, "dropout": 0.1}, "algorithm.gradient_surgery": "pcgrad",
    "tasks": [task | {"adapter": "own"} if task["name"] == "words" else task for task in TASKS["tasks"]],
}  # fmt: skip


@pytest.fixture(scope="module")
def tasks(task: Path) -> Path:
    """mood: whether the last letter is one of a to c. words: which words are numbers. where: the digit that is asked
    for."""
    rng = random.Random(0)
    moods, words, asked = [], [], []
    for _ in range(64):
        text = "".join(rng.choices("abcxyz", k=4))
        moods.append({"text": text, "label": "early" if text[-1] in "abc" else "late"})
        tokens = [rng.choice(["ab", "12", "x", "345"]) for _ in range(4)]
        words.append({"tokens": tokens, "tags": ["B-number" if token.isdigit() else "O" for token in tokens]})
        digits = "".join(rng.sample("123456", 5))
        digit = rng.choice(digits)
        answers = {"text": [digit], "answer_start": [digits.index(digit)]}
        asked.append({"asked": digit, "context": digits, "answers": answers})
    for name, rows in (("mood", moods), ("words", words), ("where", asked)):
        (task / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task


@pytest.mark.parametrize(
    ("name", "changes", "file"),
    [("tasks", {}, "model.safetensors"), ("apart", APART, "tasks/words/adapter_model.safetensors")],
)
def test_killed_and_resumed(tasks: Path, name: str, changes: dict, file: str) -> None:
    train_here(tasks, write_config(tasks, f"{name}-whole", TASKS, changes))
    config = write_config(tasks, name, TASKS, changes)
    killed_in_the_middle(tasks, config, after=33)
    run, whole = tasks / "runs" / name, tasks / "runs" / f"{name}-whole"
    assert 33 <= num_lines(run / "metrics.jsonl") < 60, "the kill came too late to tell anything"
    succeeds(tasks, "train", config, "--resume", "auto")
    assert metrics_of(run) == metrics_of(whole)
    assert metrics_of(run, "eval.jsonl") == metrics_of(whole, "eval.jsonl")
    last = [each / "checkpoints" / "step-000060" for each in (run, whole)]
    for each in (file, "tasks/mood/config.json"):
        assert (last[0] / each).read_bytes() == (last[1] / each).read_bytes()

    before, *_, after = metrics_of(whole, "eval.jsonl")
    measures = ("mood/accuracy", "words/accuracy", "words/f1", "where/exact_match", "where/f1")
    assert all(after[f"eval/{measure}"] > before[f"eval/{measure}"] for measure in measures), (before, after)
    if not changes:
        assert all(after[f"eval/{measure}"] > 0.7 for measure in measures), after
    first, *_, line = metrics_of(whole)
    assert all(line[f"tasks/{task}/loss"] < first[f"tasks/{task}/loss"] for task in ("mood", "words", "where"))
    assert ("tasks/conflicts" in line) == bool(changes)


def test_transformers_says_what_was_measured(tasks: Path) -> None:
    """After test_killed_and_resumed."""
    folder = tasks / "runs" / "tasks-whole" / "checkpoints" / "step-000060" / "tasks" / "mood"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), load_tokenizer(folder)
    rows, right = [json.loads(line) for line in (tasks / "mood.jsonl").read_text().splitlines()], 0
    for row in rows:
        with torch.no_grad():
            best = model(**tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False)).logits.argmax()
        right += model.config.id2label[int(best)] == row["label"]
    assert right / len(rows) == metrics_of(tasks / "runs" / "tasks-whole", "eval.jsonl")[-1]["eval/mood/accuracy"]


def test_bad_rows_are_one_message(tasks: Path) -> None:
    config = write_config(tasks, "bad-tasks", TASKS, {"tasks": [TASKS["tasks"][0] | {"columns": {"label": "lable"}}]})
    said = fails(2, rlft(tasks, "train", config))
    assert "task mood: columns.label: mood.jsonl has no column 'lable'. Did you mean 'label'?" in said
