"""The critic: what it says and learns is the same however it is computed, and what plain PyTorch computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlft.engines.learner import RankedCritic
from rlft.samples import Group, Totals, count_totals
from tests.engines.ranks import Ranks
from tests.helpers import alone, make_config, random_groups

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's own calls into torch


def some_groups() -> list[Group]:
    """Samples with the values of a critic that said something, and returns."""
    rng = np.random.default_rng(0)

    def judged(sample: Any) -> Any:
        values, returns = (
            np.where(sample.loss_mask, rng.normal(size=len(sample.loss_mask)), 0).astype(np.float32) for _ in range(2)
        )
        return replace(sample, values=0.3 * values, returns=returns)

    return [g.with_samples([judged(s) for s in g.samples]) for g in random_groups(rng, [4, 3, 1, 4])]


def make_critic(
    pool: dict[int, Ranks], folder: Path, num_ranks: int = 1, stage: int = 0, **changes: Any
) -> RankedCritic:
    overrides = {
        "algorithm.type": "ppo", "critic.num_ranks": num_ranks, "critic.zero_stage": stage, "critic.lr": 1e-3,
        "critic.eps": 1e-4, "critic.max_grad_norm": 0.2, "critic.weight_decay": 0.1,
    }  # fmt: skip
    return pool[num_ranks].critic(
        make_config(folder, overrides | {k.replace("__", "."): v for k, v in changes.items()})
    )


def updated(critic: RankedCritic, groups: list[Group], num_updates: int = 3) -> tuple[list[dict], list[np.ndarray]]:
    """Metrics of a few updates, and what the critic says after them."""
    totals = count_totals(groups, 8)
    metrics = [critic.update(groups, totals, step) for step in range(num_updates)]
    return metrics, [array for row in critic.values(groups) for array in row]


@pytest.fixture(scope="module")
def whole(rank_pool: dict[int, Ranks], wide_folder: Path) -> tuple[list[dict], list[np.ndarray]]:
    return updated(make_critic(rank_pool, wide_folder), some_groups())


def test_it_begins_with_zeros_and_learns(rank_pool, wide_folder, whole):
    groups = some_groups()
    critic = make_critic(rank_pool, wide_folder)
    assert all(not array.any() for row in critic.values(groups) for array in row)
    metrics, values = whole
    assert metrics[-1]["critic/loss"] < metrics[0]["critic/loss"]
    assert metrics[0]["critic/grad_norm"] > 0.2, "the limit must bite"
    for array, sample in zip(values, (s for g in groups for s in g.samples), strict=True):
        assert (
            array.dtype == np.float32 and (array[~sample.loss_mask] == 0).all() and (array[sample.loss_mask] != 0).all()
        )


@pytest.mark.parametrize("layout", ["whole", "micro-batches", "single samples"])
@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (1, 3), (2, 1), (2, 2), (2, 3)])
def test_same_update_however_it_is_computed(rank_pool, wide_folder, whole, num_ranks, stage, layout):
    changes = {} if layout == "whole" else {"critic__tokens_per_micro_batch": 16}
    groups = some_groups()
    critic = make_critic(rank_pool, wide_folder, num_ranks, stage, **changes)
    metrics, values = updated(critic, alone(groups) if layout == "single samples" else groups)
    for ours, theirs in zip(metrics, whole[0], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
    for ours, theirs in zip(values, whole[1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_more_ranks_than_samples(rank_pool, wide_folder):
    groups = some_groups()[2:3]
    expected = updated(make_critic(rank_pool, wide_folder), groups)
    found = updated(make_critic(rank_pool, wide_folder, 2, 3), groups)
    np.testing.assert_allclose(found[1][0], expected[1][0], atol=2e-4)


def test_a_first_loss_is_the_one_of_plain_pytorch(rank_pool, wide_folder):
    """A critic of zeros: the clipped squared error of 0, and the slope of its head."""
    groups = some_groups()
    samples = [s for g in groups for s in g.samples]
    model = AutoModelForCausalLM.from_pretrained(wide_folder, attn_implementation="eager")
    head = torch.nn.Linear(320, 1)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    loss, count = torch.zeros(()), sum(s.num_trained for s in samples)
    for sample in samples:
        ids = torch.from_numpy(sample.token_ids.astype(np.int64))
        at = torch.from_numpy(np.flatnonzero(sample.loss_mask))
        values = head(model.model(input_ids=ids[None]).last_hidden_state[0])[at - 1, 0]
        old, returns = (torch.from_numpy(a[sample.loss_mask]) for a in (sample.values, sample.returns))
        bounded = torch.clamp(values, old - 0.2, old + 0.2)
        loss = loss + 0.5 * torch.maximum((values - returns) ** 2, (bounded - returns) ** 2).sum() / count
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], 1.0)
    metrics = make_critic(rank_pool, wide_folder).update(groups, count_totals(groups, 8), 0)
    assert metrics["critic/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["critic/grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    returns = np.concatenate([s.returns[s.loss_mask] for s in samples])
    assert metrics["critic/return_mean"] == pytest.approx(returns.mean(), abs=1e-6)
    assert metrics["critic/explained_variance"] == pytest.approx(0, abs=1e-5), "it said 0 of everything"


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 3)])
def test_what_is_not_finite_is_skipped(rank_pool, wide_folder, num_ranks, stage):
    groups = some_groups()
    bad = groups[0].samples[0]
    broken = [groups[0].with_samples([replace(bad, returns=np.full_like(bad.returns, np.inf)), *groups[0].samples[1:]])]
    critic = make_critic(rank_pool, wide_folder, num_ranks, stage)
    assert critic.update([*broken, *groups[1:]], Totals(10, 4, 8), 0)["critic/skipped_updates"] == 1
    assert all(not array.any() for row in critic.values(groups) for array in row), "nothing was learned"
    assert critic.update(groups, count_totals(groups, 8), 1)["critic/skipped_updates"] == 0


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 3)])
def test_it_goes_on_where_it_was(rank_pool, wide_folder, tmp_path, num_ranks, stage):
    groups = some_groups()
    critic = make_critic(rank_pool, wide_folder, num_ranks, stage)
    updated(critic, groups, 2)
    critic.save(tmp_path)
    expected = updated(critic, groups, 2)
    again = make_critic(rank_pool, wide_folder, num_ranks, stage)
    again.restore(tmp_path)
    found = updated(again, groups, 2)
    assert found[0] == expected[0]
    assert all((a == b).all() for a, b in zip(found[1], expected[1], strict=True))
    saved = load_file(tmp_path / "critic" / "value_model.safetensors")
    assert saved["head.weight"].shape == (1, 320) and "body.embed_tokens.weight" in saved
