"""The loss on steps and what is measured of held-out ones, by hand; keys that mean nothing are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlft.algorithms.steps import step_loss
from rlft.config.algorithm import AlgorithmConfig
from rlft.config.load import load_config
from rlft.data.learning import load_held_out_rows, load_learning_rows
from rlft.errors import UserError
from rlft.evaluation.held_out import HeldOut
from rlft.samples import Group
from tests.helpers import leaf, make_group, numbers
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer

STEPS = {"model.tiny": {}, "algorithm.type": "process_reward"}


def test_step_loss() -> None:
    """-log sigmoid(2) = log(1 + e^-2); label 0: log(1 + e^2); label 1/4: the mixture. Gradient: sigmoid - label."""
    scores = leaf(2.0, 2.0, 2.0)
    loss = step_loss(scores, numbers(1.0, 0.0, 0.25))
    good, bad = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    torch.testing.assert_close(loss, numbers(good, bad, 0.25 * good + 0.75 * bad))
    loss.sum().backward()
    chance = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(scores.grad, numbers(chance - 1, chance, chance - 0.25))


class Says:
    """Gives these scores, place by place."""

    def __init__(self, *rows: list[float]) -> None:
        self._rows = rows

    def values(self, groups: list[Group]) -> list[list[np.ndarray]]:
        result = []
        for group, row in zip(groups, self._rows, strict=True):
            (sample,) = group.samples
            full = np.zeros(len(sample.token_ids), dtype=np.float32)
            full[sample.loss_mask] = row
            result.append([full])
        return result


def labelled(*labels: float) -> Group:
    group = make_group([4], [[7] * len(labels)])
    (sample,) = group.samples
    returns = np.array([0.0, *labels], dtype=np.float32)
    return group.with_samples([replace(sample, returns=returns)])


def test_held_out_steps() -> None:
    """Rows: all right; the first bad step missed; the bad one found, and one more; none there and none said."""
    groups = [labelled(1, 0, 0), labelled(1, 0), labelled(1, 0.4, 0.6), labelled(1, 1)]
    learner: Any = Says([1, -1, -2], [1, 1], [0.1, -0.1, -0.1], [3, 0.5])
    metrics = HeldOut(groups, AlgorithmConfig(type="process_reward"))(learner, None)
    assert metrics == pytest.approx({"eval/step_accuracy": 8 / 10, "eval/first_error_accuracy": 3 / 4})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm.loss_average": "max_length"}, ["algorithm.loss_average", "expects token", "or sequence"]),
        ({"algorithm.centering": 0.1}, ["algorithm.centering: has no effect", "learns from steps of the data"]),
        ({"data.chosen_column": "a"}, ["data.chosen_column: has no effect", "process_reward reads steps"]),
        ({"data.step_separator": ""}, ["data.step_separator"]),
        ({"data.label_of": "first"}, ["data.label_of", "all", "last"]),
        ({"algorithm.type": "reward", "data.label_of": "last"}, ["data.label_of: has no effect", "reads pairs"]),
    ],
)
def test_keys_that_mean_nothing(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config({}, STEPS | changes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_keys_that_count() -> None:
    config = load_config({}, STEPS | {"algorithm.loss_average": "sequence", "data.step_separator": "\n\n"})
    assert (config.algorithm.loss_average, config.data.step_separator) == ("sequence", "\n\n")


def test_held_out_rows_are_measured_at_every_step(tmp_path: Path, folder: Path, tokenizer: Any) -> None:
    row = {"prompt": "1+1=", "completions": ["a", "b"], "labels": [True, False]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    path, changes = str(tmp_path / "x.jsonl"), {"algorithm.type": "process_reward", "data.label_of": "last"}
    config = load_config({"model": {"path": str(folder)}}, changes | {"data.path": path, "evaluation.path": path})
    learned, held_out = load_learning_rows(config, tokenizer, 64), load_held_out_rows(config, tokenizer, 64)
    assert [group.samples[0].num_trained for group in (learned.examples[0], held_out[0])] == [1, 2]
