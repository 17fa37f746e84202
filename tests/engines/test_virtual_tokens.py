"""Adapters that put virtual tokens before the text: what the embedded generator draws, also while they change, and what
a rank does for them that no other adapter needs. That they train, stop and go on as others do: test_adapters.py."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlft.config.adapters import KINDS, AdapterConfig
from rlft.engines.weights import pack_weights
from rlft.models.adapters.attach import own_names
from rlft.models.load import load_checkpoint
from rlft.samples import SamplingParams
from tests.engines.ranks import largest_difference, weights_of
from tests.engines.test_adapters import changes_for, rank_of
from tests.engines.test_deepspeed_state import check_logprobs, make_learner, some_groups, train
from tests.engines.test_in_flight import LONG, every_sample, generate, scores_of, versions
from tests.engines.test_in_flight import world as world  # the fixture
from tests.helpers import plain_logprobs

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's own calls into torch

VIRTUAL = [kind for kind in KINDS if KINDS[kind].virtual]


@pytest.mark.parametrize("kind", VIRTUAL)
def test_what_is_drawn_is_what_peft_says_while_they_change(world, kind):
    """Every token has the log-prob of the virtual tokens that it was drawn behind."""
    adapter = AdapterConfig.model_validate({"type": kind, "num_tokens": 5})
    made, scorer = (world.generator(None, adapter=adapter) for _ in range(2))
    named = dict(made.policy.model.named_parameters())
    own = own_names(made.policy.model)
    random = torch.Generator().manual_seed(0)
    moved = {n: named[n].detach() + 0.5 * torch.randn(named[n].shape, generator=random) for n in own}
    everything = pack_weights(named.items(), 0, True, own)
    before: Any = copy.deepcopy(made.policy.model)
    made.load(everything)
    update = pack_weights(moved.items(), 1, False, own)
    assert update.num_bytes < everything.num_bytes, "virtual tokens alone"
    made.updates = {12: [update]}
    params = replace(LONG, temperature=1.0, max_new_tokens=30)
    groups = generate(made, params)
    assert [load.result() for load in made.loads] == [True]
    scorer.load(everything)
    scores = [scores_of(scorer, groups)]
    scorer.load(update)
    scores.append(scores_of(scorer, groups))
    before.set_attn_implementation("eager")
    largest = 0.0
    for group, old, new in zip(groups, *scores, strict=True):
        for sample, a, b in zip(group.samples, old, new, strict=True):
            assert versions(sample) == ([0] * 12 + [1] * 18)[: sample.num_trained]
            np.testing.assert_allclose(sample.logprobs, np.where(sample.weight_versions == 1, b, a), rtol=0, atol=1e-5)
            with torch.no_grad():
                np.testing.assert_allclose(a[sample.loss_mask], plain_logprobs(before, sample), rtol=0, atol=1e-5)
            largest = max(largest, np.abs(a - b).max())
    assert largest > 0.5, "the virtual tokens do change something"


@pytest.mark.parametrize("kind", VIRTUAL)
def test_a_sample_does_not_depend_on_who_is_beside_it(world, kind):
    made, alone = (
        world.generator(None, n, adapter=AdapterConfig.model_validate({"type": kind, "num_tokens": 3})) for n in (64, 1)
    )
    named = list(made.policy.model.named_parameters())
    for generator in (made, alone):
        generator.load(pack_weights(named, 0, True, own_names(made.policy.model)))
    params = SamplingParams(num_samples=3, max_new_tokens=15)
    for a, b in zip(every_sample(generate(made, params)), every_sample(generate(alone, params)), strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", VIRTUAL)
@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 3)])
def test_gradient_checkpointing_changes_nothing(rank_pool, wide_folder, kind, num_ranks, stage):
    outcomes = []
    for checkpointing in (False, True):
        changes = changes_for(kind) | {"learner.gradient_checkpointing": checkpointing}
        learner = make_learner(rank_pool, wide_folder, num_ranks, stage, changes)
        outcomes.append((train(learner, range(2)), weights_of(learner)))
    for ours, theirs in zip(*(metrics for metrics, _ in outcomes), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert largest_difference(*(weights for _, weights in outcomes)) < 1e-5


@pytest.mark.parametrize(("kind", "settings"), [
    ("prompt", {"num_tokens": 400}), ("prefix", {"num_tokens": 400}),
    ("p_tuning", {"num_tokens": 5, "encoder": "mlp"}), ("p_tuning_v2", {"num_tokens": 5, "projection_size": 700}),
])  # fmt: skip
def test_split_by_zero_3_it_is_saved_whole(rank_pool, wide_folder, tmp_path: Path, kind, settings):
    """Matrices of more than 100,000 elements, of which each rank holds a part."""
    changes = changes_for(kind) | {"model.adapter": {"type": kind, **settings}}
    learner = make_learner(rank_pool, wide_folder, 2, 3, changes)
    sizes = {n: t.numel() for n, t in weights_of(learner).items() if n.startswith("prompt_encoder")}
    assert max(sizes.values()) > 100_000
    train(learner, range(2))
    learner.save(tmp_path)
    train(learner, range(2, 3))  # saving left every rank as it was
    learner.restore(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(wide_folder)
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert loaded.prompt_encoder["default"].embedding.weight.shape[0] == settings["num_tokens"]
    check_logprobs(loaded, learner)


@pytest.mark.parametrize("kind", VIRTUAL)
def test_a_checkpoint_is_scored_in_packs_too(rank_pool, wide_folder, tmp_path: Path, kind):
    """As rlft eval does: what is saved is what an encoder made, without the encoder."""
    from rlft.engines.scoring import FrozenScorer

    learner = make_learner(rank_pool, wide_folder, 1, 0, changes_for(kind))
    train(learner, range(2))
    learner.save(tmp_path)
    groups, model = some_groups(9), load_checkpoint(rank_of(learner)._config.model, tmp_path)
    found = FrozenScorer(model, 1.0, max_tokens=64, chunk=64).logprobs(groups)
    for ours, theirs in zip(found, learner.logprobs(groups), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
