"""A reward model from pairs to the reward of a run: the scores are those that it was trained to give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rewards.load import resolve
from rewards.reward_model import reward_model
from rlft import cli
from rlft.config.roles import RewardFunction
from rlft.data.tokenizer import load_tokenizer
from rlft.errors import UserError
from tests.running import DPO, GRPO, rollouts_of, train_here, write_config


@pytest.fixture(scope="module")
def trained(task: Path) -> Path:
    """The checkpoint of a reward model."""
    changes = {"algorithm.type": "reward", "loop.steps": 30, "loop.save_every": 0}
    result = train_here(task, write_config(task, "judge", DPO, changes))
    assert result.checkpoint is not None
    return result.checkpoint


def plain_scores(folder: Path, texts: list[str]) -> list[float]:
    """What transformers says of texts alone, the end token behind."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), load_tokenizer(folder)
    with torch.no_grad():
        ids: list[Any] = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
        return [float(model(input_ids=x).logits[0, 0]) for x in ids]


def scores(*args: Any, **keys: Any) -> list[Any]:
    return [result.value for result in reward_model(*args, **keys)]


def test_an_ensemble_is_what_its_models_come_to(task: Path, trained: Path, tmp_path: Path) -> None:
    """A second model whose head is twice the first's gives twice its scores: s and 2s, mean 1.5 s, variance s² / 4."""
    second = tmp_path / "second"
    shutil.copytree(trained, second)
    model = AutoModelForSequenceClassification.from_pretrained(second)
    with torch.no_grad():
        model.score.weight.mul_(2)
    model.save_pretrained(second)
    both, words = [str(trained), str(second)], (["12=", "21="], ["12", "021"])
    s = np.array(scores(*words, str(trained)))
    np.testing.assert_allclose(scores(*words, both), 1.5 * s, atol=1e-5)
    np.testing.assert_allclose(scores(*words, both, combine="min"), np.minimum(s, 2 * s), atol=1e-5)
    doubtful = scores(*words, both, combine="conservative", doubt=2.0)
    np.testing.assert_allclose(doubtful, 1.5 * s - 2 * s**2 / 4, atol=1e-5)
    np.testing.assert_allclose(scores(*words, both, mean=[1.0, 2.0], std=[1.0, 2.0]), s - 1, atol=1e-5)
    assert reward_model(*words, both)[0].detail == f"{s[0]:.4g} {2 * s[0]:.4g}"
    with pytest.raises(UserError, match="expected each model once"):
        resolve(RewardFunction.model_validate({"function": "reward_model", "args": {"path": [str(trained)] * 2}}))


@pytest.fixture(scope="module")
def of_two(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the outputs good, which is the trained one's, and long, of another head."""
    folder = tmp_path_factory.mktemp("of-two") / "model"
    shutil.copytree(trained, folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    good = model.score.weight.detach()
    model.score = torch.nn.Linear(good.shape[1], 2, bias=False)
    with torch.no_grad():
        model.score.weight.copy_(torch.cat([good, good.flip(1)]))
    model.config.id2label, model.config.label2id = {0: "good", 1: "long"}, {"good": 0, "long": 1}
    model.save_pretrained(folder)
    return folder


def test_several_outputs_are_weighed(trained: Path, of_two: Path) -> None:
    """Each output is what transformers says; the score is their weighted sum, and the detail names them."""
    prompts, completions = ["12=", "21="], ["12", "021"]
    eos = load_tokenizer(trained).eos_token
    texts = [f"{prompt}{completion}{eos}" for prompt, completion in zip(prompts, completions, strict=True)]
    good = np.array(plain_scores(trained, texts))
    long = np.array(scores(prompts, completions, str(of_two), weights={"long": 1}))
    assert np.abs(good - long).min() > 1e-3
    model = AutoModelForSequenceClassification.from_pretrained(of_two).eval()
    with torch.no_grad():
        ids = load_tokenizer(of_two)(texts[0], return_tensors="pt").input_ids
        np.testing.assert_allclose(model(input_ids=ids).logits[0], [good[0], long[0]], atol=1e-5)
    both = reward_model(prompts, completions, str(of_two), weights={"good": 2.0, "long": -0.5})
    np.testing.assert_allclose([result.value or 0.0 for result in both], 2 * good - 0.5 * long, atol=1e-5)
    assert both[1].detail == f"good {good[1]:.4g}, long {long[1]:.4g}"


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"bad": 1.0}, "weights names 'bad'; .*model has the outputs good, long"),
        ({}, "weights is {}; expected a number for each output that counts, such as {good: 1.0}"),
        ({"good": "much"}, "weights is {'good': 'much'}; expected numbers"),
        ({"good": 0, "long": 0.0}, "weights are all 0"),
        (None, "gives 2 scores .*or what each counts: args: {weights: {NAME: 1.0}}"),
    ],
)
def test_bad_weights_are_refused(of_two: Path, weights: Any, words: str) -> None:
    args = {"path": str(of_two)} | ({} if weights is None else {"weights": weights})
    with pytest.raises(UserError, match=words):
        resolve(RewardFunction.model_validate({"function": "reward_model", "args": args}))


