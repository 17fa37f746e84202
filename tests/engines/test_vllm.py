"""The real vLLM with a small model: what it draws, how it takes new weights, and what it must refuse."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlft.engines.weights import WeightUpdate
from rlft.errors import RunError, WeightSyncError
from rlft.samples import Sample, SamplingParams
from tests.engines.vllm_generator import (
    PROMPTS,
    TEMPERATURE,
    begin,
    completion,
    draw,
    gap,
    model_of,
    samples_of,
    start,
    update_of,
)  # fmt: skip
from tests.engines.vllm_generator import folder as folder  # the fixture

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("vllm", reason="vLLM is not installed (make vllm)")

EOS = 2
SQUARE = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def full(folder: Path) -> Iterator[Any]:
    """A generator of full weights."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        generator = start(folder, monkeypatch)
    yield generator
    generator.close()


@pytest.fixture(scope="module")
def adapted(folder: Path) -> Iterator[Any]:
    """A generator of a model with an adapter, that knows a stop string."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        adapter = {"rank": 4, "alpha": 6.0}
        generator = start(folder, monkeypatch, **{"model.adapter": adapter, "generator.stop": ["ab"]})
    yield generator
    generator.close()


# ---- what it draws ----


@pytest.fixture
def fresh(full: Any) -> Any:
    """The full generator on version 0."""
    full.load(update_of(model_of(full, 0), 0))
    return full


def test_logprobs_are_the_learners_at_the_temperature_of_sampling(fresh):
    lm = model_of(fresh, 0)
    for sample in samples_of(draw(fresh, max_new_tokens=40)):
        assert gap(lm, sample, 0) < 1e-4
        assert set(sample.weight_versions.tolist()) == {-1, 0}
        assert not sample.logprobs[~sample.loss_mask].any()


def test_a_sample_depends_on_its_seed_alone(fresh):
    together = draw(fresh)
    assert [[s.seed for s in g.samples] for g in together] == [[10 * i + j for j in range(3)] for i in range(4)]
    assert len({tuple(completion(s)) for s in together[0].samples}) > 1
    for prompt, group in zip(PROMPTS, together, strict=True):
        (alone,) = draw(fresh, [prompt])
        for a, b in zip(alone.samples, group.samples, strict=True):
            np.testing.assert_array_equal(a.token_ids, b.token_ids)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    other = draw(fresh, first_seed=500)
    assert [completion(s) for s in samples_of(other)] != [completion(s) for s in samples_of(together)]


def test_temperature_0_takes_the_most_likely_token(fresh):
    lm = model_of(fresh, 0)
    for sample in samples_of(draw(fresh, temperature=0.0, num_samples=1)):
        ids = torch.from_numpy(sample.token_ids.astype(np.int64))
        with torch.no_grad():
            best = lm(input_ids=ids[None]).logits[0].argmax(-1)
        start = int(sample.loss_mask.argmax())
        assert sample.token_ids[start:].tolist() == best[start - 1 : -1].tolist()


def test_end_and_limits(fresh):
    free = samples_of(draw(fresh, max_new_tokens=60, num_samples=8))
    stopped = [s for s in free if s.finish_reason == "stop"]
    assert stopped and all(completion(s)[-1] == EOS and EOS not in completion(s)[:-1] for s in stopped)
    assert all(len(completion(s)) == 60 for s in free if s.finish_reason == "length")
    letter = completion(free[0])[3]
    cut = samples_of(draw(fresh, max_new_tokens=60, num_samples=8, stop_token_ids=(letter,)))
    for a, b in zip(cut, free, strict=True):  # the same tokens up to the first of these
        expected = completion(b)[: completion(b).index(letter) + 1] if letter in completion(b) else completion(b)
        assert completion(a) == expected
    exact = samples_of(draw(fresh, max_new_tokens=60, num_samples=8, ignore_eos=True))
    assert all((len(completion(s)), s.finish_reason) == (60, "length") for s in exact)
    long = samples_of(draw(fresh, max_new_tokens=60, num_samples=8, min_new_tokens=30))
    assert all(len(completion(s)) >= 30 and EOS not in completion(s)[:29] for s in long)


def test_the_first_group_is_there_before_the_last(fresh):
    names = [(place, group.prompt.id) for place, group in begin(fresh, PROMPTS, 0, max_new_tokens=200)]
    assert sorted(names) == [(i, f"p{i}") for i in range(4)]


def test_leaving_early_gives_the_engine_back(fresh):
    stream = begin(fresh, PROMPTS, 0, max_new_tokens=900, ignore_eos=True)
    stream.close()
    fresh.load(update_of(model_of(fresh, 0), 1))  # waits for requests that are under way: there is none
    assert len(draw(fresh, version=1)) == 4


def test_a_probe_is_one_sample_by_name(fresh):
    drawn = fresh.probe(PROMPTS[0], 5, SamplingParams(1, 8, TEMPERATURE, ignore_eos=True))
    (sample,) = drawn["generator-7"].samples
    assert list(drawn) == ["generator-7"] and len(completion(sample)) == 8
    assert gap(model_of(fresh, 0), sample, 0) < 1e-4


# ---- new weights ----


def test_new_weights_are_those_that_draw(full):
    for version, complete in ((3, True), (4, False), (5, False)):
        lm = model_of(full, version)
        full.load(update_of(lm, version, complete))
        for sample in samples_of(draw(full, version=version)):
            assert gap(lm, sample, version) < 1e-4
            assert gap(model_of(full, version - 1), sample, version) > 1e-2


def test_a_model_that_vllm_repacks_is_loaded_by_vllms_own_loader(full):
    full.load(update_of(model_of(full, 6), 6))
    plant(full, "repack")
    lm = model_of(full, 7)
    full.load(update_of(lm, 7, False))
    assert max(gap(lm, sample, 7) for sample in samples_of(draw(full, version=7))) < 1e-4
    broken = update_of(model_of(full, 8), 8)
    broken.buckets[0][broken.entries[3].offset] ^= 1
    with pytest.raises(WeightSyncError, match=rf"version 8: tensor {broken.entries[3].name} arrived broken"):
        full.load(broken)
    plant(full, "")


def in_flight(generator: Any, prompts: Any, updates: list[WeightUpdate], first: int, **params: Any) -> list[Sample]:
    """Samples during which these updates arrive, each after some tokens were drawn."""
    params = {"max_new_tokens": 400, "num_samples": 2, "ignore_eos": True} | params
    stream = begin(generator, prompts, first, **params)
    for update in updates:
        _let_it_draw(generator)
        generator.load(update)
    return [sample for _, group in stream for sample in group.samples]


def _let_it_draw(generator: Any) -> None:
    """Until a request of our own, behind those under way, has been given 30 tokens."""
    draw(generator, [PROMPTS[1]], generator.version, first_seed=900, max_new_tokens=30, num_samples=1, ignore_eos=True)


@pytest.mark.parametrize("name", ["full", "adapted"])
def test_an_update_in_flight(name, request):
    """Two updates reach samples under way: each has spans of three versions, and every token's log-prob is that of the
    weights that made it, over its whole prefix: what was cached under old weights is gone."""
    generator = request.getfixturevalue(name)
    models = [model_of(generator, seed) for seed in (20, 21, 22)]
    generator.load(update_of(models[0], 20))
    updates = [update_of(models[1], 21, False), update_of(models[2], 22, False)]
    samples = in_flight(generator, PROMPTS, updates, 20)
    assert sorted(s.seed for s in samples) == [10 * i + j for i in range(4) for j in range(2)]
    spans = 0
    for sample in samples:
        versions = sample.weight_versions[sample.loss_mask]
        assert len(versions) == 400 and (np.diff(versions) >= 0).all()
        spans += len(set(versions.tolist())) == 3
        for version, lm in zip((20, 21, 22), models, strict=True):
            if (versions == version).any():
                assert gap(lm, sample, version) < 1e-4
    assert spans == 8


def test_an_adapter_update_brings_the_adapter_alone(adapted):
    first, second = model_of(adapted, 30), model_of(adapted, 31)
    whole, alone = update_of(first, 30), update_of(second, 31, False)
    adapted.load(whole)
    adapted.load(alone)
    assert alone.num_bytes < whole.num_bytes / 4
    assert all(".lora_" in entry.name for entry in alone.entries)
    for sample in samples_of(draw(adapted, version=31)):
        assert gap(second, sample, 31) < 1e-4


def test_stop_strings_end_a_sample_even_across_an_update(adapted, tokenizer):
    lm = model_of(adapted, 40)
    adapted.load(update_of(lm, 40))
    params = {"stop": ("ab",), "max_new_tokens": 400, "num_samples": 8}
    for sample in samples_of(draw(adapted, version=40, **params)):
        text = tokenizer.decode(completion(sample))
        assert "ab" not in text[:-2]
        assert sample.finish_reason == "length" or text.endswith("ab") or completion(sample)[-1] == EOS
    from rlft.engines.vllm.engine import _Row

    ids = tokenizer.encode("xxabyy", add_special_tokens=False)
    row = _Row(list(ids), [0.0] * 6, [1, 1, 1, 2, 2, 2])
    adapted._cut_at_stop(row, SamplingParams(1, 9, stop=("ab",)))
    assert (row.tokens, len(row.logprobs), row.versions, row.finish_reason) == (ids[:4], 4, [1, 1, 1, 2], "stop")


# ---- faults: each is found before anything is drawn ----


def plant(generator: Any, fault: str, name: str = "") -> None:
    generator._wait(generator._engine.collective_rpc("rlft_plant", args=(fault, name)), 60, "planting a fault")


def assert_serves_nothing(generator: Any) -> None:
    with pytest.raises(WeightSyncError, match="generator-7 was asked for samples .* on no verified version"):
        draw(generator)
    with pytest.raises(WeightSyncError, match="no verified version"):
        generator.probe(PROMPTS[0], 5, SamplingParams(1, 8))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("skip", rf"generator-7: weight version 51: tensor {SQUARE} does not hold the published bytes"),
        ("transpose", rf"generator-7: weight version 51: tensor {SQUARE} does not hold the published bytes"),
        ("half", r"generator-7: weight version 51: tensor model\.\S+ was not loaded \(\d+ problems in all\)"),
    ],
)
def test_a_fault_while_loading_is_found(full, fault, message):
    full.load(update_of(model_of(full, 50), 50))
    stream = begin(full, PROMPTS, 50, max_new_tokens=600, ignore_eos=True)
    plant(full, fault, SQUARE)
    lm = model_of(full, 51)
    with pytest.raises(WeightSyncError, match=message):
        full.load(update_of(lm, 51, complete=False))
    with pytest.raises(WeightSyncError, match="no verified version"):
        list(stream)  # samples under way do not go on under weights that nobody knows
    assert_serves_nothing(full)
    full.load(update_of(lm, 52))
    assert max(gap(lm, s, 52) for s in samples_of(draw(full, version=52))) < 1e-4


@pytest.mark.parametrize("change", ["lacks", "brings unknown", "shape", "bytes", "incomplete"])
def test_an_update_that_does_not_fit_is_refused(full, change):
    lm = model_of(full, 60)
    full.load(update_of(lm, 60))
    update = update_of(lm, 61, complete=change == "incomplete")
    if change in ("lacks", "incomplete"):
        update = replace(update, entries=tuple(e for e in update.entries if e.name != SQUARE))
    if change == "brings unknown":
        update = replace(update, entries=(*update.entries, replace(update.entries[0], name="model.extra.weight")))
    if change == "shape":
        update = replace(update, entries=tuple(
            replace(e, shape=e.shape[::-1]) if e.name.endswith("up_proj.weight") else e for e in update.entries
        ))  # fmt: skip
    if change == "bytes":
        broken = update.buckets[0].copy()
        broken[next(e.offset for e in update.entries if e.name == SQUARE)] ^= 1
        update = replace(update, buckets=(broken,))
    expected = {
        "lacks": rf"weight version 61 lacks 1 tensors: {SQUARE}",
        "brings unknown": "weight version 61 brings unknown 1 tensors: model.extra.weight",
        "shape": r"weight version 61: tensor model\.layers\.0\.mlp\.up_proj\.weight",
        "bytes": rf"weight version 61: tensor {SQUARE} arrived broken",
        "incomplete": rf"weight version 61: tensor {SQUARE} of the model was not in the update",
    }
    with pytest.raises(WeightSyncError, match=f"generator-7: {expected[change]}"):
        full.load(update)
    assert_serves_nothing(full)


def test_a_partial_update_before_any_complete_one_is_refused(adapted):
    lm = model_of(adapted, 70)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(adapted, "_trainable", None)
        with pytest.raises(WeightSyncError, match="never compared with the learner's"):
            adapted.load(update_of(lm, 70, False))


def test_an_old_adapter_that_is_served_on_is_found(adapted):
    """vLLM keeps the adapter that it has when another comes under the same number."""
    adapted.load(update_of(model_of(adapted, 80), 80))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(adapted, "_numbers", itertools.repeat(adapted._adapter.lora_int_id))

        async def keep(number: int) -> bool:
            return True

        monkeypatch.setattr(adapted._engine, "remove_lora", keep)
        with pytest.raises(WeightSyncError, match=r"version 81: tensor base_model\.model\.\S+lora_\S+ of the adapter"):
            adapted.load(update_of(model_of(adapted, 81), 81, False))
    assert_serves_nothing(adapted)


def test_a_cache_that_was_not_cleared_is_found(full):
    full.load(update_of(model_of(full, 90), 90))
    pause = full._engine.pause_generation
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            full._engine, "pause_generation", lambda mode, clear_cache: pause(mode=mode, clear_cache=False)
        )
        with pytest.raises(
            WeightSyncError, match="generator-7: weight version 91: vLLM's prefix cache was not cleared"
        ):
            full.load(update_of(model_of(full, 91), 91))
    assert_serves_nothing(full)


def test_a_worker_that_dies_during_a_load_is_named(folder):
    with pytest.MonkeyPatch.context() as monkeypatch:
        generator = start(folder, monkeypatch)
    try:
        generator.load(update_of(model_of(generator, 0), 0))
        stream = begin(generator, PROMPTS, 0, max_new_tokens=900, ignore_eos=True)
        plant(generator, "die")
        with pytest.raises(RunError, match="generator-7: vLLM failed while loading weight version 1: EngineDead"):
            generator.load(update_of(model_of(generator, 1), 1))
        with pytest.raises(RunError, match="generator-7"):
            list(stream)
        with pytest.raises(RunError, match="generator-7"):
            draw(generator)
    finally:
        generator.close()
