"""Learner ranks and a model that is wide enough for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.ranks import Ranks
from tests.helpers import make_biased_model, make_sharp_model


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of width 320: matrices of more than 100,000 elements, because ZeRO-3 leaves smaller ones whole on every
    rank. Larger weights than a fresh model's, as in `tiny_folder`."""
    folder = tmp_path_factory.mktemp("model") / "wide"
    model = make_sharp_model(
        folder, 3, hidden_size=320, num_layers=1, num_heads=4, num_kv_heads=2, intermediate_size=400, max_length=64
    )
    assert sum(p.numel() > 100_000 for p in model.parameters()) >= 4
    return folder


@pytest.fixture(scope="session")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, so that layers have something to share; narrow."""
    folder = tmp_path_factory.mktemp("model") / "deep"
    sizes = {"hidden_size": 64, "num_layers": 3, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 96}
    make_sharp_model(folder, 6, **sizes, max_length=64)
    return folder


@pytest.fixture(scope="session")
def biased_folder(wide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide, but a Llama whose linear layers have biases that are not 0."""
    return make_biased_model(tmp_path_factory.mktemp("model") / "biased", wide_folder)


@pytest.fixture(scope="session")
def rank_pool() -> Iterator[dict[int, Ranks]]:
    """1 and 2 ranks, started when they are first asked for."""
    before = dict(os.environ)
    pool = {1: Ranks(1), 2: Ranks(2)}
    yield pool
    for ranks in pool.values():
        ranks.close()
    os.environ.clear()
    os.environ.update(before)  # DeepSpeed's rank in this process has put its rendezvous there
