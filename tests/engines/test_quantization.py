"""Adapters on a quantized base, on real DeepSpeed ranks with real bitsandbytes: everything trains, whatever was looked
at before; what is published, merged and saved is what the learner says; a run goes on exactly."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rlft.config.adapters import KINDS
from rlft.data.tokenizer import load_tokenizer
from rlft.engines.learner import RankedLearner
from rlft.engines.publishing import Published
from rlft.engines.transformers import TransformersGenerator
from rlft.errors import UserError
from rlft.models import quantization
from rlft.models.adapters.attach import own_names
from rlft.models.adapters.merging import merged_weights
from rlft.models.load import load_checkpoint, load_model
from rlft.models.quantization import check_quantization, dequantize, quantized_layers, read_quantization, scales
from rlft.samples import Group, SamplingParams
from tests.engines.ranks import largest_difference, tensors_of, weights_of
from tests.engines.test_adapters import changes_for, rank_of
from tests.engines.test_deepspeed_state import make_learner, some_groups, train
from tests.helpers import make_config, make_prompt, make_sharp_model, plain_logprobs

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's own calls into torch

TYPES = ["nf4", "int8"]
ON_QUANTIZED = [kind for kind in KINDS if KINDS[kind].quantized]
EVERY = [(kind, base) for kind in ON_QUANTIZED for base in TYPES]
SHARDED = [("lora", base, *where) for base in TYPES for where in ((2, 2), (2, 3))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices of more than 100,000 elements even where two share a byte, so that ZeRO-3 splits them."""
    made = tmp_path_factory.mktemp("model") / "broad"
    sizes = {"hidden_size": 512, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 448}
    make_sharp_model(made, 2.5, **sizes, max_length=64)
    return made


def changes_on(kind: str, base: str, **more: Any) -> dict[str, Any]:
    own = {
        "lora_plus": {"lr_ratio": 2.0},  # else log-probs of -20, with float32's rounding of those
        "p_tuning": {"projection_size": 32},  # else an encoder of 15 million parameters
    }.get(kind, {})
    return changes_for(kind, **own, **more) | {"model.quantization.type": base}


@pytest.mark.parametrize("base", TYPES)
def test_the_files_of_the_whole_weights_do_not_stay_mapped(wide_folder: Path, tmp_path: Path, base: str) -> None:
    """Pages that were read to be quantized would stay in memory beside the quantized weights."""
    own = shutil.copytree(wide_folder, tmp_path / "own")  # what other tests hold of the shared one is not looked at
    lm = load_model(make_config(own, changes_on("lora", base)).model)
    gc.collect()
    assert quantized_layers(lm)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(own) in line]
    assert not mapped


def scored(learner: RankedLearner, groups: list[Group]) -> np.ndarray:
    """The learner's log-probs of all trained tokens."""
    return trained_places(groups, learner.logprobs(groups))


def trained_places(groups: list[Group], arrays: list[list[np.ndarray]]) -> np.ndarray:
    """One behind the other."""
    rows = zip(groups, arrays, strict=True)
    return np.concatenate([a[s.loss_mask] for g, row in rows for s, a in zip(g.samples, row, strict=True)])


@torch.no_grad()
def plain(lm: Any, groups: list[Group]) -> np.ndarray:
    """The same by ordinary passes of a transformers model."""
    return np.concatenate([plain_logprobs(lm.eval(), s).numpy() for g in groups for s in g.samples])


def gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


# ---- training ----


