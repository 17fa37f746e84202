"""The transformers generator with a real model: samples that depend on their seed alone, log-probs that are true."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlft.config.adapters import AdapterConfig
from rlft.config.model import ModelConfig
from rlft.engines.transformers import TransformersGenerator
from rlft.engines.weights import WeightUpdate, pack_weights
from rlft.errors import WeightSyncError
from rlft.models.sampling import draw, uniforms
from rlft.samples import Group, Prompt, Sample, SamplingParams
from tests.helpers import make_prompt, plain_logprobs

EOS = 2
LETTER_A = 4 + "0123456789+-*/=()[]{}<>.,:;?!_ \na".index("a")


@pytest.fixture(scope="module")
def plain(tiny_folder) -> Any:
    """The same model as transformers has it."""
    return AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager").eval()


def make_generator(folder: Any, tokenizer: Any, max_concurrent: int = 64, **model: Any) -> TransformersGenerator:
    return TransformersGenerator(ModelConfig(path=str(folder), **model), tokenizer, max_concurrent, name="generator 1")


def update_of(generator: TransformersGenerator, version: int, change: float = 0.0) -> WeightUpdate:
    """Every weight of the generator, a little changed."""
    named = list(generator.policy.model.named_parameters())
    return pack_weights(((n, p.detach() + change) for n, p in named), version, True, [n for n, _ in named])


@pytest.fixture(scope="module")
def generator(tiny_folder, tokenizer) -> TransformersGenerator:
    """A generator on version 0, the weights of the folder."""
    made = make_generator(tiny_folder, tokenizer)
    made.load(update_of(made, 0))
    return made


PROMPTS = [make_prompt(ids, f"p{i}") for i, ids in enumerate([[5, 6, 7], [30], [8, 9, 10, 11, 12, 13, 14], [6, 6]])]


def generate(
    generator: TransformersGenerator, prompts: list[Prompt] = PROMPTS, version: int = 0, first_seed: int = 100,
    **params: Any,
) -> list[Group]:  # fmt: skip
    """Groups in the order of their prompts; sample j of prompt p has a seed of its own."""
    settings = SamplingParams(**{"num_samples": 3, "max_new_tokens": 12, **params})
    seeds = [[first_seed + 10 * PROMPTS.index(p) + j for j in range(settings.num_samples)] for p in prompts]
    answers = list(generator.generate(prompts, seeds, settings, version))
    assert sorted(place for place, _ in answers) == list(range(len(prompts)))
    groups = [group for _, group in sorted(answers, key=lambda answer: answer[0])]
    assert [g.prompt.id for g in groups] == [p.id for p in prompts]
    assert [[s.seed for s in g.samples] for g in groups] == seeds
    return groups


def every_sample(groups: list[Group]) -> list[Sample]:
    return [s for g in groups for s in g.samples]


def completion(sample: Sample) -> list[int]:
    return sample.token_ids[sample.loss_mask].tolist()


def assert_same(a: Sample, b: Sample) -> None:
    np.testing.assert_array_equal(a.token_ids, b.token_ids)
    np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=0, atol=1e-5)
    assert (a.text, a.finish_reason) == (b.text, b.finish_reason)


def test_what_a_sample_holds(generator, tokenizer):
    samples = every_sample(generate(generator))
    assert len({tuple(completion(s)) for s in samples}) > 6
    for i, sample in enumerate(samples):
        prompt = PROMPTS[i // 3].token_ids
        start = len(prompt)
        assert sample.token_ids[:start].tolist() == prompt.tolist()
        assert sample.token_ids.dtype == np.int32
        assert sample.loss_mask.tolist() == [False] * start + [True] * (len(sample.token_ids) - start)
        assert not sample.logprobs[:start].any()
        assert (sample.logprobs[start:] < 0).all()
        assert sample.weight_versions.tolist() == [-1] * start + [0] * sample.num_trained
        tokens = completion(sample)
        assert sample.text == tokenizer.decode([t for t in tokens if t > 3])
        assert sample.finish_reason == ("stop" if tokens[-1] == EOS else "length")
        assert EOS not in tokens[:-1]
        assert len(tokens) == 12 or tokens[-1] == EOS


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_sample_is_the_same_alone_or_in_a_batch(generator, temperature):
    together = generate(generator, temperature=temperature)
    for prompt, group in zip(PROMPTS, together, strict=True):
        (alone,) = generate(generator, [prompt], temperature=temperature)
        for a, b in zip(alone.samples, group.samples, strict=True):
            assert_same(a, b)
    (one,) = generate(generator, PROMPTS[:1], num_samples=1, temperature=temperature)
    assert_same(one.samples[0], together[0].samples[0])


@pytest.mark.parametrize("max_concurrent", [1, 3, 5, 7])
def test_a_sample_does_not_depend_on_how_many_are_decoded_side_by_side(
    generator, tiny_folder, tokenizer, max_concurrent
):
    other = make_generator(tiny_folder, tokenizer, max_concurrent)
    other.load(update_of(other, 0))
    for a, b in zip(every_sample(generate(other)), every_sample(generate(generator)), strict=True):
        assert_same(a, b)


def test_long_samples_of_many_rows_that_end_at_different_times(generator, plain):
    """70 tokens: new random numbers and more room for the cache are needed on the way, and rows leave the batch."""
    groups = generate(generator, num_samples=12, max_new_tokens=70, temperature=0.8)
    samples = every_sample(groups)
    lengths = {s.num_trained for s in samples}
    assert max(lengths) == 70
    assert len(lengths) > 5
    for sample in samples:
        with torch.no_grad():
            expected = plain_logprobs(plain, sample, 0.8).numpy()
        np.testing.assert_allclose(sample.logprobs[sample.loss_mask], expected, rtol=0, atol=1e-4)
    (alone,) = generate(generator, PROMPTS[1:2], num_samples=12, max_new_tokens=70, temperature=0.8)
    for a, b in zip(alone.samples, groups[1].samples, strict=True):
        assert_same(a, b)


def test_token_t_is_drawn_with_number_t_of_its_seed(generator, plain):
    """Also beyond the 64 numbers that are made at a time."""
    for group in generate(generator, num_samples=2, max_new_tokens=140, ignore_eos=True):
        for sample in group.samples:
            start = len(group.prompt.token_ids)
            with torch.no_grad():
                logits = plain(torch.from_numpy(sample.token_ids[None].astype(np.int64))).logits[0, start - 1 : -1]
            numbers = torch.from_numpy(uniforms(np.array([sample.seed], dtype=np.uint64), 0, 140)[0])
            assert completion(sample) == draw(logits, numbers, 1.0)[0].tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_sampler_logprobs_are_those_of_a_plain_forward_pass(generator, plain, temperature):
    for group in generate(generator, temperature=temperature):
        for sample in group.samples:
            with torch.no_grad():
                expected = plain_logprobs(plain, sample, temperature).numpy()
            np.testing.assert_allclose(sample.logprobs[sample.loss_mask], expected, rtol=0, atol=1e-4)


def test_first_tokens_are_drawn_with_the_models_probabilities(generator, plain):
    """4000 seeds against the first token's distribution, tokens of less than 1 % together. Over at most 40 cells a
    chi-square above 85 comes by chance once in 25,000."""
    prompt = PROMPTS[0]
    settings = SamplingParams(num_samples=4000, max_new_tokens=1, temperature=1.2)
    ((_, group),) = generator.generate([prompt], [list(range(4000))], settings, 0)
    counts = np.bincount([completion(s)[0] for s in group.samples], minlength=64)
    with torch.no_grad():
        logits = plain(torch.from_numpy(prompt.token_ids[None].astype(np.int64))).logits[0, -1]
    expected = 4000 * torch.softmax(logits / 1.2, -1).numpy()
    often = expected > 40
    cells = [(counts[often], expected[often]), ([counts[~often].sum()], [expected[~often].sum()])]
    assert 3 < often.sum() < 40
    assert sum(((np.array(c) - np.array(e)) ** 2 / np.array(e)).sum() for c, e in cells) < 85


def test_greedy_takes_the_likeliest_token_each_time(generator, plain):
    for group in generate(generator, temperature=0.0):
        first, *others = group.samples
        assert all(completion(o) == completion(first) for o in others)
        ids = torch.from_numpy(first.token_ids[None].astype(np.int64))
        with torch.no_grad():
            best = plain(ids).logits[0].argmax(-1)
        start = len(group.prompt.token_ids)
        assert completion(first) == best[start - 1 : -1].tolist()


def test_the_end_cannot_come_before_min_new_tokens(generator):
    free = [s.num_trained for s in every_sample(generate(generator, num_samples=100, temperature=3.0))]
    assert min(free) < 6, "some samples end early by themselves"
    samples = every_sample(generate(generator, num_samples=100, temperature=3.0, min_new_tokens=6))
    ends = {completion(s).index(EOS) for s in samples if EOS in completion(s)}
    assert min(ends) == 6, "right behind the sixth it can"
    assert min(s.num_trained for s in samples) == 7


def test_min_new_tokens_leaves_the_logprobs_those_of_the_policy(generator, plain):
    for sample in every_sample(generate(generator, temperature=1.5, min_new_tokens=12)):
        with torch.no_grad():
            expected = plain_logprobs(plain, sample, 1.5).numpy()
        np.testing.assert_allclose(sample.logprobs[sample.loss_mask], expected, rtol=0, atol=1e-4)


def test_ignore_eos_draws_exactly_max_new_tokens(generator):
    samples = every_sample(generate(generator, num_samples=30, temperature=1.5, ignore_eos=True))
    assert {s.num_trained for s in samples} == {12}
    assert {s.finish_reason for s in samples} == {"length"}
    assert any(EOS in completion(s)[:-1] for s in samples)


@pytest.mark.parametrize("limit", [1, 2])
def test_max_new_tokens(generator, limit):
    samples = every_sample(generate(generator, max_new_tokens=limit))
    assert max(s.num_trained for s in samples) == limit
    longer = every_sample(generate(generator, max_new_tokens=8))
    for short, long in zip(samples, longer, strict=True):
        assert completion(short) == completion(long)[:limit]


def test_a_stop_token_ends_a_sample_like_the_models_own(generator):
    free = every_sample(generate(generator, num_samples=20, max_new_tokens=30, temperature=1.2))
    token = next(completion(s)[3] for s in free if len(completion(s)) > 5)
    cut = every_sample(generate(generator, num_samples=20, max_new_tokens=30, temperature=1.2, stop_token_ids=(token,)))
    for before, after in zip(free, cut, strict=True):
        tokens = completion(before)
        assert completion(after) == (tokens[: tokens.index(token) + 1] if token in tokens else tokens)
        assert after.finish_reason == ("stop" if token in tokens else before.finish_reason)


def test_a_stop_string_ends_a_sample_behind_it(generator, tokenizer):
    free = every_sample(generate(generator, num_samples=20, max_new_tokens=30, temperature=1.2))
    stop = next(s.text[2:4] for s in free if len(s.text) > 8)  # two tokens that do occur
    cut = every_sample(
        generate(generator, num_samples=20, max_new_tokens=30, temperature=1.2, stop=(stop, "never this"))
    )
    stopped = 0
    for before, after in zip(free, cut, strict=True):
        text = tokenizer.decode(completion(before))
        if stop in text:
            stopped += 1
            assert tokenizer.decode(completion(after)) == text[: text.index(stop) + len(stop)]
            assert after.finish_reason == "stop"
        else:
            assert_same(before, after)
    assert stopped


# ---- versions ----


def test_a_fresh_generator_serves_nothing(tiny_folder, tokenizer):
    fresh = make_generator(tiny_folder, tokenizer)
    with pytest.raises(WeightSyncError, match="generator 1 .* version 0 but is on no verified version"):
        generate(fresh)


def test_another_version_than_the_loaded_one_is_refused(generator):
    with pytest.raises(WeightSyncError, match="generator 1 .* version 1 but is on version 0"):
        generate(generator, version=1)


def test_loaded_weights_are_the_ones_that_draw(tiny_folder, tokenizer, generator):
    other = make_generator(tiny_folder, tokenizer)
    other.load(update_of(other, 5, change=0.05))
    moved = every_sample(generate(other, version=5))
    assert all((s.weight_versions[s.loss_mask] == 5).all() for s in moved)
    assert [completion(s) for s in moved] != [completion(s) for s in every_sample(generate(generator))]
    other.load(update_of(generator, 6))
    for a, b in zip(every_sample(generate(other, version=6)), every_sample(generate(generator)), strict=True):
        assert_same(a, replace(b, weight_versions=a.weight_versions))


@pytest.mark.parametrize("spoil", ["byte", "missing"])
def test_a_failed_load_leaves_the_generator_serving_nothing(tiny_folder, tokenizer, spoil):
    made = make_generator(tiny_folder, tokenizer)
    made.load(update_of(made, 0))
    update = update_of(made, 1)
    if spoil == "byte":
        update.buckets[0][1000] ^= 4
    else:
        update = replace(update, entries=update.entries[1:])
    with pytest.raises(WeightSyncError, match="generator 1: .*weight version 1"):
        made.load(update)
    for version in (0, 1):
        with pytest.raises(WeightSyncError, match="no verified version"):
            generate(made, version=version)
    made.load(update_of(made, 2))
    generate(made, version=2)


def test_adapters_alone_are_enough_once_the_rest_is_verified(tiny_folder, tokenizer):
    made = make_generator(tiny_folder, tokenizer, adapter=AdapterConfig(rank=2))
    parameters = dict(made.policy.model.named_parameters())
    adapters = [n for n, p in parameters.items() if p.requires_grad]
    assert adapters
    assert all("lora_" in n for n in adapters)

    def update(version: int, change: float) -> WeightUpdate:
        return pack_weights(((n, parameters[n].detach() + change) for n in adapters), version, False, adapters)

    with pytest.raises(WeightSyncError, match="generator 1: .* version 3 brings only what trains"):
        made.load(update(3, 0.1))
    made.load(update_of(made, 3))
    before = every_sample(generate(made, version=3))
    made.load(update(4, 0.1))
    assert [completion(s) for s in every_sample(generate(made, version=4))] != [completion(s) for s in before]
    made.load(update(5, -0.1))
    for a, b in zip(every_sample(generate(made, version=5)), before, strict=True):
        assert_same(a, replace(b, weight_versions=a.weight_versions))
    with pytest.raises(WeightSyncError, match="brings unknown"):
        made.load(replace(update_of(made, 6), complete=False))
