"""A cluster of two nodes: a role goes where its resources are, and the run is the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlft import cli
from tests.running import GRPO, ROOT, assert_learns, metrics_of, rollouts_of, train_here, weights_of, write_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """Address of a cluster whose second node has the resource `gen` and room for one actor, and that node's id."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1, resources={"gen": 1})
        yield cluster.address, second.node_id
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_the_generator_on_the_other_node(
    task: Path, two_nodes: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"loop.steps": 3, "loop.save_every": 0}
    inline = task / train_here(task, write_config(task, "one", GRPO, changes)).folder
    config = write_config(task, "two", GRPO, {**changes, "cluster.mode": "ray"})
    address, node = two_nodes
    monkeypatch.chdir(task)
    words = ["train", config, "--cluster.address", address]
    assert cli.main([*words, "--generator.resources", "{gen: 1}"]) == 0

    run = task / "runs" / "two"
    places = json.loads((run / "logs" / "actors.json").read_text())
    nodes = {name: place.split()[2] for name, place in places.items()}
    assert node.startswith(nodes["generator-0"])
    assert not node.startswith(nodes["learner-0"])
    assert_learns(inline)
    assert metrics_of(run) == metrics_of(inline)
    assert rollouts_of(run) == rollouts_of(inline)
    assert weights_of(run, 3) == weights_of(inline, 3)