@pytest.mark.parametrize(("kind", "base"), EVERY)
def test_behind_passes_that_are_only_looked_at_gradients_are_those_of_a_plain_base(
    rank_pool, folder, tmp_path, kind, base
):  # fmt: skip
    """Of a plain model with the dequantized weights. What reaches a weight beside a quantized layer is not enough."""
    changes, found = changes_on(kind, base), list[list[dict[str, torch.Tensor]]]()
    alone = make_config(folder, changes).model.model_copy(update={"adapter": None})
    dequantize(load_model(alone)).save_pretrained(tmp_path)
    plainly = {key: value for key, value in changes.items() if not key.startswith("model.quantization")}
    for path, settings in ((tmp_path, plainly), (folder, changes)):
        learner = make_learner(rank_pool, path, 1, 0, settings)
        model = rank_of(learner)._policy.model
        stored = {n: p.data.clone() for n, p in model.named_parameters() if not p.requires_grad}
        gradients = _watched(learner)
        for step in range(3):
            learner.logprobs(some_groups(7))
            learner.reference_logprobs(some_groups(8))
            learner.publish(step, everything=True)
            train(learner, range(step, step + 1))
        assert all(torch.equal(p.data, stored[n]) for n, p in model.named_parameters() if n in stored)
        found.append(gradients)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert quantized_layers(model) and trained
    for right, ours in zip(*found, strict=True):
        assert set(right) == set(ours) == trained
        size = torch.stack([g.norm() for g in right.values()]).norm()
        assert [n for n in trained if (right[n] - ours[n]).norm() > 1e-3 * (right[n].norm() + 1e-2 * size)] == []
    last = found[1][-1]  # in the first, gradients of LoRA's A are 0 because B is
    assert [n for n, g in last.items() if not bool(torch.isfinite(g).all()) or not bool(g.any())] == []


def _watched(learner: RankedLearner) -> list[dict[str, torch.Tensor]]:
    """The gradients of each update from now on."""
    seen, rank = list[dict[str, torch.Tensor]](), rank_of(learner)
    there = rank._adapter.gradient_is_there

    def look() -> None:
        model = rank._policy.model
        seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        there()

    rank._adapter.gradient_is_there = look  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize(("kind", "base", "num_ranks", "stage"), SHARDED)
