"""What vLLM draws with an adapter is what the learner says, for every kind that vLLM can serve: as an adapter where it
knows the kind, merged where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.targets import Target, serving
from rlft.config.adapters import KINDS
from rlft.engines.learner import RankedLearner
from tests.engines.test_adapters import changes_for
from tests.engines.test_deepspeed_state import make_learner, train
from tests.engines.vllm_generator import TEMPERATURE, draw, samples_of, start
from tests.engines.vllm_generator import folder as folder  # the fixture
from tests.helpers import make_biased_model, make_config

pytestmark = [
    pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),  # DeepSpeed's own calls into torch
]  # fmt: skip
pytest.importorskip("vllm", reason="vLLM is not installed (make vllm)")

SERVED = [kind for kind in KINDS if KINDS[kind].served]


def gap(learner: RankedLearner, generator: Any, version: int) -> float:
    """Largest difference of a drawn token's log-prob from what the learner says."""
    groups = draw(generator, version=version, max_new_tokens=20)
    scores = [array for arrays in learner.logprobs(groups) for array in arrays]
    gaps = [np.abs(s.logprobs - a)[s.loss_mask].max() for s, a in zip(samples_of(groups), scores, strict=True)]
    return float(max(gaps))


def changes_of(kind: str, dtype: str = "float32") -> dict[str, Any]:
    changes = {"generator.engine": "vllm", "generator.temperature": TEMPERATURE, "model.dtype": dtype}
    return changes_for(kind) | changes | {"learner.zero_stage": 0 if dtype == "float32" else 2}


@pytest.fixture(scope="module")
def bases(folder: Path, deep_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model, or another one for kinds that need it: with biases, or with enough layers to share."""
    special = {"bitfit": make_biased_model(tmp_path_factory.mktemp("biased") / "m", folder), "lora_drop": deep_folder}
    return lambda kind: special.get(kind, folder)


@pytest.fixture(scope="module")
def generators(bases: Callable[[str], Path]) -> Iterator[Callable[[str], Any]]:
    """A generator for each model and way to serve, used by all kinds that are served so: it knows nothing of their
    training."""
    started: dict[tuple[str, Path], Any] = {}

    def get(kind: str) -> Any:
        way = str(KINDS[kind].served), bases(kind)
        if way not in started:
            with pytest.MonkeyPatch.context() as monkeypatch:
                started[way] = start(bases(kind), monkeypatch, **changes_of(kind))
        return started[way]

    yield get
    for generator in started.values():
        generator.close()


def check(learner: RankedLearner, generator: Any, limit: float) -> None:
    generator.load(learner.publish(0, everything=True))
    assert gap(learner, generator, 0) < limit
    train(learner, range(2))
    update = learner.publish(2)
    assert update.num_bytes < learner.publish(2, everything=True).num_bytes, "only what changes travels"
    generator.load(update)
    assert gap(learner, generator, 2) < limit
    train(learner, range(2, 4))
    assert gap(learner, generator, 2) > 10 * limit, "the learner has moved on"
    assert learner.publish(4).num_bytes == update.num_bytes


@pytest.mark.parametrize("kind", SERVED)
def test_vllm_serves_what_the_learner_learned(rank_pool, bases, generators, kind):
    check(make_learner(rank_pool, bases(kind), 1, 0, changes_of(kind)), generators(kind), 1e-4)


@pytest.mark.parametrize(
    ("dtype", "adapter"), [("bfloat16", {}), ("float32", {"rank_stabilized": True, "rank": 4, "alpha": 8.0})]
)
def test_so_it_does_in_bfloat16_and_with_another_scale(rank_pool, folder, monkeypatch, dtype, adapter):
    changes = changes_of("lora", dtype)
    changes["model.adapter"] |= adapter
    generator = start(folder, monkeypatch, **changes)
    try:
        learner = make_learner(rank_pool, folder, 1, changes["learner.zero_stage"], changes)
        check(learner, generator, 1e-4 if dtype == "float32" else 0.2)
    finally:
        generator.close()


def test_a_checkpoint_is_served_as_the_learner_says(rank_pool, folder, tmp_path):
    """As `rlft eval` does it, for a kind that vLLM gets merged."""
    changes = changes_of("dora")
    learner = make_learner(rank_pool, folder, 1, 0, changes)
    train(learner, range(3))
    learner.save(tmp_path)
    with serving(Target(make_config(folder, changes), tmp_path, None, 3)) as generator:
        assert gap(learner, generator, 3) < 1e-4
