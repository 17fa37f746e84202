"""A process reward model from labelled steps to the reward of a run: scores are those that it was trained to give."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rewards.load import resolve
from rewards.process_reward_model import process_reward_model
from rlft import cli
from rlft.config.data import DataConfig
from rlft.config.roles import RewardFunction
from rlft.data.scores import scored_steps
from rlft.data.steps import load_steps
from rlft.data.tokenizer import load_tokenizer
from rlft.engines.scoring import score_micro_batches
from rlft.errors import UserError
from rlft.models.reward import load_trained_reward_model
from tests.running import DPO, GRPO, STEPS, metrics_of, rollouts_of, train_here, write_config


@pytest.fixture(scope="module")
def trained(task: Path) -> Path:
    """The checkpoint of a process reward model."""
    changes = {**STEPS, "loop.steps": 30, "loop.save_every": 0}
    result = train_here(task, write_config(task, "steps", DPO, changes))
    last = metrics_of(task / result.folder, "eval.jsonl")[-1]
    assert last["eval/step_accuracy"] > 0.8, last
    return result.checkpoint


def chances(folder: Path, texts: list[str]) -> list[float]:
    """What transformers says at the end of each text."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), load_tokenizer(folder)
    with torch.no_grad():
        ids: list[Any] = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
        return [float(model(input_ids=x).logits[0, 0].sigmoid()) for x in ids]


def test_a_reward_is_what_transformers_says_of_each_step(trained: Path) -> None:
    one, two, three = chances(trained, ["312=1", "312=1,y", "312=1,y,3"])
    (alone,) = chances(trained, ["312=x"])
    expected = {
        "min": min(one, two, three), "mean": (one + two + three) / 3, "last": three, "product": one * two * three,
    }  # fmt: skip
    for reduce, value in expected.items():
        found = process_reward_model(["312="] * 3, ["1,y,,3,", "x", " ,"], str(trained), ",", reduce)
        assert found[:2] == pytest.approx([value, alone], abs=1e-5)
        assert found[2] is None, "no step, so no number"
    assert process_reward_model(["312="], [""], str(trained), ",") == [None]
    assert one > two


def test_a_reward_is_what_the_learner_says_of_held_out_rows(task: Path, trained: Path) -> None:
    rows = [json.loads(line) for line in (task / "held_out_steps.jsonl").read_text().splitlines()[:5]]
    data = DataConfig(step_separator=",")
    loaded = load_steps(data, load_tokenizer(trained), window=64, seed=0, rows=rows).examples
    groups = [scored_steps(group) for group in loaded]
    with torch.no_grad():
        model = load_trained_reward_model(str(trained), "float32")
        (values,) = score_micro_batches(model, [groups], torch.device("cpu"))
    logits = [row[0][group.samples[0].loss_mask] for group, row in zip(groups, values, strict=True)]
    expected = [math.prod(1 / (1 + math.exp(-score)) for score in row) for row in logits]
    texts = [",".join(row["completions"]) for row in rows]
    found = process_reward_model([row["prompt"] for row in rows], texts, str(trained), ",", "product")
    np.testing.assert_allclose(np.array(found, dtype=float), expected, rtol=1e-4)


def test_a_run_that_learns_from_it(task: Path, trained: Path) -> None:
    functions = [{"function": "process_reward_model", "args": {"path": str(trained), "separator": ","}}]
    changes = {
        "rewards.functions": functions, "rewards.max_failed_fraction": 1.0, "loop.steps": 2, "loop.save_every": 0,
        "algorithm.kl_coef": 0.0,
    }  # fmt: skip
    rows = rollouts_of(task / train_here(task, write_config(task, "by-steps", GRPO, changes)).folder)
    ok = [row for row in rows if row["status/process_reward_model"] == "ok"]
    assert ok and all(0 <= row["reward"] <= 1 for row in ok)


def test_an_adapters_folder_is_one_too(task: Path) -> None:
    changes = {**STEPS, "model.adapter": {"rank": 4}, "loop.steps": 10, "learner.lr": 1e-2, "loop.save_every": 0}
    result = train_here(task, write_config(task, "lora-steps", DPO, changes))
    assert (result.checkpoint / "adapter_config.json").is_file()
    good, bad = process_reward_model(["523146="] * 2, ["1,2,3", "x,y,z"], str(result.checkpoint), ",", "mean")
    assert good is not None and bad is not None and good > bad


def test_what_is_no_model_of_steps_is_refused_before_the_run(
    task: Path, trained: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task)
    policy = task / "runs" / "steps" / "model"
    config = write_config(task, "no-steps", GRPO, {"rewards.functions": [{"function": "process_reward_model"}]})
    assert cli.main(["train", config]) == 2
    assert "process_reward_model needs a model: args: {path:" in capsys.readouterr().err
    assert cli.main(["train", config, f"--rewards.functions.0.args={{path: {policy}}}"]) == 2
    assert "which gives no scores. Train a reward model with algorithm.type process_reward" in capsys.readouterr().err
    assert not (task / "runs" / "no-steps").exists()
    assert cli.main(["eval", "runs/steps", "--perplexity", "--data", "eval.jsonl"]) == 2
    assert "is a reward model (algorithm.type process_reward), which says nothing" in capsys.readouterr().err
    wrong = (
        ({"pth": "x"}, "args of 'process_reward_model' sets 'pth', which it does not take. Did you mean 'path'"),
        ({"dtype": "fp8"}, "process_reward_model's dtype is 'fp8'"),
        ({"reduce": "max"}, "process_reward_model's reduce is 'max'; expected min, mean, last, product"),
        ({"separator": ""}, "process_reward_model's separator is ''"),
    )
    for args, said in wrong:
        function = {"function": "process_reward_model", "args": {"path": str(trained), **args}}
        with pytest.raises(UserError, match=said):
            resolve(RewardFunction.model_validate(function))


def test_too_long_for_its_window_is_a_failure_and_no_number(trained: Path) -> None:
    with pytest.raises(ValueError, match="65 tokens, and the window of .* has 64"):
        process_reward_model(["1="], ["1" * 63], str(trained), ",")