def test_several_ranks_learn_what_one_does(rank_pool, folder, kind, base, num_ranks, stage):
    one = make_learner(rank_pool, folder, 1, 0, changes_on(kind, base))
    expected, weights = train(one, range(3)), weights_of(one)
    many = make_learner(rank_pool, folder, num_ranks, stage, changes_on(kind, base))
    many.logprobs(some_groups(7))
    for ours, theirs in zip(train(many, range(3)), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert largest_difference(weights_of(many), weights) < 1e-4


@pytest.mark.parametrize("base", TYPES)
def test_the_base_is_in_fewer_bits(rank_pool, folder, base):
    model = rank_of(make_learner(rank_pool, folder, 1, 0, changes_on("lora", base)))._policy.model
    layers = quantized_layers(model)
    assert len(layers) == 7
    bits = {name: 8 * layer.weight.nbytes for name, layer in layers.items()}
    for name, tensor in scales(model):
        bits[next(n for n in layers if name.startswith(n))] += 8 * tensor.nbytes
    weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    assert sum(bits.values()) / weights == pytest.approx({"nf4": 4.13, "int8": 8.06}[base], abs=0.1)
    outer = model.get_base_model().get_output_embeddings()
    assert outer.weight.dtype == torch.float32, "the output layer stays as it was"


# ---- what generators are given ----


@pytest.mark.parametrize(("kind", "base"), EVERY)
def test_a_generator_with_dequantized_weights_draws_what_the_learner_says(rank_pool, folder, kind, base):
    changes = changes_on(kind, base)
    learner = make_learner(rank_pool, folder, 1, 0, changes)
    held = make_config(folder, changes | {"loop.mismatch_stop": 100.0}).model
    generator = TransformersGenerator(held, load_tokenizer(str(folder), None), 16)
    prompts = [make_prompt([5, 6, 7 + i], str(i)) for i in range(3)]

    def drawn(version: int) -> float:
        seeds = [[10 * i + j for j in range(3)] for i in range(3)]
        wanted = SamplingParams(num_samples=3, max_new_tokens=12)
        groups = [group for _, group in generator.generate(prompts, seeds, wanted, version)]
        sampled = np.concatenate([s.logprobs[s.loss_mask] for g in groups for s in g.samples])
        return gap(sampled, scored(learner, groups))

    first = learner.publish(0, everything=True)
    generator.load(first)
    assert drawn(0) < 1e-4
    train(learner, range(3))
    update = learner.publish(3)
    assert {e.name for e in update.entries} == set(own_names(generator._lm))
    assert update.num_bytes < first.num_bytes
    before = drawn(0)
    generator.load(update)
    assert drawn(3) < 1e-4
    assert before > 1e-3, "the learner had moved"


@pytest.mark.parametrize("base", TYPES)
def test_in_bfloat16_both_differ_by_rounding(rank_pool, folder, base):
    changes = changes_on("lora", base) | {"model.dtype": "bfloat16"}
    learner = make_learner(rank_pool, folder, 1, 2, changes)
    train(learner, range(2))
    lm = load_model(make_config(folder, changes).model.model_copy(update={"quantization": None}))
    lm.load_state_dict(tensors_of(learner.publish(2, everything=True)), strict=False)
    assert next(lm.parameters()).dtype == torch.bfloat16
    groups = some_groups(9)
    assert np.abs(plain(lm, groups) - scored(learner, groups)).mean() < 0.05  # loop.mismatch_warn


@pytest.mark.parametrize(("kind", "base"), [each for each in EVERY if KINDS[each[0]].merges])
def test_merged_into_the_dequantized_base_it_says_the_same(rank_pool, folder, kind, base):
    learner = make_learner(rank_pool, folder, 1, 0, changes_on(kind, base) | {"generator.engine": "vllm"})
    train(learner, range(3))
    groups = some_groups(9)
    scores = scored(learner, groups)
    model, engine = rank_of(learner)._policy.model, rank_of(learner)._engine
    merged = dict(Published(model, merged=True).tensors(engine, everything=True))
    if KINDS[kind].served == "merged":
        assert largest_difference(tensors_of(learner.publish(3, everything=True)), merged) == 0
    lm = AutoModelForCausalLM.from_pretrained(folder)
    untouched = plain(lm, groups)
    missing, unexpected = lm.load_state_dict(merged, strict=False)
    assert not unexpected and all("lm_head" in name for name in missing)
    assert gap(plain(lm, groups), scores) < 1e-4
    assert gap(untouched, scores) > 1e-2
    assert scored(learner, groups).tolist() == scores.tolist(), "merging has left the model as it was"
    assert all(torch.equal(merged[name], tensor) for name, tensor in merged_weights(model)), "and can be done again"


@pytest.mark.parametrize(("kind", "base"), [each for each in EVERY if KINDS[each[0]].reference])
def test_turned_off_it_is_the_quantized_base(rank_pool, folder, kind, base):
    changes = changes_on(kind, base)
    learner = make_learner(rank_pool, folder, 1, 0, changes)
    train(learner, range(3))
    groups, alone = some_groups(9), make_config(folder, changes).model.model_copy(update={"adapter": None})
    found = trained_places(groups, learner.reference_logprobs(groups))
    assert gap(found, plain(dequantize(load_model(alone)), groups)) < 1e-4
    assert gap(found, plain(AutoModelForCausalLM.from_pretrained(folder), groups)) > {"nf4": 0.05, "int8": 5e-3}[base]


# ---- checkpoints ----

CONTINUED = [(kind, base, 1, 0, "float32") for kind, base in EVERY]
CONTINUED += [(*each, "float32") for each in SHARDED]
CONTINUED += [("lora", base, 1, 2, "bfloat16") for base in TYPES]


@pytest.mark.parametrize(("kind", "base", "num_ranks", "stage", "dtype"), CONTINUED)
def test_a_run_on_a_quantized_base_goes_on_exactly(
    rank_pool, folder, tmp_path, kind, base, num_ranks, stage, dtype
):  # fmt: skip
    """To the last bit; the base is not in the checkpoint but made again, and compared with what it was."""
    dropout = {"dropout": 0.3} if "dropout" in KINDS[kind].keys else {}
    changes = changes_on(kind, base, **dropout) | {"model.dtype": dtype}
    whole = make_learner(rank_pool, folder, num_ranks, stage, changes)
    train(whole, range(2))
    whole.save(tmp_path)
    expected_metrics = train(whole, range(2, 4))
    expected = weights_of(whole)
    again = make_learner(rank_pool, folder, num_ranks, stage, changes)
    again.logprobs(some_groups(7))
    again.restore(tmp_path)
    assert train(again, range(2, 4)) == expected_metrics
    assert largest_difference(weights_of(again), expected) == 0
    saved = sum(file.stat().st_size for file in (tmp_path / "learner").rglob("*") if file.is_file())
    if kind == "lora" and dtype == "float32":
        assert saved < 0.5 * sum(t.nbytes for t in expected.values()), "the base is not in it"


@pytest.mark.parametrize("base", TYPES)
def test_another_base_is_refused(rank_pool, folder, tmp_path, base):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    learner = make_learner(rank_pool, copy, 1, 0, changes_on("lora", base))
    learner.save(tmp_path / "saved")
    lm = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        lm.model.layers[0].mlp.up_proj.weight[0] *= 1.5
    lm.save_pretrained(copy)
    again = make_learner(rank_pool, copy, 1, 0, changes_on("lora", base))
    with pytest.raises(UserError, match=r"model\.path: the quantized base is not the one .*up_proj"):
        again.restore(tmp_path / "saved")


@pytest.mark.parametrize(("kind", "base"), EVERY)
def test_a_checkpoint_is_the_same_policy_for_us_and_for_peft(rank_pool, folder, tmp_path, kind, base):
    learner = make_learner(rank_pool, folder, 1, 0, changes_on(kind, base))
    train(learner, range(3))
    learner.save(tmp_path)
    groups, model = some_groups(9), rank_of(learner)._config.model
    scores = scored(learner, groups)
    assert gap(plain(load_checkpoint(model, tmp_path), groups), scores) < 1e-4
    ours = load_model(model.model_copy(update={"adapter": None}))
    assert quantized_layers(ours)
    assert gap(plain(PeftModel.from_pretrained(ours, str(tmp_path)), groups), scores) < 1e-4
    assert read_quantization(tmp_path) == model.quantization


@pytest.mark.parametrize("base", TYPES)
def test_others_load_a_checkpoint_on_a_base_that_they_quantize(rank_pool, folder, tmp_path, base):
    """With bitsandbytes' own passes, which on CPUs compute with bfloat16, or round activations to 8 bits."""
    learner = make_learner(rank_pool, folder, 1, 0, changes_on("lora", base))
    train(learner, range(3))
    learner.save(tmp_path)
    settings = BitsAndBytesConfig.from_dict(json.loads((tmp_path / "quantization_config.json").read_text()))
    lm = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.float32)
    groups = some_groups(9)
    untrained, scores = plain(lm, groups), scored(learner, groups)
    found = plain(PeftModel.from_pretrained(lm, str(tmp_path)), groups)
    assert gap(found, scores) < 0.2 < gap(untrained, scores)


