"""Reward models and several tasks on a quantized base: what is saved is asked on the base that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlft.batch import make_pack
from rlft.data.tokenizer import load_tokenizer
from rlft.engines.task_learner import task_of
from rlft.models.quantization import quantized_layers
from rlft.models.reward import load_trained_reward_model
from rlft.models.tasks import load_task_model
from rlft.samples import count_totals
from tests.engines import test_tasks as several
from tests.engines.test_reward_model import make_model, scores_of, some_pairs
from tests.engines.test_tasks import files as files  # the fixture

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's own calls into torch

TYPES = ["nf4", "int8"]


def on(base: str) -> dict[str, Any]:
    return {"model__adapter": {"rank": 4}, "model__quantization__type": base, "learner__lr": 1e-2}


@pytest.mark.parametrize(("base", "num_ranks", "stage"), [(base, *at) for base in TYPES for at in ((1, 0), (2, 2))])
def test_a_reward_model_learns_goes_on_and_is_asked(rank_pool, wide_folder, tmp_path, base, num_ranks, stage):
    groups = some_pairs()
    model = make_model(rank_pool, wide_folder, num_ranks, stage, **on(base))
    losses = [model.update(groups, count_totals(groups, 8), step)["policy/loss"] for step in range(3)]
    assert losses[2] < losses[1] < losses[0]
    scores = scores_of(model, groups)
    model.save(tmp_path)
    asked = load_trained_reward_model(str(tmp_path), "float32")
    assert not quantized_layers(asked)
    with torch.no_grad():
        found = np.concatenate([asked(make_pack([group])).numpy() for group in groups])
    np.testing.assert_allclose(found, scores, atol=1e-4)
    (tmp_path / "quantization_config.json").unlink()
    with torch.no_grad():
        other = np.concatenate([load_trained_reward_model(str(tmp_path), "float32")(make_pack([g])) for g in groups])
    assert np.abs(other - scores).max() > 1e-3, "on the base as it was it says something else"
    before = model.update(groups, count_totals(groups, 8), 3)
    model.restore(tmp_path)
    assert model.update(groups, count_totals(groups, 8), 3) == before


@pytest.mark.parametrize("base", TYPES)
def test_several_tasks_learn_go_on_and_load(rank_pool, wide_folder, files, tmp_path: Path, base):
    config, groups = several.loaded(wide_folder, files, **on(base), tasks__2__adapter="own")
    model = rank_pool[1].tasks(config)
    losses = [several.update(model, groups, step)["policy/loss"] for step in range(3)]
    assert losses[-1] < losses[0]
    outputs = several.said(model, groups)
    load_tokenizer(wide_folder).save_pretrained(tmp_path)
    model.save(tmp_path)
    found = []
    for name in ("mood", "ner", "where"):
        whole = load_task_model(tmp_path / "tasks" / name)
        assert not hasattr(whole.config, "quantization_config"), "it is a plain model"
        found += [several._by_transformers(whole, name, group) for group in groups if task_of(group) == name]
    np.testing.assert_allclose(np.concatenate(found), outputs, atol=1e-4)
    before = several.update(model, groups, 3)
    model.restore(tmp_path)
    assert several.update(model, groups, 3) == before
