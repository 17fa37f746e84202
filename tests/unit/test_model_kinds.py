"""Models of another kind than asked for are refused, where transformers would load them without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from rewards.process_reward_model import check_process_reward_model
from rewards.reward_model import check_reward_model
from rlft import cli
from rlft.config.model import ModelConfig
from rlft.engines.build import make_scorer
from rlft.errors import UserError
from rlft.models.load import check_language_model, load_model
from rlft.models.reward import load_reward_model, mark, mark_adapter
from tests.helpers import make_config
from tests.unit.byte_model import folder as folder  # a language model

KINDS = {"whole": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification, "body": AutoModel}


def other(folder: Path, target: Path, kind: str, tied: bool) -> Path:
    """A model of that kind, with the tokenizer and the body's settings of the one in `folder`."""
    config: Any = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings, config.architectures, config.num_labels = tied, None, 1
    KINDS[kind].from_config(config).save_pretrained(target)
    for file in folder.glob("token*"):
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["classifier", "body"])
def test_no_policy(tmp_path: Path, folder: Path, kind: str, tied: bool, capsys: pytest.CaptureFixture[str]) -> None:
    path = other(folder, tmp_path / "model", kind, tied)
    name = {"classifier": "Qwen3ForSequenceClassification", "body": "Qwen3Model"}[kind]
    said = f"{path} is a {name}, which says nothing"
    with pytest.raises(UserError, match=said) as refused:
        load_model(ModelConfig.model_validate({"path": str(path)}))
    assert "Expected a causal language model" in str(refused.value)
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    run = ["--run.dir", str(tmp_path / "runs"), "--data.path", str(tmp_path / "a.jsonl"), "--cluster.mode", "inline"]
    (tmp_path / "x.yaml").write_text(f"model: {{path: {path}}}\nalgorithm: {{type: sft}}\n")
    for words in (
        ["train", str(tmp_path / "x.yaml"), *run],
        ["eval", str(path), "--perplexity", "--data", str(tmp_path / "a.jsonl")],
    ):
        assert cli.main(words) == 2
        assert said in capsys.readouterr().err
    config = make_config(folder, {"teacher.path": str(path), "algorithm.teacher_coef": 1.0})
    with pytest.raises(UserError, match=f"teacher.path: {said}"):
        make_scorer(config, "cpu", "teacher")


def test_an_output_layer_that_is_not_there(tmp_path: Path, folder: Path) -> None:
    """Of a model that says it has one."""
    path = other(folder, tmp_path, "body", tied=False)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"architectures": ["Qwen3ForCausalLM"]}))
    check_language_model(str(path))
    with pytest.raises(UserError, match="no weights for lm_head.weight"):
        load_model(ModelConfig.model_validate({"path": str(path)}))


def test_whole_models_load(tmp_path: Path, folder: Path) -> None:
    for path in (folder, other(folder, tmp_path, "whole", tied=False)):
        lm: Any = load_model(ModelConfig.model_validate({"path": str(path)}))
        assert lm.get_output_embeddings().weight.shape == lm.get_input_embeddings().weight.shape


@pytest.mark.parametrize("adapter", [None, {"rank": 2}])
def test_reward_models_are_not_taken_for_each_other(tmp_path: Path, folder: Path, adapter: Any) -> None:
    base, target = str(folder), tmp_path / "made"
    model = load_reward_model(ModelConfig.model_validate({"path": base, "adapter": adapter}))
    mark(model, "reward")
    whole: Any = model.model
    whole.save_pretrained(target)
    if adapter is not None:
        mark_adapter(target, "reward", "float32")
    check_reward_model(str(target))
    with pytest.raises(UserError, match=r"trained with algorithm\.type reward, .* Use reward_model, or"):
        check_process_reward_model(str(target))
    unmarked = other(folder, tmp_path / "theirs", "classifier", tied=True)
    check_reward_model(str(unmarked))
    check_process_reward_model(str(unmarked))