# ---- where it cannot be ----


@pytest.mark.parametrize("package", ["bitsandbytes", "accelerate"])
def test_a_missing_package_is_named(folder, monkeypatch, package):
    real = quantization.find_spec
    monkeypatch.setattr(quantization, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(UserError, match=rf"model\.quantization: nf4 needs {package}.*pip install {package}"):
        check_quantization(make_config(folder, changes_on("lora", "nf4")).model, "cpu")


@pytest.mark.parametrize("base", TYPES)
def test_a_library_without_a_backend_is_told_before_anything_starts(folder, monkeypatch, base):
    import bitsandbytes.functional as library

    from actors import launch

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(library, "quantize_4bit", fails)
    monkeypatch.setattr(library, "int8_vectorwise_quant", fails)
    with pytest.raises(UserError, match=rf"cannot do {base} on cpu \(RuntimeError: no kernel image\).*pip install -U"):
        launch.train(make_config(folder, changes_on("lora", base)), dataset=[{"prompt": "1", "answer": "1"}])


def test_a_model_that_is_stored_in_fewer_bits_is_refused(folder, tmp_path):
    settings = make_config(folder, changes_on("lora", "nf4")).model
    lm: Any = load_model(settings.model_copy(update={"adapter": None}))
    for layer in quantized_layers(lm).values():
        del layer.forward
    lm.save_pretrained(tmp_path / "small")
    for held in (settings.quantization, None):
        other = settings.model_copy(update={"path": str(tmp_path / "small"), "adapter": None, "quantization": held})
        with pytest.raises(UserError, match=r"model\.path: .*small is stored in fewer bits already"):
            load_model(other)
