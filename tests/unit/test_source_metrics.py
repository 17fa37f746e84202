"""Metrics for each source of a mixture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlft.algorithms.statistics import joined, means_by_source, metrics_of
from rlft.batch import make_pack
from rlft.config.data import EvaluationConfig
from rlft.data.sources import with_sources
from rlft.errors import UserError
from rlft.evaluation.accuracy import Evaluation
from rlft.loops.credit import rollout_metrics
from rlft.rollout import Rollout
from rlft.samples import Group, SamplingParams
from tests.fakes import FakeGenerator, FakePrompts, FakeRewarder, Journal
from tests.helpers import make_group, make_prompt, make_sample


def of(source: str, group: Group) -> Group:
    return replace(group, prompt=replace(group.prompt, source=source))


def test_means_by_source() -> None:
    # samples 0 and 2 are of "a": values 1, 2 and 6; sample 1 is of "b": 4; sample 3 of none
    values, sample_of = torch.tensor([1.0, 2.0, 4.0, 6.0, 9.0]), torch.tensor([0, 0, 1, 2, 3])
    stats = means_by_source("nll", values, sample_of, ["a", "b", "a", ""])
    assert metrics_of(stats) == {"nll/a": 3.0, "nll/b": 4.0}
    assert metrics_of(joined([stats, means_by_source("nll", values[:1], sample_of[:1], ["b"])])) == {
        "nll/a": 3.0, "nll/b": 2.5,
    }  # fmt: skip
    assert means_by_source("nll", values, sample_of, [""] * 4) == {}


def test_a_pack_knows_the_source_of_each_sample() -> None:
    groups = [of("a", make_group([5], [[6], [7, 8]])), make_group([5], [[6]]), of("b", make_group([5], [[6]]))]
    pack = make_pack(groups)
    assert pack.sources == ("a", "a", "", "b")
    assert [pack.sources[i] for i in pack.sample_of.tolist()] == ["a", "a", "a", "", "b"]


def test_rewards_by_source() -> None:
    prompt = make_prompt([5])
    rewards = {"a": [1.0, 0.0], "b": [0.5, None], "": [1.0, 1.0], "c": [None, None]}
    groups = [
        of(name, Group(prompt, tuple(make_sample(prompt, [6], reward=reward) for reward in row)))
        for name, row in rewards.items()
    ]
    metrics = rollout_metrics(Rollout(groups, 1.0, 1.0), version=0)
    by_source = {name: value for name, value in metrics.items() if name.startswith("reward/mean/")}
    assert by_source == {"reward/mean/a": 0.5, "reward/mean/b": 0.5}


class HalfRight(FakeRewarder):
    """The first two prompts are always right, the others never."""

    def score(self, groups):
        for place, group in groups:
            yield place, group.with_samples([replace(s, reward=float(place < 2)) for s in group.samples])


def test_accuracy_by_source() -> None:
    prompts = [replace(p, columns={"from": name}) for p, name in zip(FakePrompts().take(0, 4), "abaa", strict=True)]
    settings = EvaluationConfig(path="x", source_column="from")
    evaluation = Evaluation(with_sources(prompts, "from"), SamplingParams(1, 8), 0, settings)
    journal = Journal()
    metrics = evaluation(FakeGenerator(journal, version=0), HalfRight(journal), version=0)
    assert metrics["eval/accuracy"] == 0.5
    assert metrics["eval/accuracy/a"] == pytest.approx(1 / 3) and metrics["eval/accuracy/b"] == 1.0


@pytest.mark.parametrize("value", [None, 3, "", "a/b"])
def test_a_source_column_names_sources(value: object) -> None:
    prompts = [replace(make_prompt([5], "x.jsonl:1"), columns={"from": value, "n": 1})]
    with pytest.raises(UserError, match=r"x\.jsonl:1: evaluation\.source_column 'from' is .* Columns there: from, n"):
        with_sources(prompts, "from")
    assert with_sources(prompts, None) == prompts
