"""What vLLM draws with dequantized weights is what a learner on a quantized base says, from the first update on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.test_adapters_vllm import changes_of, gap
from tests.engines.test_deepspeed_state import make_learner, train
from tests.engines.vllm_generator import folder as folder  # the fixture
from tests.engines.vllm_generator import start

pytestmark = [
    pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),  # DeepSpeed's own calls into torch
]  # fmt: skip
pytest.importorskip("vllm", reason="vLLM is not installed (make vllm)")


@pytest.mark.parametrize(
    ("kind", "base", "dtype"),
    [
        ("lora", "nf4", "float32"), ("lora", "int8", "float32"), ("lora", "nf4", "bfloat16"),
        ("dora", "nf4", "float32"), ("vera", "int8", "float32"), ("ia3", "nf4", "float32"),
    ],
)  # fmt: skip
def test_vllm_serves_what_was_learned_on_a_quantized_base(rank_pool, folder: Path, monkeypatch, kind, base, dtype):
    changes = changes_of(kind, dtype) | {"model.quantization.type": base}
    learner = make_learner(rank_pool, folder, 1, changes["learner.zero_stage"], changes)
    generator = start(folder, monkeypatch, **changes)
    limit = 1e-4 if dtype == "float32" else 0.2
    try:
        generator.load(learner.publish(0, everything=True))
        assert gap(learner, generator, 0) < limit
        train(learner, range(2))
        generator.load(learner.publish(2))
        assert gap(learner, generator, 2) < limit
        train(learner, range(2, 4))
        assert gap(learner, generator, 2) > 10 * limit, "the learner has moved on"
    finally:
        generator.close()
