"""The transformers generator whose weights change while samples are drawn.

Every token must be the one, with the log-prob, that a plain forward pass of transformers gives under the weights whose
version it carries.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlft.batch import make_pack, unpack
from rlft.config.adapters import AdapterConfig
from rlft.config.model import ModelConfig
from rlft.engines import decoding
from rlft.engines.transformers import TransformersGenerator
from rlft.engines.weights import WeightUpdate, pack_weights
from rlft.errors import WeightSyncError
from rlft.models.sampling import draw, uniforms
from rlft.samples import Group, Prompt, Sample, SamplingParams
from tests.helpers import make_prompt

EOS = 2
LIMIT_S = 60  # for what takes a second, unless threads wait for each other for ever
PROMPTS = [make_prompt(ids, f"p{i}") for i, ids in enumerate([[5, 6, 7], [30], [8, 9, 10, 11, 12, 13, 14], [6, 6]])]
LONG = SamplingParams(num_samples=5, max_new_tokens=70, min_new_tokens=6, temperature=1.3)
FULL = SamplingParams(num_samples=2, max_new_tokens=24, ignore_eos=True)  # all groups are finished at the same token


class Watched(TransformersGenerator):
    """Writes down which thread has each turn of drawing. Loads updates from another thread, and waits for that, as soon
    as the rows of a call have so many tokens."""

    updates: dict[int, list[WeightUpdate]]  # by number of tokens
    loads: list[Future[None]]
    drawers: list[int]

    def _verified_version(self, at_least: int) -> int:
        self.drawers.append(threading.get_ident())
        return super()._verified_version(at_least)

    def _finish(self, row: decoding.Row, params: SamplingParams) -> Any:
        for update in self.updates.pop(len(row.tokens), []):
            self.loads.append(in_thread(self.load, update))
            self.loads[-1].exception(LIMIT_S)
        return super()._finish(row, params)


def in_thread(work: Callable[..., Any], *args: Any) -> Future[Any]:
    """Start work on a thread of its own."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work, *args)
    pool.shutdown(wait=False)
    return future


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "what this test waits for did not happen"
        time.sleep(0.001)


class World:
    """One model under several versions of its weights."""

    def __init__(self, folder: Any, tokenizer: Any) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.references = []  # place: version
        for version in range(4):
            model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
            random = torch.Generator().manual_seed(version)
            with torch.no_grad():
                for parameter in model.parameters() if version else []:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=random)
            self.references.append(model)

    def update(self, version: int) -> WeightUpdate:
        named = list(self.references[version].named_parameters())
        return pack_weights(named, version, True, [n for n, _ in named])

    def broken_update(self, version: int) -> WeightUpdate:
        update = self.update(version)
        update.buckets[0][1000] ^= 4
        return update

    def generator(self, version: int | None = 0, max_concurrent: int = 64, **model: Any) -> Watched:
        made = Watched(ModelConfig(path=str(self.folder), **model), self.tokenizer, max_concurrent, name="generator 1")
        made.updates, made.loads, made.drawers = {}, [], []
        if version is not None:
            made.load(self.update(version))
        return made

    @torch.no_grad()
    def check(self, sample: Sample, params: SamplingParams, atol: float = 1e-5) -> None:
        """Each token is drawn with its own random number from what the weights of its version say."""
        numbers = uniforms(np.array([sample.seed], dtype=np.uint64), 0, params.max_new_tokens)[0]
        start = int((~sample.loss_mask).sum())
        assert (sample.weight_versions[:start] == -1).all()
        ids = torch.from_numpy(sample.token_ids[None].astype(np.int64))
        for version in set(sample.weight_versions[start:].tolist()):
            logits = self.references[version](ids).logits[0]
            for at in np.flatnonzero(sample.weight_versions == version).tolist():
                t = at - start
                banned = torch.tensor([EOS]) if t < params.min_new_tokens else None
                token, _ = draw(logits[at - 1 : at], torch.tensor([numbers[t]]), params.temperature, banned)
                expected = torch.log_softmax(logits[at - 1] / params.temperature, -1)[sample.token_ids[at]]
                assert token.item() == sample.token_ids[at]
                assert abs(expected.item() - sample.logprobs[at]) < atol