def test_weights_of_one_output_are_refused(trained: Path) -> None:
    args = {"path": str(trained), "weights": {"LABEL_0": 1.0}}
    with pytest.raises(UserError, match="weights has no effect: .* has one output"):
        resolve(RewardFunction.model_validate({"function": "reward_model", "args": args}))


def test_scores_are_those_of_transformers(trained: Path) -> None:
    eos = load_tokenizer(trained).eos_token
    found = scores(["12=", "12=", "21="], ["12", "021", "12"], str(trained))
    np.testing.assert_allclose(found, plain_scores(trained, [f"12=12{eos}", f"12=021{eos}", f"21=12{eos}"]), atol=1e-5)
    cut = scores(["12="] * 2, ["12", "021"], str(trained), finish_reasons=["length", "stop"])
    np.testing.assert_allclose(cut, plain_scores(trained, ["12=12", f"12=021{eos}"]), atol=1e-5)


def test_an_empty_completion_has_a_score(trained: Path) -> None:
    """A policy may end at once, and must learn what that is worth."""
    eos = load_tokenizer(trained).eos_token
    found = scores(["12=", "12="], ["", ""], str(trained), finish_reasons=["stop", "length"])
    np.testing.assert_allclose(found, plain_scores(trained, [f"12={eos}"] * 2), atol=1e-5)


def test_an_adapters_folder_is_a_reward_model_too(task: Path) -> None:
    changes = {
        "algorithm.type": "reward", "model.adapter": {"rank": 4}, "loop.steps": 10, "learner.lr": 1e-2,
        "loop.save_every": 0,
    }  # fmt: skip
    result = train_here(task, write_config(task, "lora-judge", DPO, changes))
    assert (result.checkpoint / "adapter_config.json").is_file()
    good, bad = scores(["523146="] * 2, ["123456", "0654321"], str(result.checkpoint))
    assert good > bad


def test_a_run_with_a_learned_reward(task: Path, trained: Path) -> None:
    functions = [{"function": "reward_model", "args": {"path": str(trained)}}]
    changes = {"rewards.functions": functions, "loop.steps": 2, "loop.save_every": 0, "algorithm.kl_coef": 0.0}
    rows = rollouts_of(task / train_here(task, write_config(task, "learned", GRPO, changes)).folder)
    assert all(row["status/reward_model"] == "ok" for row in rows)
    eos = load_tokenizer(trained).eos_token
    ended = [row for row in rows if row["finish_reason"] == "stop"][:4]
    texts = [f"{row['prompt']}{row['completion']}{eos}" for row in ended]
    np.testing.assert_allclose([row["reward"] for row in ended], plain_scores(trained, texts), atol=1e-4)


def test_what_is_no_reward_model_is_refused_before_the_run(
    task: Path, trained: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    policy = task / "runs" / "judge" / "model"
    config = write_config(task, "no-judge", GRPO, {"rewards.functions": [{"function": "reward_model"}]})
    assert cli.main(["train", config]) == 2
    assert "reward_model needs a model: args: {path:" in capsys.readouterr().err
    assert cli.main(["train", config, f"--rewards.functions.0.args={{path: {policy}}}"]) == 2
    assert "which gives no scores. Train a reward model with algorithm.type reward" in capsys.readouterr().err
    assert cli.main(["train", config, "--rewards.functions.0.args={path: nowhere/judge}"]) == 2
    assert "reward_model's path nowhere/judge cannot be loaded" in capsys.readouterr().err
    several = task / "several"
    shutil.copytree(trained, several)
    changed = json.loads((several / "config.json").read_text()) | {"id2label": {"0": "a", "1": "b"}}
    (several / "config.json").write_text(json.dumps(changed))
    assert cli.main(["train", config, f"--rewards.functions.0.args={{path: {several}}}"]) == 2
    assert "gives 2 scores for a text (num_labels)" in capsys.readouterr().err
    assert not (task / "runs" / "no-judge").exists()
    for wrong, said in (({"pth": "x"}, "args of 'reward_model' sets 'pth'"), ({"dtype": "fp8"}, "dtype is 'fp8'")):
        with pytest.raises(UserError, match=said):
            resolve(
                RewardFunction.model_validate({"function": "reward_model", "args": {"path": str(trained), **wrong}})
            )


def test_too_long_for_its_window_is_a_failure_and_no_number(trained: Path) -> None:
    with pytest.raises(ValueError, match="66 tokens, and the window of .* has 64"):
        reward_model(["1="], ["1" * 63], str(trained))
