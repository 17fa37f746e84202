"""A reward model: its scores are transformers' own, its update plain PyTorch's, the same however it is computed; what
it saves is what transformers loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from rlft.config.load import load_config
from rlft.config.model import ModelConfig
from rlft.data.pairs import signed_sample
from rlft.data.scores import scored_pair
from rlft.engines.learner import RankedRewardModel
from rlft.errors import UserError
from rlft.models.reward import load_reward_model, marked_as
from rlft.samples import Group, count_totals
from tests.engines.ranks import Ranks
from tests.helpers import random_groups

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's own calls into torch

Pool = dict[int, Ranks]


def some_pairs(margin: float | None = None) -> list[Group]:
    groups = random_groups(np.random.default_rng(0), [2] * 6)
    if margin is not None:
        groups = [replace(g, prompt=replace(g.prompt, columns={"margin": margin})) for g in groups]
    signed = [g.with_samples([signed_sample(g.samples[0], 1.0), signed_sample(g.samples[1], -1.0)]) for g in groups]
    return [scored_pair(g) for g in signed]


def make_model(pool: Pool, folder: Path, num_ranks: int = 1, stage: int = 0, **changes: Any) -> RankedRewardModel:
    base = {
        "model": {"path": str(folder)}, "algorithm": {"type": "reward"}, "loop": {"steps": 4},
        "learner": {
            "lr": 1e-3, "eps": 1e-4, "num_ranks": num_ranks, "zero_stage": stage, "weight_decay": 0.1,
            "max_grad_norm": 0.2,
        },
    }  # fmt: skip
    return pool[num_ranks].reward_model(load_config(base, {k.replace("__", "."): v for k, v in changes.items()}))


def updated(model: RankedRewardModel, groups: list[Group], count: int = 3) -> tuple[list[dict], list[float]]:
    """Metrics of a few updates, and the scores after them."""
    metrics = [model.update(groups, count_totals(groups, 8), step) for step in range(count)]
    return metrics, scores_of(model, groups)


def scores_of(model: RankedRewardModel, groups: list[Group]) -> list[float]:
    rows = model.values(groups)
    return [float(a[s.loss_mask][0]) for g, row in zip(groups, rows) for a, s in zip(row, g.samples)]


def plain_scores(model: Any, groups: list[Group]) -> torch.Tensor:
    """Of each text alone, without the place behind it."""
    texts = [torch.from_numpy(s.token_ids[:-1].astype(np.int64)) for g in groups for s in g.samples]
    return torch.stack([model(input_ids=ids[None]).logits[0, 0] for ids in texts])


def plain_model(folder: Path) -> Any:
    return load_reward_model(ModelConfig(path=str(folder))).model


@pytest.fixture(scope="module")
def whole(rank_pool: Pool, wide_folder: Path) -> tuple[list[dict], list[float]]:
    return updated(make_model(rank_pool, wide_folder), some_pairs())


def test_it_learns(whole):
    metrics, scores = whole
    assert metrics[-1]["policy/loss"] < metrics[0]["policy/loss"]
    assert metrics[0]["policy/grad_norm"] > 0.2, "the limit must bite"
    assert len(set(scores)) == 12


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (1, 3), (2, 1), (2, 2), (2, 3)])
def test_same_update_however_it_is_computed(rank_pool, wide_folder, whole, num_ranks, stage):
    model = make_model(rank_pool, wide_folder, num_ranks, stage, learner__tokens_per_micro_batch=16)
    metrics, scores = updated(model, some_pairs())
    for ours, theirs in zip(metrics, whole[0], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-6)
    np.testing.assert_allclose(scores, whole[1], atol=1e-5)


def test_a_rank_without_work_keeps_step(rank_pool, wide_folder):
    one = some_pairs()[:1]
    expected, _ = updated(make_model(rank_pool, wide_folder), one)
    found, _ = updated(make_model(rank_pool, wide_folder, 2, 2), one)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-6)


@pytest.mark.parametrize(("margin", "centering"), [(None, 0.0), (0.5, 0.0), (0.5, 0.3)])
def test_an_update_is_the_one_of_plain_pytorch(rank_pool, wide_folder, margin, centering):
    groups, model = some_pairs(margin), plain_model(wide_folder)
    model.set_attn_implementation("eager")
    chosen, rejected = plain_scores(model, groups).view(-1, 2).unbind(1)
    loss = -torch.nn.functional.logsigmoid(chosen - rejected - (margin or 0.0)) + centering * (chosen + rejected) ** 2
    loss.mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    parts = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    torch.optim.AdamW(parts, lr=1e-3, eps=1e-4).step()

    ours = make_model(rank_pool, wide_folder, algorithm__centering=centering)
    (metrics,), scores = updated(ours, groups, count=1)
    assert metrics["policy/loss"] == pytest.approx(loss.mean().item(), rel=1e-5)
    assert metrics["policy/grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert metrics["preference/margin"] == pytest.approx((chosen - rejected).mean().item(), rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(scores, plain_scores(model, groups).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("adapter", [None, {"rank": 4}])
@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 3)])
def test_what_is_saved_is_what_transformers_loads(rank_pool, wide_folder, tmp_path, num_ranks, stage, adapter):
    groups = some_pairs()
    model = make_model(rank_pool, wide_folder, num_ranks, stage, model__adapter=adapter)
    metrics, scores = updated(model, groups)
    assert metrics[-1]["policy/loss"] < metrics[0]["policy/loss"]
    model.save(tmp_path)
    assert marked_as(str(tmp_path)) == "reward" and marked_as(str(wide_folder)) is None
    if adapter is None:
        loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert loaded.config.num_labels == 1 and loaded.config.pad_token_id is not None
    else:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(wide_folder, num_labels=1), str(tmp_path)
        )
    with torch.no_grad():
        np.testing.assert_allclose(plain_scores(loaded.eval(), groups).numpy(), scores, atol=1e-5)

    before = model.update(groups, count_totals(groups, 8), 3)
    model.restore(tmp_path)
    np.testing.assert_allclose(scores_of(model, groups), scores, atol=1e-6)
    assert model.update(groups, count_totals(groups, 8), 3) == before


def test_a_model_without_a_score_is_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=1, **small)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.path: BertForSequenceClassification has no layer named score"):
        load_reward_model(ModelConfig(path=str(tmp_path)))