@pytest.fixture(scope="module")
def world(tiny_folder, tokenizer) -> World:
    return World(tiny_folder, tokenizer)


def generate(
    generator: TransformersGenerator, params: SamplingParams, version: int = 0, prompts: Sequence[Prompt] = PROMPTS,
    first_seed: int = 100,
) -> list[Group]:  # fmt: skip
    """Groups in the order of their prompts, each of which came exactly once, with its seeds."""
    seeds = [[first_seed + 50 * i + j for j in range(params.num_samples)] for i in range(len(prompts))]
    answers = list(generator.generate(prompts, seeds, params, version))
    assert sorted(place for place, _ in answers) == list(range(len(prompts)))
    groups = [group for _, group in sorted(answers, key=lambda answer: answer[0])]
    assert [g.prompt.id for g in groups] == [p.id for p in prompts]
    assert [[s.seed for s in g.samples] for g in groups] == seeds
    return groups


def every_sample(groups: Sequence[Group]) -> list[Sample]:
    return [s for g in groups for s in g.samples]


def versions(sample: Sample) -> list[int]:
    """Of the completion's tokens."""
    return sample.weight_versions[sample.loss_mask].tolist()


# ---- a load while samples are drawn ----


@pytest.mark.parametrize("tokens_at_once", [1 << 14, 40, 1])
@pytest.mark.parametrize("tokens", [1, 6, 30, 64, 69])
def test_samples_go_on_under_new_weights_from_their_next_token(world, monkeypatch, tokens, tokens_at_once):
    """Also when rows have left the batch before, when cache and random numbers have just been used up, and when the
    rows are run again in several passes."""
    monkeypatch.setattr(decoding, "_AT_ONCE", tokens_at_once)
    made = world.generator()
    made.updates = {tokens: [world.update(1)]}
    samples = every_sample(generate(made, LONG))
    assert [load.result() for load in made.loads] == [True]
    lengths = Counter(s.num_trained for s in samples)
    assert len(lengths) > 5
    assert lengths[70]
    assert min(lengths) < 20
    for sample in samples:
        assert versions(sample) == ([0] * tokens + [1] * 70)[: sample.num_trained]
        world.check(sample, LONG)
    undisturbed = every_sample(generate(world.generator(), LONG))
    for before, after in zip(undisturbed, samples, strict=True):
        start = int((~before.loss_mask).sum())
        same = slice(0, min(start + tokens, len(before.token_ids)))
        np.testing.assert_array_equal(before.token_ids[same], after.token_ids[same])
        np.testing.assert_array_equal(before.logprobs[same], after.logprobs[same])
    assert [s.token_ids.tolist() for s in undisturbed] != [s.token_ids.tolist() for s in samples]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_change_at_other_temperatures(world, temperature):
    params = replace(LONG, temperature=temperature, ignore_eos=True, min_new_tokens=0)
    made = world.generator()
    made.updates = {20: [world.update(2)]}
    for sample in every_sample(generate(made, params)):
        assert versions(sample) == [0] * 20 + [2] * 50
        if temperature:
            world.check(sample, params)
            continue
        ids = torch.from_numpy(sample.token_ids[None].astype(np.int64))
        with torch.no_grad():
            best = [world.references[v](ids).logits[0].argmax(-1).numpy() for v in (0, 2)]
        start = len(ids[0]) - 70
        expected = [*best[0][start - 1 :][:20], *best[1][start - 1 :][20:70]]
        assert sample.token_ids[start:].tolist() == [int(t) for t in expected]


