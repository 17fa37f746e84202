"""Every kind of adapter, on real DeepSpeed ranks: it trains, is published, merged, turned off, saved and restored.

The cells of the table in docs/adapters.md are held by these tests and by test_adapters_vllm.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlft.config.adapters import KINDS
from rlft.data.mixture import named
from rlft.data.tokenizer import load_tokenizer
from rlft.engines.learner import RankedLearner
from rlft.engines.policy_rank import PolicyRank
from rlft.engines.publishing import Published
from rlft.engines.transformers import TransformersGenerator
from rlft.models.adapters.attach import OWN, own_names
from rlft.models.adapters.merging import merged_weights
from rlft.models.adapters.own import own_adapter
from rlft.models.load import load_checkpoint
from rlft.samples import Group, Sample, SamplingParams, count_totals
from tests.engines.ranks import largest_difference, tensors_of, weights_of
from tests.engines.test_deepspeed_state import make_learner
from tests.engines.test_deepspeed_state import some_groups as plain_groups
from tests.helpers import make_prompt, plain_logprobs

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's own calls into torch

SETTINGS: dict[str, dict[str, Any]] = {
    "adalora": {"rank": 2, "initial_rank": 4},
    "vera": {"rank": 8},
    "ia3": {},
    "ln_tuning": {},
    "bitfit": {},
    "bottleneck": {"bottleneck_size": 6},
    "lora_drop": {"rank": 4, "sample_steps": 2, "keep_share": 0.3},
    "lora_experts": {"rank": 4, "num_experts": 2, "gate_size": 3, "tasks": ["a", "b"]},
    "prompt": {"num_tokens": 5},
    "p_tuning": {"num_tokens": 5, "encoder": "lstm"},
    "prefix": {"num_tokens": 5},
    "p_tuning_v2": {"num_tokens": 5, "projection_size": 640},
}
ALSO = {"lora_experts": {"data.mixture": [{"path": __file__, "name": name} for name in "ab"]}}  # files that exist
MODELS = {"bitfit": "biased_folder", "lora_drop": "deep_folder"}
FAST = {"learner.lr": 1e-2}


def changes_for(kind: str, **more: Any) -> dict[str, Any]:
    return {"model.adapter": {"type": kind} | SETTINGS.get(kind, {"rank": 4}) | more} | FAST | ALSO.get(kind, {})


def some_groups(seed: int = 0) -> list[Group]:
    """With the names of sources, for kinds that ask."""
    return [named(group, "ab"[i % 2]) for i, group in enumerate(plain_groups(seed))]


def train(learner: RankedLearner, steps: range) -> list[dict[str, float]]:
    """Each step on samples of its own."""
    return [learner.update(some_groups(step), count_totals(some_groups(step), 8), step) for step in steps]


def by_plain_pass(lm: Any, group: Group, sample: Sample) -> np.ndarray:
    """Log-probs by an ordinary forward pass, for models that ask for the source too."""
    own = own_adapter(lm)
    if own is not None:
        own.use_sources((group.prompt.source,), torch.zeros(1, 1, dtype=torch.int64))
    with torch.no_grad():
        return plain_logprobs(lm, sample).numpy()


def where_it_works(kind: str) -> list[tuple[int, int]]:
    """Ranks and ZeRO stages."""
    return [(ranks, stage) for ranks, stage in ((1, 0), (2, 0), (2, 2), (2, 3)) if stage <= KINDS[kind].zero]


@pytest.fixture
def wide_folder(wide_folder: Path, request: pytest.FixtureRequest) -> Path:
    """Another model for kinds that need one."""
    name = MODELS.get(request.node.callspec.params["kind"])
    return wide_folder if name is None else request.getfixturevalue(name)


def does_not_move(kind: str, own: set[str], weights: dict[str, torch.Tensor]) -> set[str]:
    """Of the adapter's weights those that end as they began."""
    still = {n for n in own if kind == "lora_fa" and ".lora_A." in n} | {n for n in own if "ranknum" in n}
    for name in own:  # B was 0 before, and is again where layers share
        family, _, last = name.removeprefix("lora_shared.").rpartition(".")
        if last == "own":
            leaf = family.rpartition("_")[0]
            members = sorted(n for n in own if n.endswith(f".{leaf}.lora_B"))
            still |= {n for n, flag in zip(members, weights[name].tolist(), strict=True) if not flag}
    return still


