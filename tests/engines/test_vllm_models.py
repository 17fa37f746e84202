"""The real vLLM with models of other families and precisions, and what is refused at the start."""

from __future__ import annotations

import pytest
import torch

from rlft.errors import UserError
from tests.engines.vllm_generator import draw, gap, model_of, samples_of, start, update_of
from tests.engines.vllm_generator import folder as folder  # the fixture

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("vllm", reason="vLLM is not installed (make vllm)")


def test_bfloat16_weights_can_be_read_back(folder):
    """On CPUs with AMX vLLM would pack bfloat16 matrices and drop the originals. How far bfloat16 rounds is a matter of
    the CPU (0.1 for one token was seen); other weights are much further off."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        generator = start(folder, monkeypatch, **{"model.dtype": "bfloat16"})
    try:
        for version in range(2):
            lm = model_of(generator, version)
            assert generator.load(update_of(lm, version)), "every tensor was compared"
            samples = samples_of(draw(generator, version=version))
            right, wrong = (max(gap(m, s, version) for s in samples) for m in (lm, model_of(generator, 5)))
            assert right < 0.2 and wrong > 10 * right, (right, wrong)
    finally:
        generator.close()


def save_model(folder, config):
    """A small model of another family."""
    import transformers

    from rlft.models.tiny import BOS_ID, EOS_ID, PAD_ID, digits_tokenizer

    ids = dict(pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID)
    sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                 num_key_value_heads=1, max_position_embeddings=256)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(**{**sizes, **ids})).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.generation_config = transformers.GenerationConfig(**ids)
    model.save_pretrained(folder)
    digits_tokenizer().save_pretrained(folder)


def test_layers_that_the_checkpoint_has_fused_already(tmp_path):
    """Phi-3: q, k and v are one tensor on both sides."""
    from transformers import Phi3Config

    save_model(tmp_path / "phi", Phi3Config)
    with pytest.MonkeyPatch.context() as monkeypatch:
        generator = start(tmp_path / "phi", monkeypatch)
    try:
        for version in range(2):
            lm = model_of(generator, version)
            assert generator.load(update_of(lm, version))
            assert max(gap(lm, s, version) for s in samples_of(draw(generator, version=version))) < 1e-4
    finally:
        generator.close()


def test_a_model_that_cannot_take_new_weights_here_is_refused_at_the_start(tmp_path):
    """On CPUs vLLM repacks experts, and its own reload of the very same weights makes another model of them."""
    from functools import partial

    from transformers import Qwen3MoeConfig

    moe = partial(Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=32)
    save_model(tmp_path / "moe", moe)
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(UserError, match="cannot take new weights into"):
        start(tmp_path / "moe", monkeypatch)


@pytest.mark.parametrize("name", ["data_parallel_size", "pipeline_parallel_size"])
def test_engines_that_weights_would_not_reach_are_refused(folder, name):
    """Only the first of several would answer for all."""
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(UserError, match=f"{name}: new weights are loaded"):
        start(folder, monkeypatch, **{"generator.engine_args": {name: 2}})
