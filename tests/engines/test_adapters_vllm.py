"""What vLLM draws with an adapter is what the learner says, for every kind that vLLM can serve: as an adapter where it
knows the kind, merged where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlft.config.adapters import KINDS
from rlft.engines.learner import RankedLearner
from tests.engines.test_adapters import changes_for
from tests.engines.test_deepspeed_state import make_learner, train
from tests.engines.vllm_generator import TEMPERATURE, draw, samples_of, start
from tests.engines.vllm_generator import folder as folder  # the fixture

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


def changes_of(kind: str, dtype: str) -> dict[str, Any]:
    changes = {"generator.engine": "vllm", "generator.temperature": TEMPERATURE, "model.dtype": dtype}
    stage = {"learner.zero_stage": 0 if dtype == "float32" else 2}
    return changes_for(kind, **({"rank_stabilized": True} if kind == "lora_fa" else {})) | changes | stage


@pytest.mark.parametrize(("kind", "dtype"), [(kind, "float32") for kind in SERVED] + [("lora", "bfloat16")])
def test_vllm_serves_what_the_learner_learned(rank_pool, folder: Path, monkeypatch, kind, dtype):
    changes = changes_of(kind, dtype)
    learner = make_learner(rank_pool, folder, 1, changes["learner.zero_stage"], changes)
    generator = start(folder, monkeypatch, **changes)
    limit = 1e-4 if dtype == "float32" else 0.2
    try:
        generator.load(learner.publish(0, everything=True))
        assert gap(learner, generator, 0) < limit
        train(learner, range(2))
        update = learner.publish(2)
        assert update.num_bytes < learner.publish(2, everything=True).num_bytes, "only what changes travels"
        generator.load(update)
        assert gap(learner, generator, 2) < limit
        before = learner.publish(0)
        train(learner, range(2, 4))
        assert gap(learner, generator, 2) > 10 * limit, "the learner has moved on"
        assert before.num_bytes == update.num_bytes
    finally:
        generator.close()