def merging_is_seen(kind: str, num_ranks: int, stage: int) -> bool:
    """On several ranks where what is published is merged; otherwise on one, whose model can be asked."""
    published = KINDS[kind].served == "merged" and (num_ranks, stage) != (2, 0)
    return KINDS[kind].merges and (num_ranks == 1 or published)


EVERYWHERE = [(kind, *where) for kind in KINDS for where in where_it_works(kind)]


def rank_of(learner: RankedLearner) -> PolicyRank:
    """The only rank, which is in this process."""
    return learner._call.__self__._here  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "num_ranks", "stage"), EVERYWHERE)
def test_everything_that_trains_moves_and_nothing_else(rank_pool, wide_folder, kind, num_ranks, stage):
    """Also behind passes that are only looked at, which is where quantized bases lose gradients."""
    learner = make_learner(rank_pool, wide_folder, num_ranks, stage, changes_for(kind))
    before = weights_of(learner)
    for step in range(4):
        learner.logprobs(some_groups(7))
        learner.reference_logprobs(some_groups(8))
        train(learner, range(step, step + 1))
    after = weights_of(learner)
    own = set(learner.publish(3).trainable)
    still = does_not_move(kind, own, after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert own
    assert moved == own - still
    assert all(bool(torch.isfinite(t).all()) for t in after.values())


@pytest.mark.parametrize(("kind", "num_ranks", "stage"), EVERYWHERE)
def test_a_restored_adapter_goes_on_exactly(rank_pool, wide_folder, tmp_path, kind, num_ranks, stage):
    changes = changes_for(kind, **({"dropout": 0.3} if "dropout" in KINDS[kind].keys else {}))
    whole = make_learner(rank_pool, wide_folder, num_ranks, stage, changes)
    train(whole, range(2))
    whole.save(tmp_path)
    expected_metrics = train(whole, range(2, 4))
    expected = weights_of(whole)
    again = make_learner(rank_pool, wide_folder, num_ranks, stage, changes)
    again.restore(tmp_path)
    assert train(again, range(2, 4)) == expected_metrics
    assert largest_difference(weights_of(again), expected) == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].reference])
def test_turned_off_it_is_what_training_began_from(rank_pool, wide_folder, kind):
    learner = make_learner(rank_pool, wide_folder, 1, 0, changes_for(kind))
    train(learner, range(3))
    model, groups = AutoModelForCausalLM.from_pretrained(wide_folder), some_groups(9)
    off, on = learner.reference_logprobs(groups), learner.logprobs(groups)
    gaps = []
    for group, arrays, trained in zip(groups, off, on, strict=True):
        for sample, array, other in zip(group.samples, arrays, trained, strict=True):
            with torch.no_grad():
                expected = plain_logprobs(model, sample).numpy()
            np.testing.assert_allclose(array[sample.loss_mask], expected, rtol=0, atol=2e-5)
            gaps.append(np.abs(other[sample.loss_mask] - expected).max())
    assert max(gaps) > 1e-3, "turned on it differs"
    trainable = {n for n, p in rank_of(learner)._policy.model.named_parameters() if p.requires_grad}
    assert trainable <= set(own_names(rank_of(learner)._policy.model)), "what trains is still marked so"


@pytest.mark.parametrize(("kind", "num_ranks", "stage"), [where for where in EVERYWHERE if merging_is_seen(*where)])
def test_merged_weights_in_a_plain_model_say_the_same(rank_pool, wide_folder, kind, num_ranks, stage):
    changes = changes_for(kind) | {"generator.engine": "vllm"}
    learner = make_learner(rank_pool, wide_folder, num_ranks, stage, changes)
    train(learner, range(3))
    groups = some_groups(9)
    scores = learner.logprobs(groups)
    if KINDS[kind].served == "merged":
        update = learner.publish(3, everything=True)
        merged = tensors_of(update)
        assert set(merged) == {n for n, _ in AutoModelForCausalLM.from_pretrained(wide_folder).named_parameters()}
        assert set(tensors_of(learner.publish(3))) == set(update.trainable)
    else:
        model = rank_of(learner)._policy.model
        base = {n: t for n, t in Published(model, merged=True).tensors(rank_of(learner)._engine, everything=True)}
        merged = base | dict(merged_weights(model))
    plain = AutoModelForCausalLM.from_pretrained(wide_folder)
    missing, unexpected = plain.load_state_dict(merged, strict=False)
    assert not unexpected and all("lm_head" in name for name in missing)
    for group, arrays in zip(groups, scores, strict=True):
        for sample, array in zip(group.samples, arrays, strict=True):
            with torch.no_grad():
                expected = plain_logprobs(plain, sample).numpy()
            np.testing.assert_allclose(array[sample.loss_mask], expected, rtol=0, atol=5e-5)
    assert learner.logprobs(groups)[0][0].tolist() == scores[0][0].tolist(), "merging has left the model as it was"


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_checkpoint_loads_as_the_same_policy(rank_pool, wide_folder, tmp_path: Path, kind):
    changes = changes_for(kind)
    learner = make_learner(rank_pool, wide_folder, 1, 0, changes)
    train(learner, range(3))
    learner.save(tmp_path)
    lm = load_checkpoint(rank_of(learner)._config.model, tmp_path)
    for group, arrays in zip(some_groups(9), learner.logprobs(some_groups(9)), strict=True):
        for sample, array in zip(group.samples, arrays, strict=True):
            found = by_plain_pass(lm, group, sample)
            np.testing.assert_allclose(array[sample.loss_mask], found, rtol=0, atol=5e-5)


