"""`rlft eval --perplexity` of runs, adapters and plain folders is what transformers and peft give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlft import cli
from tests.end_to_end.test_eval import answers
from tests.running import GRPO, SFT, fails, rlft, train_here, write_config


@pytest.fixture(scope="module")
def runs(task: Path) -> Path:
    """runs/sft (full weights) and runs/lora."""
    train_here(task, write_config(task, "sft", SFT, {"loop.steps": 20}))
    lora = {"loop.steps": 2, "model.adapter": {"type": "lora", "rank": 4}, "learner.lr": 0.1}
    train_here(task, write_config(task, "lora", GRPO, lora))
    return task


def measured(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    assert cli.main(["eval", *words]) == 0, capsys.readouterr().err
    return answers(capsys.readouterr().out)


def plain_nll(model: Any, folder: Path, file: Path, num_rows: int) -> float:
    """Of the answers of train.jsonl and the end of each, by a forward pass of transformers for each row."""
    import json

    from rlft.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    loss, count = 0.0, 0
    for line in file.read_text().splitlines()[:num_rows]:
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            labels = torch.tensor([[-100] * len(prompt) + answer])
            loss += float(model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss) * len(answer)
        count += len(answer)
    return loss / count


def test_a_run_a_checkpoint_and_a_plain_folder(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(runs)
    more = ["--perplexity", "--data", "train.jsonl", "--evaluation.max_rows", "30"]
    trained = measured(capsys, "runs/sft", *more)
    checkpoint = Path("runs/sft/checkpoints/step-000020")
    assert trained["model"] == str(checkpoint)
    assert trained["data"].endswith("at most the first 30 rows (evaluation.max_rows)")
    assert measured(capsys, str(checkpoint), *more) == trained
    base = measured(capsys, "runs/sft/model", *more, "--data.completion_column", "answer")
    for folder, found in ((checkpoint, trained), (Path("runs/sft/model"), base)):
        nll = plain_nll(AutoModelForCausalLM.from_pretrained(folder), folder, Path("train.jsonl"), 30)
        assert float(found["eval/nll"]) == pytest.approx(nll, rel=1e-3)
        assert float(found["eval/perplexity"]) == pytest.approx(math.exp(nll), rel=2e-3)
    assert float(trained["eval/nll"]) < float(base["eval/nll"]) - 1, "it has learned"


def test_an_adapter_counts(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(runs)
    found = measured(capsys, "runs/lora", "--perplexity", "--data", "train.jsonl", "--evaluation.max_rows", "10")
    model, folder = Path("runs/lora/model"), Path("runs/lora/checkpoints/step-000002")
    base = AutoModelForCausalLM.from_pretrained(model)
    without = plain_nll(base, model, Path("train.jsonl"), 10)
    nll = plain_nll(PeftModel.from_pretrained(base, folder).eval(), model, Path("train.jsonl"), 10)
    assert float(found["eval/nll"]) == pytest.approx(nll, rel=1e-3)
    assert abs(nll - without) > 0.01


def test_documents(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    (runs / "texts.jsonl").write_text('{"text": "' + "0123456789" * 10 + '"}\n{"text": "abc"}\n')
    found = measured(capsys, "runs/sft/model", "--perplexity", "--data", "texts.jsonl")
    # 100 and 3 characters less the first of each text, and the ends of both; the ends have no bytes
    assert (found["eval/examples"], found["eval/tokens"]) == ("2", "103")
    assert "1 longer than the window" in found["data"]
    assert float(found["eval/bits_per_byte"]) == pytest.approx(
        float(found["eval/nll"]) / math.log(2) * 103 / (99 + 2), rel=1e-3
    )


def test_errors(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = fails(2, rlft(runs, "eval", "runs/sft", "--perplexity"))
    assert "--perplexity needs texts: give them with --data FILE" in said
    monkeypatch.chdir(runs)
    (runs / "empty").mkdir()
    data = ["--perplexity", "--data", "train.jsonl"]
    cases = {
        ("runs/sft", *data, "--samples", "2"): "--samples has no effect with --perplexity, which draws nothing",
        ("runs/sft", *data, "--generator.stop", "[x]"): "--generator.stop has no effect on perplexity",
        ("runs/sft/model", *data, "--model.path", "x"): "--model.path has no effect on a model's own weights",
        ("runs/sft", *data, "--golden", "x.yaml"): "ask for one at a time",
        ("runs/sft", "--against", "runs/lora"): "--against has no effect without --golden",
        ("empty", *data): "or a Hugging Face model's with config.json",
        ("runs/sft/model", "--data", "train.jsonl"): "Of a Hugging Face model without a run there are --perplexity",
        ("runs/sft", "--perplexity", "--data", "trian.jsonl"): "train.jsonl",
        ("runs/sft/model", *data, "--data.prompt_column", "promt"): "Did you mean 'prompt'?",
        ("runs/sft/model", "--perplexity", "--data", "broken.jsonl"): "broken.jsonl, line 2 is not valid JSON",
    }
    (runs / "broken.jsonl").write_text('{"prompt": "1", "answer": "2"}\n{"prompt": \n')
    for words, expected in cases.items():
        assert cli.main(["eval", *words]) == 2, words
        err = capsys.readouterr().err
        assert err.startswith("error: ") and expected in err, err


def test_damaged_weights_are_told(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    monkeypatch.chdir(runs)
    shutil.copytree("runs/sft/model", "damaged")
    weights = load_file("damaged/model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    save_file(weights, "damaged/model.safetensors", {"format": "pt"})
    assert cli.main(["eval", "damaged", "--perplexity", "--data", "train.jsonl"]) == 2
    assert "its weights are damaged" in capsys.readouterr().err
