"""Samples of several turns from a real model: every token that the model wrote has the log-prob that a plain forward
pass over the whole sequence gives it, also when weights change on the way; and packing does not mind the gaps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import rlft
from rlft.batch import make_pack, plan_micro_batches, unpack
from rlft.config.environment import EnvironmentConfig
from rlft.config.model import ModelConfig
from rlft.engines.transformers import TransformersGenerator
from rlft.engines.weights import WeightUpdate, pack_weights
from rlft.environments.episodes import EpisodeGenerator, Limits
from rlft.environments.load import load_environment
from rlft.environments.turns import Turns
from rlft.environments.worker import ThreadRunner
from rlft.models.policy import Policy
from rlft.samples import Group, Prompt, Sample, SamplingParams
from tests.helpers import alone, make_prompt, plain_logprobs

PROMPTS = [make_prompt(ids, f"p{i}") for i, ids in enumerate([[5, 6, 7], [30], [8, 9, 10, 11, 12, 13, 14], [6, 6]])]
PARAMS = SamplingParams(num_samples=4, max_new_tokens=9, temperature=1.3, stop=("7", "a"))


class Echo(rlft.Environment):
    """Repeats the last two characters, as long as there is one; nothing to say in the third turn."""

    def __init__(self) -> None:
        self.turn = 0

    def step(self, completion: str) -> rlft.Step:
        self.turn += 1
        return rlft.Step("" if self.turn == 3 else f"<{completion[-2:]}>", reward=0.5)


@pytest.fixture(scope="module")
def plain(tiny_folder) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager").eval()


@pytest.fixture
def engine(tiny_folder, tokenizer) -> TransformersGenerator:
    made = TransformersGenerator(ModelConfig(path=str(tiny_folder)), tokenizer, 64)
    made.load(update_of(made, 0))
    return made


def update_of(engine: TransformersGenerator, version: int, change: float = 0.0) -> WeightUpdate:
    named = list(engine.policy.model.named_parameters())
    return pack_weights(((n, p.detach() + change) for n, p in named), version, True, [n for n, _ in named])


def episodes_of(engine: Any, tokenizer: Any) -> EpisodeGenerator:
    environment = load_environment(EnvironmentConfig(function=f"{__name__}:Echo"))
    turns = Turns(tokenizer, {int(tokenizer.eos_token_id)}, "user")
    return EpisodeGenerator(engine, ThreadRunner(environment), turns, Limits(max_turns=4, window=64, wait_s=60))


def drawn(engine: Any, tokenizer: Any, prompts: Sequence[Prompt] = PROMPTS) -> list[Group]:
    seeds = [[100 + 10 * PROMPTS.index(p) + j for j in range(PARAMS.num_samples)] for p in prompts]
    with closing(episodes_of(engine, tokenizer)) as episodes:
        answers = dict(episodes.generate(prompts, seeds, PARAMS, 0))
    return [answers[place] for place in range(len(prompts))]


def every_sample(groups: Sequence[Group]) -> list[Sample]:
    return [s for g in groups for s in g.samples]


def test_log_probs_are_those_of_the_whole_sequence(engine, tokenizer, plain):
    samples = every_sample(drawn(engine, tokenizer))
    assert {s.num_turns for s in samples} == {4}
    for s in samples:  # half a point for each turn, on its last token, also where two turns follow on each other
        ends = np.flatnonzero(~np.isnan(s.turn_rewards))
        assert s.turn_rewards[ends].tolist() == [0.5] * 4 and s.loss_mask[ends].all()
        assert ends[-1] == np.flatnonzero(s.loss_mask)[-1]
    assert len({len(s.token_ids) for s in samples}) > 4, "of many lengths"
    for sample in samples:
        with torch.no_grad():
            expected = plain_logprobs(plain, sample, 1.3).numpy()
        np.testing.assert_allclose(sample.logprobs[sample.loss_mask], expected, rtol=0, atol=1e-4)
        assert not sample.logprobs[~sample.loss_mask].any()
        assert (sample.weight_versions[~sample.loss_mask] == -1).all()
        assert (sample.weight_versions[sample.loss_mask] == 0).all()
        runs = np.flatnonzero(np.diff(np.r_[0, sample.loss_mask.astype(int), 0]))
        assert len(runs) // 2 == 3, "the third turn is followed by nothing, so it and the fourth are one run"


def test_a_sample_is_the_same_whatever_it_is_drawn_with(engine, tokenizer):
    together = drawn(engine, tokenizer)
    for prompt, group in zip(PROMPTS, together, strict=True):
        (again,) = drawn(engine, tokenizer, [prompt])
        for a, b in zip(again.samples, group.samples, strict=True):
            assert (a.token_ids.tolist(), a.text, a.turns) == (b.token_ids.tolist(), b.text, b.turns)
            np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=0, atol=1e-5)


class Changing:
    """A generator that takes over version 1 as soon as the third of its calls is made."""

    def __init__(self, engine: TransformersGenerator) -> None:
        self.engine, self.calls = engine, 0

    def generate(self, *given: Any) -> Iterator[tuple[int, Group]]:
        self.calls += 1
        if self.calls == 3:
            self.engine.load(update_of(self.engine, 1, change=0.05))
        return self.engine.generate(*given)


def test_weights_that_change_during_an_episode(engine, tokenizer, plain):
    """Each token has the log-prob of the version that it carries."""
    samples = every_sample(drawn(Changing(engine), tokenizer))
    moved = copy.deepcopy(plain)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.05)
    mixed = 0
    for sample in samples:
        with torch.no_grad():
            both = [plain_logprobs(model, sample, 1.3).numpy() for model in (plain, moved)]
        versions = sample.weight_versions[sample.loss_mask]
        mixed += len(set(versions.tolist())) == 2
        assert (np.diff(versions) >= 0).all() and set(versions.tolist()) <= {0, 1}
        expected = np.where(versions == 1, both[1], both[0])
        np.testing.assert_allclose(sample.logprobs[sample.loss_mask], expected, rtol=0, atol=1e-4)
    assert mixed > len(samples) // 2


def test_packs_of_samples_with_gaps_equal_plain_forward_passes(engine, tokenizer, plain):
    """Groups of several samples, whole, split by a budget and alone: the same log-probs and gradients."""
    groups = drawn(engine, tokenizer)
    policy = Policy(copy.deepcopy(plain), chunk=16)
    expected = torch.cat([plain_logprobs(plain, s, 1.3) for s in every_sample(groups)])
    got = policy(make_pack(groups), 1.3).logprobs
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    weights = torch.randn(len(expected), generator=torch.Generator().manual_seed(1))
    (expected * weights).sum().backward()
    (got * weights).sum().backward()
    packed = dict(policy.model.named_parameters())
    for name, parameter in plain.named_parameters():
        scale = parameter.grad.abs().max()
        assert (packed[name].grad - parameter.grad).abs().max() <= 1e-4 * scale + 1e-6, name
    plain.zero_grad()
    (pieces,) = plan_micro_batches(groups, 1, max_tokens=120)
    assert len(pieces) > 3
    for batch in [*pieces, alone(groups)]:
        with torch.no_grad():
            values = policy(make_pack(batch), 1.3).logprobs.numpy()
        for group, arrays in zip(batch, unpack(batch, values), strict=True):
            for sample, array in zip(group.samples, arrays, strict=True):
                np.testing.assert_allclose(array, sample.logprobs, rtol=0, atol=1e-4)