@pytest.mark.parametrize("kind", list(OWN))
def test_the_embedded_generator_draws_what_the_learner_says(rank_pool, wide_folder, kind):
    """At every version, after a complete update and after one that brings only what changes; prompts of two sources
    side by side."""
    learner = make_learner(rank_pool, wide_folder, 1, 0, changes_for(kind))
    model = rank_of(learner)._config.model
    generator = TransformersGenerator(model, load_tokenizer(str(wide_folder)), max_concurrent=8)
    prompts = [replace(make_prompt([5, 6, 7], "p0"), source="a"), replace(make_prompt([5, 6, 7], "p1"), source="b")]
    params = SamplingParams(num_samples=2, max_new_tokens=9, ignore_eos=True)
    for version in range(4):
        update = learner.publish(version, everything=version == 0)
        assert update.complete or {e.name for e in update.entries} == set(own_names(generator.policy.model))
        generator.load(update)
        groups = [group for _, group in sorted(generator.generate(prompts, [[1, 2], [1, 2]], params, version))]
        for group, arrays in zip(groups, learner.logprobs(groups), strict=True):
            for sample, array in zip(group.samples, arrays, strict=True):
                np.testing.assert_allclose(sample.logprobs, array, rtol=0, atol=5e-5)
        train(learner, range(version, version + 1))
    if kind == "lora_experts":
        swapped = [replace(g, prompt=replace(g.prompt, source="ba"[i])) for i, g in enumerate(groups)]
        others = learner.logprobs(swapped)
        assert max(np.abs(s.logprobs - a).max() for g, r in zip(swapped, others) for s, a in zip(g.samples, r)) > 1e-3


@pytest.mark.parametrize(("kind", "num_ranks", "stage"), [("bitfit", 2, 2), ("bitfit", 2, 3), ("bottleneck", 2, 3)])
def test_turned_off_on_several_ranks_too(rank_pool, wide_folder, kind, num_ranks, stage):
    """Where the first biases must be put in place of those that are split over ranks, and back."""
    learner = make_learner(rank_pool, wide_folder, num_ranks, stage, changes_for(kind))
    train(learner, range(3))
    model, groups = AutoModelForCausalLM.from_pretrained(wide_folder), some_groups(9)
    before = learner.logprobs(groups)
    for group, arrays in zip(groups, learner.reference_logprobs(groups), strict=True):
        for sample, array in zip(group.samples, arrays, strict=True):
            expected = by_plain_pass(model, group, sample)
            np.testing.assert_allclose(array[sample.loss_mask], expected, rtol=0, atol=2e-5)
    assert all(np.array_equal(a, b) for x, y in zip(before, learner.logprobs(groups)) for a, b in zip(x, y))


@pytest.mark.parametrize("kind", ["delta_lora", "lora_drop"])
def test_two_ranks_do_what_one_does(rank_pool, wide_folder, kind):
    """Also what is measured and decided: the sums are those of all ranks."""
    found = []
    for num_ranks in (1, 2):
        learner = make_learner(rank_pool, wide_folder, num_ranks, 0, changes_for(kind))
        metrics = train(learner, range(4))
        found.append((metrics, weights_of(learner)))
    told = [{n: v for step in metrics for n, v in step.items() if n.startswith("adapter/")} for metrics, _ in found]
    assert told[0] == pytest.approx(told[1], rel=1e-2)
    assert largest_difference(found[0][1], found[1][1]) < 1e-4
    if kind == "lora_drop":
        assert told[0]["adapter/sharing_layers"] > 0
    else:
        assert told[0]["adapter/base_change"] > 0
