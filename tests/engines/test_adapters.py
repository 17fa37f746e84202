"""Every kind of adapter, on real DeepSpeed ranks: it trains, is published, merged, turned off, saved and restored.

The cells of the table in docs/adapters.md are held by these tests and by test_adapters_vllm.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlft.config.adapters import KINDS
from rlft.engines.learner import RankedLearner
from rlft.engines.policy_rank import PolicyRank
from rlft.engines.publishing import Published
from rlft.models.adapters.attach import own_names
from rlft.models.adapters.merging import merged_weights
from rlft.models.load import load_checkpoint
from tests.engines.ranks import largest_difference, tensors_of, weights_of
from tests.engines.test_deepspeed_state import make_learner, some_groups, train
from tests.helpers import plain_logprobs

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's own calls into torch

SETTINGS: dict[str, dict[str, Any]] = {
    "adalora": {"rank": 2, "initial_rank": 4},
    "vera": {"rank": 8},
    "ia3": {},
    "ln_tuning": {},
}
FAST = {"learner.lr": 1e-2}


def changes_for(kind: str, **more: Any) -> dict[str, Any]:
    return {"model.adapter": {"type": kind} | SETTINGS.get(kind, {"rank": 4}) | more} | FAST


def where_it_works(kind: str) -> list[tuple[int, int]]:
    """Ranks and ZeRO stages."""
    return [(ranks, stage) for ranks, stage in ((1, 0), (2, 0), (2, 2), (2, 3)) if stage <= KINDS[kind].zero]


EVERYWHERE = [(kind, *where) for kind in KINDS for where in where_it_works(kind)]


def rank_of(learner: RankedLearner) -> PolicyRank:
    """The only rank, which is in this process."""
    return learner._call.__self__._here  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "num_ranks", "stage"), EVERYWHERE)
def test_everything_that_trains_moves_and_nothing_else(rank_pool, wide_folder, kind, num_ranks, stage):
    """Also behind passes that are only looked at, which is where quantized bases lose gradients."""
    learner = make_learner(rank_pool, wide_folder, num_ranks, stage, changes_for(kind))
    before = weights_of(learner)
    for step in range(3):
        learner.logprobs(some_groups(7))
        learner.reference_logprobs(some_groups(8))
        train(learner, range(step, step + 1))
    after = weights_of(learner)
    own = set(learner.publish(3).trainable)
    still = {n for n in own if kind == "lora_fa" and ".lora_A." in n} | {n for n in own if "ranknum" in n}
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


@pytest.mark.parametrize(
    ("kind", "num_ranks", "stage"), [where for where in EVERYWHERE if KINDS[where[0]].merges and where[1:] != (2, 0)]
)
def test_merged_weights_in_a_plain_model_say_the_same(rank_pool, wide_folder, kind, num_ranks, stage):
    changes = changes_for(kind) | {"generator.engine": "vllm"}
    learner = make_learner(rank_pool, wide_folder, num_ranks, stage, changes)
    train(learner, range(3))
    if num_ranks > 1 and KINDS[kind].served != "merged":
        pytest.skip("published as an adapter; merging is seen with one rank")
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
            with torch.no_grad():
                found = plain_logprobs(lm, sample).numpy()
            np.testing.assert_allclose(array[sample.loss_mask], found, rtol=0, atol=5e-5)