def test_two_loads_make_three_spans(world):
    made = world.generator()
    made.updates = {10: [world.update(1)], 25: [world.update(3), world.update(2)]}
    samples = every_sample(generate(made, LONG))
    assert len(made.loads) == 3
    for sample in samples:
        assert versions(sample) == ([0] * 10 + [1] * 15 + [2] * 45)[: sample.num_trained]
        world.check(sample, LONG)
    assert max(s.num_trained for s in samples) == 70


def test_the_next_wave_begins_under_the_new_weights(world):
    """One prompt after the other; the first is the shortest, and the load comes while it is drawn."""
    made = world.generator(max_concurrent=5)
    made.updates = {10: [world.update(1)]}
    groups = generate(made, LONG)
    first = min(range(len(PROMPTS)), key=lambda i: len(PROMPTS[i].token_ids))
    for i, group in enumerate(groups):
        for sample in group.samples:
            assert set(versions(sample)[:10]) == ({0} if i == first else {1})
            assert set(versions(sample)[10:]) <= {1}
            world.check(sample, LONG)


def test_a_load_of_the_same_version_counts_too(world):
    """Whatever it is called, what was cached is from before."""
    made = world.generator()
    made.updates = {10: [replace(world.update(1), version=0)]}
    for sample in every_sample(generate(made, LONG)):
        assert set(versions(sample)) == {0}
        true_versions = sample.weight_versions.copy()
        true_versions[(~sample.loss_mask).sum() + 10 :] = 1
        world.check(replace(sample, weight_versions=true_versions), LONG)


def test_adapters_change_in_flight(world):
    """An update that brings adapters only; a second generator scores under each version."""
    made, scorer = (world.generator(None, adapter=AdapterConfig(rank=2)) for _ in range(2))
    named = dict(made.policy.model.named_parameters())
    adapters = [n for n, p in named.items() if p.requires_grad]
    random = torch.Generator().manual_seed(0)
    moved = {n: named[n].detach() + 0.05 * torch.randn(named[n].shape, generator=random) for n in adapters}
    everything = pack_weights(named.items(), 0, True, adapters)
    made.load(everything)
    made.updates = {12: [pack_weights(moved.items(), 1, False, adapters)]}
    groups = generate(made, replace(LONG, temperature=1.0))
    assert [load.result() for load in made.loads] == [True]
    scorer.load(everything)
    scores = [scores_of(scorer, groups)]
    scorer.load(pack_weights(moved.items(), 1, False, adapters))
    scores.append(scores_of(scorer, groups))
    largest = 0.0
    for group, old, new in zip(groups, *scores, strict=True):
        for sample, a, b in zip(group.samples, old, new, strict=True):
            assert versions(sample) == ([0] * 12 + [1] * 58)[: sample.num_trained]
            expected = np.where(sample.weight_versions == 1, b, a)
            np.testing.assert_allclose(sample.logprobs, expected, rtol=0, atol=1e-5)
            largest = max(largest, np.abs(a - b).max())
    assert largest > 0.5, "the adapters do change something"


def scores_of(generator: TransformersGenerator, groups: Sequence[Group]) -> list[list[np.ndarray]]:
    """Log-probs f32 [T] of each sample of each group by a pass of the generator's model over whole sequences."""
    with torch.inference_mode():
        return [unpack([g], generator.policy(make_pack([g]), 1.0).logprobs.numpy())[0] for g in groups]


def test_a_probe_during_a_call(world):
    """The iterator stands between two groups while another thread probes and draws."""
    made = world.generator()
    params = SamplingParams(1, 8, ignore_eos=True)
    before = made.probe(PROMPTS[2], 7, params)["generator 1"].samples[0]
    stream = made.generate(PROMPTS, [[1, 2]] * 4, FULL, 0)
    next(stream)
    during = in_thread(made.probe, PROMPTS[2], 7, params).result(LIMIT_S)["generator 1"].samples[0]
    np.testing.assert_array_equal(during.token_ids, before.token_ids)
    np.testing.assert_array_equal(during.logprobs, before.logprobs)
    assert len(in_thread(generate, made, LONG).result(LIMIT_S)) == 4
    assert len(list(stream)) == 3


