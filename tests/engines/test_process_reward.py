"""A process reward model: its scores are transformers' own at the end of each step, its update plain PyTorch's, the
same however it is computed; what it saves is what transformers loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlft.config.load import load_config
from rlft.config.model import ModelConfig
from rlft.data.scores import scored_steps
from rlft.engines.learner import RankedRewardModel
from rlft.models.reward import load_reward_model
from rlft.samples import Group, Sample, count_totals
from tests.engines.ranks import Ranks
from tests.helpers import random_groups

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's own calls into torch

Pool = dict[int, Ranks]


def some_steps() -> list[Group]:
    """Six completions of 1 to 3 steps, hard and soft labels."""
    rng = np.random.default_rng(0)
    groups = []
    for group, count in zip(random_groups(rng, [1] * 6, max_completion=9), (1, 2, 3, 3, 2, 1)):
        (sample,), start = group.samples, len(group.prompt.token_ids)
        ends = np.sort(rng.permutation(np.arange(start, len(sample.token_ids)))[:count])
        ends[-1] = len(sample.token_ids) - 1
        labels = np.zeros(len(sample.token_ids), dtype=np.float32)
        labels[ends] = rng.choice([0.0, 1.0, 0.3], len(ends))
        mask = np.isin(np.arange(len(labels)), ends)
        marked = replace(Sample.given(sample.token_ids, mask, ""), returns=labels * mask)
        groups.append(scored_steps(group.with_samples([marked])))
    assert len({sum(s.num_trained for s in g.samples) for g in groups}) > 1
    return groups


def make_model(pool: Pool, folder: Path, num_ranks: int = 1, stage: int = 0, **changes: Any) -> RankedRewardModel:
    base = {
        "model": {"path": str(folder)}, "algorithm": {"type": "process_reward"}, "loop": {"steps": 4},
        "learner": {
            "lr": 1e-3, "eps": 1e-4, "num_ranks": num_ranks, "zero_stage": stage, "weight_decay": 0.1,
            "max_grad_norm": 0.2,
        },
    }  # fmt: skip
    return pool[num_ranks].reward_model(load_config(base, {k.replace("__", "."): v for k, v in changes.items()}))


def updated(model: RankedRewardModel, groups: list[Group], count: int = 3) -> tuple[list[dict], np.ndarray]:
    """Metrics of a few updates, and the scores after them."""
    metrics = [model.update(groups, count_totals(groups, 8), step) for step in range(count)]
    return metrics, scores_of(model, groups)


def scores_of(model: RankedRewardModel, groups: list[Group]) -> np.ndarray:
    rows = model.values(groups)
    return np.concatenate([a[s.loss_mask] for g, row in zip(groups, rows) for a, s in zip(row, g.samples)])


def plain_scores(model: Any, groups: list[Group]) -> torch.Tensor:
    """Each prefix that ends with a step, alone."""
    found = []
    for (sample,) in (group.samples for group in groups):
        for place in np.flatnonzero(sample.loss_mask):
            ids = torch.from_numpy(sample.token_ids[:place].astype(np.int64))
            found.append(model(input_ids=ids[None]).logits[0, 0])
    return torch.stack(found)


def labels_of(groups: list[Group]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([s.returns[s.loss_mask] for g in groups for s in g.samples]))


@pytest.fixture(scope="module")
def whole(rank_pool: Pool, wide_folder: Path) -> tuple[list[dict], np.ndarray]:
    return updated(make_model(rank_pool, wide_folder), some_steps())


def test_it_learns(whole: Any) -> None:
    metrics, scores = whole
    assert metrics[-1]["policy/loss"] < metrics[0]["policy/loss"]
    assert metrics[-1]["steps/good"] > metrics[-1]["steps/bad"]
    assert len(set(scores.tolist())) == len(scores) > 6


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (1, 3), (2, 1), (2, 2), (2, 3)])
def test_same_update_however_it_is_computed(
    rank_pool: Pool, wide_folder: Path, whole: Any, num_ranks: int, stage: int
) -> None:
    model = make_model(rank_pool, wide_folder, num_ranks, stage, learner__tokens_per_micro_batch=16)
    metrics, scores = updated(model, some_steps())
    for ours, theirs in zip(metrics, whole[0], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-6)
    np.testing.assert_allclose(scores, whole[1], atol=1e-5)


def test_a_rank_without_work_keeps_step(rank_pool: Pool, wide_folder: Path) -> None:
    one = some_steps()[2:3]
    expected, _ = updated(make_model(rank_pool, wide_folder), one)
    found, _ = updated(make_model(rank_pool, wide_folder, 2, 2), one)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-6)


@pytest.mark.parametrize("average", ["token", "sequence"])
def test_an_update_is_the_one_of_plain_pytorch(rank_pool: Pool, wide_folder: Path, average: str) -> None:
    groups, model = some_steps(), load_reward_model(ModelConfig(path=str(wide_folder))).model
    model.set_attn_implementation("eager")  # type: ignore[operator]
    scores, labels = plain_scores(model, groups), labels_of(groups)
    losses = -labels * torch.nn.functional.logsigmoid(scores) - (1 - labels) * torch.nn.functional.logsigmoid(-scores)
    rows = losses.split([s.num_trained for g in groups for s in g.samples])
    loss = losses.mean() if average == "token" else torch.stack([row.mean() for row in rows]).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    parts = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    torch.optim.AdamW(parts, lr=1e-3, eps=1e-4).step()

    ours = make_model(rank_pool, wide_folder, algorithm__loss_average=average)
    (metrics,), after = updated(ours, groups, count=1)
    assert metrics["policy/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["policy/grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    good = labels > 0.5
    assert metrics["steps/accuracy"] == pytest.approx(((scores > 0) == good).float().mean().item())
    assert metrics["steps/good"] == pytest.approx(scores[good].mean().item(), rel=1e-4, abs=1e-6)
    assert metrics["steps/bad"] == pytest.approx(scores[~good].mean().item(), rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(after, plain_scores(model, groups).detach().numpy(), atol=1e-5)


def test_what_is_saved_is_what_transformers_loads(rank_pool: Pool, wide_folder: Path, tmp_path: Path) -> None:
    groups = some_steps()
    model = make_model(rank_pool, wide_folder, 2, 3)
    _, scores = updated(model, groups)
    model.save(tmp_path)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        np.testing.assert_allclose(plain_scores(loaded.eval(), groups).numpy(), scores, atol=1e-5)
    before = model.update(groups, count_totals(groups, 8), 3)
    model.restore(tmp_path)
    assert model.update(groups, count_totals(groups, 8), 3) == before
