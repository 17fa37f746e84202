"""Packed training and decoding against transformers' own eager attention, one sequence at a time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from rlft.batch import make_pack
from rlft.errors import UserError
from rlft.models.attention import DecodeLayout, PackedLayout, PrefillLayout, attend
from rlft.models.policy import Policy
from rlft.samples import Group
from tests.helpers import make_group, plain_logprobs, random_groups

VOCABULARY = 40
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.25,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]

CAN: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {}),
    "qwen2-mha": ("Qwen2Config", {"num_key_value_heads": 4}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 4, "layer_types": MIXED}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "llama": ("LlamaConfig", {"num_key_value_heads": 1}),
    "mistral-window": ("MistralConfig", {"sliding_window": 3}),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": 4, "layer_types": MIXED, "final_logit_softcapping": 3.0},
    ),
    "gemma2-uncapped-attention": (
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": None, "final_logit_softcapping": 3.0},
    ),
    "granite": ("GraniteConfig", {"logits_scaling": 2.0, "attention_multiplier": 0.5, "residual_multiplier": 0.7}),
    "cohere": ("CohereConfig", {"logit_scale": 0.5}),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "attn_pdrop": 0.0, "embd_pdrop": 0.0,
         "resid_pdrop": 0.0},
    ),
}  # fmt: skip

CANNOT: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma2": ("Gemma2Config", {"head_dim": 8}, "Gemma2Attention needs attention with softcap"),
    "gpt-oss": (
        "GptOssConfig",
        {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        "GptOssAttention needs attention with s_aux",
    ),
    "qwen3-next": ("Qwen3NextConfig", {"head_dim": 8, "num_experts": 2}, "has layers of type linear_attention"),
    "qwen3.5": ("Qwen3_5TextConfig", {"head_dim": 8}, "has layers of type linear_attention"),
    "mamba": ("MambaConfig", {}, "has layers of type linear_attention"),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4}, "has attention of its own"),
    "bert": ("BertConfig", {"is_decoder": True}, "gives other numbers in a pack than alone"),
    "recurrent-gemma": ("RecurrentGemmaConfig", {}, "gives other numbers in a pack than alone"),
    "llama4": ("Llama4TextConfig", {"head_dim": 8, "num_local_experts": 2}, "has layers of type chunked_attention"),
}


def make_model(config_class: str, changes: dict[str, Any]) -> Any:
    config = getattr(transformers, config_class)(**{**SIZES, **changes})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()


def both(name: str) -> tuple[Any, Policy]:
    """The plain model, and a policy with the same weights."""
    plain = make_model(*CAN[name])
    return plain, Policy(copy.deepcopy(plain), chunk=2048).eval()


def mixed_groups(seed: int = 0) -> list[Group]:
    """Groups of 3, 1, 2 and 1 samples, one prompt and one completion of a single token among them."""
    rng = np.random.default_rng(seed)
    groups = random_groups(rng, [3, 1, 2, 1], VOCABULARY, max_prompt=9, max_completion=8)
    return [*groups, make_group([5], [[6], [7, 8, 9]], [1.0, -1.0]), make_group([5, 9, 11], [[6], [7], [8]], [1, 2, 3])]


def of_every_sample(plain: Any, groups: list[Group], temperature: float = 1.0) -> torch.Tensor:
    return torch.cat([plain_logprobs(plain, s, temperature) for g in groups for s in g.samples])


@pytest.mark.parametrize("name", CAN)
def test_packed_equals_separate_sequences(name):
    plain, policy = both(name)
    groups = mixed_groups()
    with torch.no_grad():
        expected = of_every_sample(plain, groups)
        got = policy(make_pack(groups), 1.0).logprobs
    assert expected.std() > 0.3, "a model that is sure of nothing would hide a wrong mask"
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CAN)
def test_packed_gradients_equal_those_of_separate_sequences(name):
    plain, policy = both(name)
    groups = mixed_groups(1)
    pack = make_pack(groups)
    weights = torch.randn(len(pack.targets), generator=torch.Generator().manual_seed(1))
    (of_every_sample(plain, groups) * weights).sum().backward()
    policy.train()
    (policy(pack, 1.0).logprobs * weights).sum().backward()
    packed = dict(policy.model.named_parameters())
    compared = 0
    for key, parameter in plain.named_parameters():
        gradient = packed[key].grad
        if parameter.grad is None:
            assert gradient is None or not gradient.any(), key
            continue
        scale = parameter.grad.abs().max()
        assert (gradient - parameter.grad).abs().max() <= 1e-4 * scale + 1e-6, key
        compared += 1
    assert compared > 10


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_and_temperature(chunk):
    plain, policy = both("qwen3")
    policy = Policy(policy.model, chunk)
    groups = mixed_groups()
    expected = of_every_sample(plain, groups, temperature=0.7)
    scores = policy(make_pack(groups), 0.7)
    torch.testing.assert_close(scores.logprobs, expected, rtol=0, atol=1e-5)
    expected.sum().backward()
    scores.logprobs.sum().backward()
    weight, gradient = plain.get_output_embeddings().weight.grad, policy.model.get_output_embeddings().weight.grad
    torch.testing.assert_close(gradient, weight, rtol=1e-4, atol=1e-4)


def test_entropy():
    plain, policy = both("llama")
    groups = [make_group([5, 6], [[7]])]
    logprobs = torch.log_softmax(plain(torch.tensor([[5, 6]])).logits[0, -1], -1)
    entropy = policy(make_pack(groups), 1.0).entropy
    torch.testing.assert_close(entropy[0], -(logprobs.exp() * logprobs).sum())


@pytest.mark.parametrize("window", [1, 2, 5, 17, 100])
def test_any_window(window):
    plain = make_model("MistralConfig", {"sliding_window": window})
    policy = Policy(copy.deepcopy(plain), 2048)
    groups = mixed_groups(2)
    with torch.no_grad():
        expected, got = of_every_sample(plain, groups), policy(make_pack(groups), 1.0).logprobs
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def decode(policy: Policy, prompts: list[list[int]], rows: list[list[int]], copies: int, room: int) -> list[list]:
    """Feed each row's tokens one at a time, dropping rows as they end. Logits after each token, [row][token] -> [V]."""
    layout = PrefillLayout([len(p) for p in prompts])
    ids = torch.tensor([t for p in prompts for t in p])
    hidden = policy.hidden(ids[None], layout.position_ids()[None], layout)[0]
    last = policy.logits(hidden[torch.tensor([len(p) for p in prompts]).cumsum(0) - 1])
    logits: list[list] = [[last[i // copies]] for i in range(len(rows))]
    state, live = DecodeLayout(layout, copies, room), list(range(len(rows)))
    for t in range(max(map(len, rows))):
        staying = [i for i, row in enumerate(live) if len(rows[row]) > t]
        if len(staying) < len(live):
            state.select(torch.tensor(staying))
            live = [live[i] for i in staying]
        tokens = torch.tensor([[rows[row][t]] for row in live])
        hidden = policy.hidden(tokens, state.advance()[:, None], state)
        for row, here in zip(live, policy.logits(hidden[:, 0]), strict=True):
            logits[row].append(here)
    return logits


@pytest.mark.parametrize("name", CAN)
@pytest.mark.parametrize("ragged", [True, False])
def test_decoding_step_by_step_equals_the_whole_sequence(name, ragged):
    plain, policy = both(name)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(4, VOCABULARY, n).tolist() for n in ((5, 1, 9) if ragged else (6, 6, 6))]
    rows = [rng.integers(4, VOCABULARY, n).tolist() for n in (2, 11, 4, 7, 1, 11)]  # two for each prompt
    for row, got in enumerate(decode(policy, prompts, rows, copies=2, room=3)):  # room has to grow twice
        prompt = prompts[row // 2]
        with torch.no_grad():
            expected = plain(torch.tensor([prompt + rows[row]])).logits[0, len(prompt) - 1 :]
        torch.testing.assert_close(torch.stack(got), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", CANNOT)
def test_a_model_that_packing_would_get_wrong_is_refused(name):
    config_class, changes, said = CANNOT[name]
    if not hasattr(transformers, config_class):
        pytest.skip(f"this transformers has no {config_class}")
    model = make_model(config_class, {"num_hidden_layers": 4, **changes})
    with pytest.raises(UserError, match=said):
        Policy(model, 2048)


def test_dropout_in_attention_is_refused_in_training_only():
    policy = Policy(make_model("LlamaConfig", {"attention_dropout": 0.1}), 2048)
    pack = make_pack([make_group([5], [[6]])])
    policy.eval()(pack, 1.0)
    with pytest.raises(ValueError, match="needs attention with dropout"):
        policy.train()(pack, 1.0)


def test_a_call_without_layout_or_with_a_mask_is_refused():
    _, policy = both("llama")
    with pytest.raises(ValueError, match="layout="):
        policy.model(input_ids=torch.tensor([[5, 6]]))
    qkv = [torch.zeros(1, 2, 3, 4)] * 3
    with pytest.raises(ValueError, match="without attention_mask"):
        attend(policy, *qkv, attention_mask=torch.zeros(1, 1, 3, 3), layout=PackedLayout([3]))


def test_positions_of_a_pack():
    # trunks of 3 and 1, branches of 2 on the second and 1 on the first
    layout = PackedLayout([3, 1], [2, 1], [1, 0])
    assert layout.position_ids().tolist() == [0, 1, 2, 0, 1, 2, 3]


def test_lengths_of_the_sequences_of_a_pack():
    layout = PackedLayout([2, 3], [1, 2], [1, 1])
    assert layout.sequence_lengths().tolist() == [2, 2, 3, 3, 3, 4, 5, 5]
    assert PackedLayout([2, 1]).sequence_lengths().tolist() == [2, 2, 1]
