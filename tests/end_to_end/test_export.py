"""`rlft export`: what transformers, peft and vLLM load from the folder says what the run's checkpoint says."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)

from actors import export as exporting
from actors.export import export, find_saved
from rlft import cli
from rlft.config.adapters import KINDS
from rlft.data.tokenizer import load_tokenizer
from rlft.errors import RunError, UserError
from rlft.models.adapters.attach import OWN, own_adapter
from rlft.models.load import load_checkpoint, load_model
from tests.bench.process import result_of
from tests.end_to_end.test_tasks import tasks as tasks  # the fixture
from tests.helpers import make_biased_model
from tests.running import SFT, fails, rlft, train_here, write_config

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's own calls into torch

FAST = {
    "loop.steps": 3,
    "loop.save_every": 2,
    "learner.lr": 0.05,
    "learner.schedule": "constant",
    "model.tiny.hidden_size": 64,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "adalora": {"rank": 2, "initial_rank": 4}, "vera": {"rank": 8}, "lora_drop": {"sample_steps": 2},
}  # fmt: skip
EXPERTS = {"type": "lora_experts", "rank": 4, "num_experts": 2, "tasks": ["a", "b"]}
PEFTS = [kind for kind in KINDS if kind not in OWN]
IDS = torch.arange(3, 43)[None] * 7 % 64


def trained(task: Path, name: str, base: dict[str, Any] = SFT, **changes: Any) -> Path:
    """The run folder of a short run, made once for this module."""
    run = task / "runs" / name
    if not run.exists():
        train_here(task, write_config(task, name, base, FAST | changes))
    return run


def adapter_run(task: Path, kind: str, **more: Any) -> Path:
    plain = {"rank": 4} if "rank" in KINDS[kind].keys else {}
    name = "-".join([kind, *(Path(str(value)).name for value in more.values() if isinstance(value, str | int))])
    adapter = {"type": kind} | plain | SETTINGS.get(kind, {})
    return trained(task, name, **({"model.adapter": adapter} | more))


def own(run: Path) -> torch.Tensor:
    """What the newest checkpoint says, [T, V]."""
    saved = find_saved(run)
    with torch.no_grad():
        return said(load_checkpoint(saved.config.model, saved.checkpoint))


def said(model: Any) -> torch.Tensor:
    adapter = own_adapter(model)
    if adapter is not None and adapter.by_source:
        adapter.use_sources(("a", "b"), torch.arange(IDS.shape[1])[None] % 2)
    with torch.no_grad():
        return model.float().eval()(input_ids=IDS).logits[0, -IDS.shape[1] :].log_softmax(-1)


def base_of(run: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(find_saved(run).config.model.path))


def test_full_weights(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(task, "full", **{"evaluation.path": "train.jsonl", "evaluation.max_rows": 10, "evaluation.every": 3})
    assert cli.main(["export", str(run), "--to", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert "largest difference 0," in out and "Loads in transformers and vLLM." in out
    folder = tmp_path / "x"
    assert torch.equal(said(AutoModelForCausalLM.from_pretrained(folder)), own(run))
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert not names & {"learner", "state.json", "manifest.json"}, "nothing of the run's own"
    text = "12+34="
    there = load_tokenizer(str(find_saved(run).checkpoint))
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == there(text)["input_ids"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "| algorithm | sft |" in card and "| steps | 3 of 3" in card
    assert "Evaluation after step 3" in card and 'AutoModelForCausalLM.from_pretrained("DIR")' in card
    assert not list(tmp_path.glob(".tmp*"))


def test_a_step_a_checkpoint_and_other_types(task: Path, tmp_path: Path) -> None:
    run = trained(task, "full")
    second = export(str(run), str(tmp_path / "second"), step=2).folder
    named = export(str(run / "checkpoints" / "step-000002"), str(tmp_path / "named")).folder
    assert load_file(second / "model.safetensors").keys() == load_file(named / "model.safetensors").keys()
    assert torch.equal(
        said(AutoModelForCausalLM.from_pretrained(second)), said(AutoModelForCausalLM.from_pretrained(named))
    )
    assert not torch.equal(said(AutoModelForCausalLM.from_pretrained(second)), own(run))
    (tmp_path / "empty").mkdir()
    for dtype in ("bfloat16", "float16"):
        folder = tmp_path / "empty" if dtype == "bfloat16" else tmp_path / dtype
        done = export(str(run), str(folder), dtype=dtype)
        assert "mean within 0.05" in done.lines[-1]
        assert AutoConfig.from_pretrained(folder).dtype == getattr(torch, dtype)
        assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("kind", PEFTS)
def test_adapters_and_merged_models(task: Path, tmp_path: Path, kind: str) -> None:
    run = adapter_run(task, kind)
    expected, base = own(run), base_of(run)
    assert float((said(base) - expected).abs().max()) > 1e-2, "the adapter has learned something"
    with warnings.catch_warnings():
        for false in ("The following rank_pattern keys", "Adapter 'default': "):  # which peft says of AdaLoRA
            warnings.filterwarnings("error", false)
        done = export(str(run), str(tmp_path / "adapter"))
    with_adapter = PeftModel.from_pretrained(base_of(run), str(done.folder))
    torch.testing.assert_close(said(with_adapter), expected, rtol=0, atol=1e-4)
    assert ("vLLM." in done.lines[1]) == (KINDS[kind].served == "adapter"), done.lines[1]
    assert json.loads((done.folder / "adapter_config.json").read_text())["base_model_name_or_path"].endswith("model")
    card = (done.folder / "README.md").read_text()
    assert ("cannot be merged" in done.lines[1]) == (not KINDS[kind].merges)
    assert f"| adapter | type {kind}" in card and "PeftModel.from_pretrained" in card
    assert ("enable_lora" in card) == (KINDS[kind].served == "adapter")
    if not KINDS[kind].merges:
        return
    merged = export(str(run), str(tmp_path / "merged"), merge=True).folder
    torch.testing.assert_close(said(AutoModelForCausalLM.from_pretrained(merged)), expected, rtol=0, atol=1e-4)
    assert not (merged / "adapter_config.json").exists() and (merged / "generation_config.json").exists()


@pytest.mark.parametrize("kind", list(OWN))
def test_adapters_of_ours(task: Path, tmp_path: Path, kind: str) -> None:
    run = adapter_run(task, kind, **_needs(task, kind))
    expected = own(run)
    assert float((said(base_of(run)) - expected).abs().max()) > 1e-2, "the adapter has learned something"
    done = export(str(run), str(tmp_path / "adapter"))
    assert "Loads in rlft only" in done.lines[1]
    assert "load_checkpoint(settings" in (done.folder / "README.md").read_text()
    again = load_checkpoint(find_saved(run).config.model, done.folder)
    assert torch.equal(said(again), expected)
    if KINDS[kind].merges:
        merged = export(str(run), str(tmp_path / "merged"), merge=True).folder
        torch.testing.assert_close(said(AutoModelForCausalLM.from_pretrained(merged)), expected, rtol=0, atol=1e-4)


def _needs(task: Path, kind: str) -> dict[str, Any]:
    """Of a run: biases, or rows of several tasks."""
    if kind == "bitfit":
        like = str(find_saved(trained(task, "full")).config.model.path)
        biased = make_biased_model(task / "biased", Path(like))
        return {"model.path": str(biased), "model.tiny": None}
    if kind != "lora_experts":
        return {}
    sources = [{"path": "train.jsonl", "name": name, "completion_column": "answer"} for name in EXPERTS["tasks"]]
    return {"data": {"mixture": sources}, "model.adapter": EXPERTS}


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pissa_becomes_a_lora_for_the_base_as_it_is(
    task: Path, tmp_path: Path, dtype: str, rank_stabilized: bool
) -> None:
    adapter = {"type": "pissa", "rank": 4, "rank_stabilized": rank_stabilized}
    name = f"pissa-{dtype}-{rank_stabilized}"
    run = trained(task, name, **{"model.adapter": adapter, "model.dtype": dtype})
    folder = export(str(run), str(tmp_path / "x")).folder
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["init_lora_weights"]) == (8, True)
    found = said(PeftModel.from_pretrained(base_of(run), str(folder)))
    assert float((found - own(run)).abs().mean()) < (1e-5 if dtype == "float32" else 1e-2)
    merged = export(str(run), str(tmp_path / "merged"), merge=True, dtype="float32").folder
    torch.testing.assert_close(said(AutoModelForCausalLM.from_pretrained(merged)), own(run), rtol=0, atol=1e-4)


def test_pissa_from_another_base_is_refused(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The initial matrices are recomputed; when they are not those that training began from, nothing is written."""
    run, add_adapter = adapter_run(task, "pissa"), exporting.write_model.__globals__["add_adapter"]

    def other(lm: Any, *args: Any, **kwargs: Any) -> Any:
        lm.model.layers[0].mlp.up_proj.weight.data.mul_(2)
        return add_adapter(lm, *args, **kwargs)

    monkeypatch.setitem(exporting.write_model.__globals__, "add_adapter", other)
    with pytest.raises(RunError, match="does not say what"):
        export(str(run), str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_bases(task: Path, tmp_path: Path, kind: str) -> None:
    """Merged into the dequantized base: what the learner computes with."""
    run = trained(task, kind, **{"model.adapter": {"rank": 4}, "model.quantization": {"type": kind}})
    expected = own(run)
    done = export(str(run), str(tmp_path / "adapter"))
    assert (done.folder / "quantization_config.json").exists()
    card = (done.folder / "README.md").read_text()
    assert f"| base in training | {kind}" in card and f"only, on its base in {kind}" in done.lines[1]
    assert "from_dict(json.load(open" in card and "from vllm" not in card
    code = card.split("```python")[1].split("```")[0].replace("DIR", str(done.folder))
    there: dict[str, Any] = {}
    exec(code, there)
    assert float((said(there["model"]) - expected).abs().mean()) < 0.02, "bitsandbytes' own passes are near ours"
    merged = export(str(run), str(tmp_path / "merged"), merge=True).folder
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert not getattr(model, "is_quantized", False) and not (merged / "quantization_config.json").exists()
    torch.testing.assert_close(said(model), expected, rtol=0, atol=1e-4)


def test_bfloat16_merged(task: Path, tmp_path: Path) -> None:
    run = adapter_run(task, "lora", **{"model.dtype": "bfloat16"})
    rounded = export(str(run), str(tmp_path / "rounded"), merge=True)
    assert "mean within 0.05" in rounded.lines[-1]
    exact = export(str(run), str(tmp_path / "exact"), merge=True, dtype="float32")
    assert "(limit: within 0.0001)" in exact.lines[-1]
    assert AutoConfig.from_pretrained(exact.folder).dtype == torch.float32


def test_a_write_that_went_wrong_leaves_nothing(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, write = adapter_run(task, "lora"), exporting.write_model

    def worse(saved: Any, form: Any, dtype: Any, folder: Path) -> None:
        write(saved, form, dtype, folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({n: t * 1.05 for n, t in tensors.items()}, folder / "adapter_model.safetensors")

    monkeypatch.setattr(exporting, "write_model", worse)
    with pytest.raises(RunError, match="largest difference"):
        export(str(run), str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def test_bad_input(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, lora = trained(task, "full"), adapter_run(task, "lora")
    to = str(tmp_path / "x")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    (task / "runs" / "begun").mkdir(exist_ok=True)
    (task / "runs" / "begun" / "config.yaml").write_text((full / "config.yaml").read_text())
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"target": str(task / "runs" / "begun"), "to": to}, ["has no checkpoint yet", "nothing to export"]),
        ({"target": str(task / "runs" / "ful"), "to": to}, ["there is no such", "full"]),
        ({"target": str(task), "to": to}, ["neither a run folder nor a checkpoint"]),
        ({"target": str(full), "to": str(tmp_path / "taken")}, ["--to", "is not empty"]),
        ({"target": str(full), "to": str(tmp_path / "taken" / "mine.txt")}, ["--to", "is a file"]),
        ({"target": str(full), "to": to, "step": 7}, ["--step 7", "there are: 2, 3"]),
        ({"target": str(full), "to": to, "merge": True}, ["--merge", "full weights"]),
    ]
    for arguments, expected in cases:
        with pytest.raises(UserError) as error:
            export(**arguments)
        assert all(part in str(error.value) for part in expected), str(error.value)
    monkeypatch.setitem(KINDS, "lora", KINDS["lora"]._replace(merges=False))
    with pytest.raises(UserError, match="of type lora cannot be merged"):
        export(str(lora), to, merge=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
    assert "--to" in rlft(task, "export", "runs/full").stderr
    assert "is not empty" in fails(2, rlft(task, "export", "runs/full", "--to", "."))


def test_an_adapter_whose_base_is_gone(task: Path, tmp_path: Path) -> None:
    model = export(str(trained(task, "full")), str(tmp_path / "base")).folder
    changes = {"model.tiny": None, "model.path": str(model), "model.adapter": {"rank": 4}}
    base = {**SFT, "model": {}}
    run = tmp_path / "runs" / "lora"
    quick = {k: v for k, v in FAST.items() if not k.startswith("model.tiny")}
    train_here(
        task,
        write_config(task, "gone", base, quick | changes | {"run.dir": str(tmp_path / "runs"), "run.name": "lora"}),
    )
    model.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="which is not there any more"):
        export(str(run), str(tmp_path / "x"))


@pytest.mark.parametrize("kind", ["lora", "pissa", "delta_lora"])
def test_an_adapter_on_another_base_is_refused(task: Path, tmp_path: Path, kind: str) -> None:
    """Of the same sizes, of others, and the right one in another type and another folder."""
    saved = find_saved(adapter_run(task, kind))
    base, model = base_of(saved.run), saved.config.model
    others = {"moved": base, "bfloat16": base.to(torch.bfloat16)}
    for name in ("trained", "smaller"):
        others[name] = base_of(saved.run)
    with torch.no_grad():
        for weight in others["trained"].parameters():
            weight.mul_(1.05)
    others["smaller"] = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(model.path), hidden_size=32))
    for name, other in others.items():
        other.save_pretrained(tmp_path / name)
    for name in ("moved", "bfloat16"):
        load_checkpoint(model.model_copy(update={"path": str(tmp_path / name)}), saved.checkpoint)
    for name, words in (("trained", "another .*expected"), ("smaller", "other sizes|is another")):
        with pytest.raises(UserError, match=words):
            load_checkpoint(model.model_copy(update={"path": str(tmp_path / name)}), saved.checkpoint)
    with pytest.raises(UserError, match=r"is an adapter of .*rlft export RUN --to DIR --merge"):
        load_model(model.model_copy(update={"path": str(saved.checkpoint), "adapter": None}))


