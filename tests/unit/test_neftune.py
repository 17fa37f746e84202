"""Noise on embeddings: as large as the paper says for each sequence of a pack, only in training, the same by seed."""

from __future__ import annotations

import math
from typing import Any

import torch

from rlft.batch import make_pack
from rlft.models.policy import EmbeddingNoise, Policy
from tests.helpers import make_group
from tests.unit.test_attention import make_model


def test_noise_is_bounded_by_each_sequences_own_length() -> None:
    embeddings = torch.nn.Embedding(8, 4)
    noise = EmbeddingNoise(embeddings, alpha=5.0)
    ids = torch.zeros(1, 2000, dtype=torch.int64)
    quiet = embeddings(ids)
    noise.lengths = torch.tensor([100] * 1000 + [25] * 1000)
    torch.manual_seed(0)
    added = (embeddings(ids) - quiet)[0].detach()
    for part, length in ((added[:1000], 100), (added[1000:], 25)):
        limit = 5.0 / math.sqrt(length * 4)  # 0.25 and 0.5
        assert 0.95 * limit < float(part.abs().max()) <= limit
        assert abs(float(part.mean())) < 0.03 * limit
        assert abs(float(part.std()) - limit / math.sqrt(3)) < 0.03 * limit, "uniform"


def logprobs(policy: Policy, seed: int) -> Any:
    torch.manual_seed(seed)
    return policy(make_pack([make_group([4, 5], [[6, 7, 8]]), make_group([9], [[10]])]), 1.0).logprobs


def test_noise_is_for_training_alone() -> None:
    model = make_model("Qwen2Config", {})
    plain = Policy(model, 64)
    expected = logprobs(plain.eval(), 0)
    noisy = Policy(model, 64, noise=5.0)
    assert torch.equal(logprobs(noisy.eval(), 0), expected)
    first, again, other = (logprobs(noisy.train(), seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert float((first - expected).detach().abs().max()) > 1e-3
    assert torch.equal(logprobs(noisy.eval(), 0), expected), "and none is left over"