# ---- versions that are refused ----


def test_a_failed_load_ends_the_call_under_way_and_later_ones(world):
    made = world.generator()
    made.updates = {8: [world.broken_update(1)]}
    given = []
    with pytest.raises(WeightSyncError, match="generator 1 .* version 0 but is on no verified version"):
        for item in made.generate(PROMPTS, [[1, 2]] * 4, FULL, 0):
            given.append(item)
    assert not given
    with pytest.raises(WeightSyncError, match="expected fingerprint"):
        made.loads[0].result()
    for version in (0, 1):
        with pytest.raises(WeightSyncError, match="no verified version"):
            generate(made, LONG, version)
    made.load(world.update(2))
    for sample in every_sample(generate(made, LONG, 2)):
        assert set(versions(sample)) == {2}
        world.check(sample, LONG)


def test_a_failed_load_holds_back_groups_that_are_finished(world):
    """All four groups end with the same token; the load fails when the first is out."""
    made = world.generator()
    stream = made.generate(PROMPTS, [[1, 2]] * 4, FULL, 0)
    next(stream)
    with pytest.raises(WeightSyncError, match="expected fingerprint"):
        made.load(world.broken_update(1))
    with pytest.raises(WeightSyncError, match="no verified version"):
        next(stream)


def test_a_good_load_behind_a_failed_one_lets_a_call_go_on(world):
    made = world.generator()
    made.updates = {8: [world.broken_update(1), world.update(2)]}
    for sample in every_sample(generate(made, LONG)):
        assert versions(sample) == ([0] * 8 + [2] * 62)[: sample.num_trained]
        world.check(sample, LONG)


def test_the_version_asked_for_is_the_oldest_that_will_do(world):
    made = world.generator(3)
    for asked in (0, 2, 3):
        assert {v for s in every_sample(generate(made, FULL, asked)) for v in versions(s)} == {3}
    with pytest.raises(WeightSyncError, match="generator 1 .* version 4 but is on version 3"):
        generate(made, FULL, 4)
    made.updates = {5: [world.update(2)]}
    with pytest.raises(WeightSyncError, match="generator 1 .* version 3 but is on version 2"):
        generate(made, FULL, 3)


class SlowBucket:
    """Bytes that arrive when they are let."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.asked, self.let = data, threading.Event(), threading.Event()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.asked.set()
        assert self.let.wait(LIMIT_S)
        return self.data


@pytest.mark.parametrize("good", [True, False])
def test_calls_wait_for_a_load_that_is_under_way(world, good):
    """One call comes during the load, another holds a finished group; both are served when the load is verified."""
    made = world.generator()
    stream = made.generate(PROMPTS, [[1, 2]] * 4, FULL, 0)
    next(stream)
    update = world.update(1) if good else world.broken_update(1)
    bucket = SlowBucket(update.buckets[0])
    load = in_thread(made.load, replace(update, buckets=(bucket,)))
    assert bucket.asked.wait(LIMIT_S)
    calls = [in_thread(generate, made, LONG, 0), in_thread(list, stream)]
    wait_until(lambda: made._turns.num_waiting == 2)
    bucket.let.set()
    if good:
        load.result(LIMIT_S)
        assert {v for s in every_sample(calls[0].result(LIMIT_S)) for v in versions(s)} == {1}
        finished = every_sample([group for _, group in calls[1].result(LIMIT_S)])
        assert len(finished) == 6
        assert {v for s in finished for v in versions(s)} == {0}
    else:
        for future in (load, *calls):
            with pytest.raises(WeightSyncError):
                future.result(LIMIT_S)