def test_the_hub_is_asked_for_only_with_a_token(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(task, "full")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        export(str(run), str(tmp_path / "x"), push="me/x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no token"):
        export(str(run), str(tmp_path / "x"), push="me/x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "merge", "dtype"),
    [("lora", merge, dtype) for merge in (False, True) for dtype in ("float32", "bfloat16")]
    + [("pissa", False, "float32"), ("dora", True, "float32")],
)
def test_vllm_serves_what_the_learner_learned(task: Path, tmp_path: Path, kind: str, merge: bool, dtype: str) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed (make vllm)")
    run = adapter_run(task, kind, **{"model.tiny.num_heads": 2, "model.dtype": dtype})  # heads of a size that vLLM has
    folder = export(str(run), str(tmp_path / "x"), merge=merge).folder
    base = str(find_saved(run).config.model.path)
    words = [str(folder), dtype, str(IDS[0].tolist())] if merge else [base, dtype, str(IDS[0].tolist()), str(folder)]
    found = torch.tensor(result_of("tests.vllm_scores", words, f"{kind} in vLLM"))
    expected = own(run)[:-1].gather(-1, IDS[0, 1:, None]).squeeze(-1)
    before = said(base_of(run))[:-1].gather(-1, IDS[0, 1:, None]).squeeze(-1)
    gap = (found - expected).abs()
    assert float(gap.max() if dtype == "float32" else gap.mean()) < (1e-4 if dtype == "float32" else 1e-2), gap
    assert float((before - expected).abs().mean()) > 5e-2, "the base alone says something else"
