"""Adapters that put virtual tokens before the text, in packs, against peft's own forward of each sequence alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlft.batch import make_pack, plan_micro_batches
from rlft.config.adapters import KINDS, AdapterConfig
from rlft.config.load import load_config
from rlft.errors import UserError
from rlft.models.adapters.attach import adapter_off, add_adapter, own_names
from rlft.models.adapters.virtual import ahead_of, with_encoder_of
from rlft.models.attention import Ahead, DecodeLayout, PackedLayout, PrefillLayout
from rlft.models.load import counting_virtual, window
from rlft.models.policy import Policy
from tests.helpers import make_group, plain_logprobs
from tests.unit.test_attention import CAN, make_model, mixed_groups, of_every_sample
from tests.unit.test_config_checks import BASE

VIRTUAL = [kind for kind in KINDS if KINDS[kind].virtual]
MODELS = [name for name in CAN if name != "gpt2"]  # whose test settings name num_key_value_heads, which peft believes


def attached(plain: Any, kind: str, **settings: Any) -> Any:
    """A copy of the model with an adapter that is no longer as fresh as it began."""
    adapter = AdapterConfig.model_validate({"type": kind, "num_tokens": 5, **settings})
    model = add_adapter(copy.deepcopy(plain), adapter, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in own_names(model):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("kind", VIRTUAL)
@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_peft_alone(name, kind):
    plain = make_model(*CAN[name])
    model = attached(plain, kind)
    groups, policy = mixed_groups(), Policy(copy.deepcopy(model), chunk=2048).eval()
    with torch.no_grad():
        expected, base = of_every_sample(model, groups), of_every_sample(plain, groups)
        got = policy(make_pack(groups), 1.0).logprobs
        with adapter_off(policy.model):
            off = policy(make_pack(groups), 1.0).logprobs
        again = policy(make_pack(groups), 1.0).logprobs
    assert (expected - base).abs().mean() > 0.05, "the adapter does something"
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(off, base, rtol=0, atol=1e-5)
    assert torch.equal(again, got)


@pytest.mark.parametrize("settings", [{"kind": kind} for kind in VIRTUAL] + [{"kind": "p_tuning", "encoder": "lstm"}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_peft(settings, checkpointing):
    """Also with gradient checkpointing, which peft's own prefix cannot do."""
    plain = make_model(*CAN["qwen2-window"])
    model = attached(plain, **settings)
    groups, policy = mixed_groups(1), Policy(copy.deepcopy(model), chunk=2048).train()
    weights = torch.randn(len(make_pack(groups).targets), generator=torch.Generator().manual_seed(1))
    (of_every_sample(model, groups) * weights).sum().backward()
    if checkpointing:
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    (policy(make_pack(groups), 1.0).logprobs * weights).sum().backward()
    packed, compared = dict(policy.model.named_parameters()), 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert packed[name].grad is None
            continue
        scale = parameter.grad.abs().max()
        assert scale > 0
        assert (packed[name].grad - parameter.grad).abs().max() <= 1e-4 * scale + 1e-6, name
        compared += 1
    assert compared == len(own_names(model))


@pytest.mark.parametrize("kind", VIRTUAL)
@pytest.mark.parametrize("name", ["qwen3", "mistral-window", "gemma3"])
def test_decoding_from_the_cache_equals_peft_alone(name, kind):
    """Two passes of prompts joined, two samples of each, rows that are dropped on the way."""
    model = attached(make_model(*CAN[name]), kind)
    policy = Policy(copy.deepcopy(model), 2048).eval()
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        layouts = [PrefillLayout([len(p) for p in part], ahead=policy.ahead()) for part in (prompts[:2], prompts[2:])]
        for part, layout in zip((prompts[:2], prompts[2:]), layouts, strict=True):
            policy.packed(torch.tensor([t for p in part for t in p]), layout)
        state = DecodeLayout(PrefillLayout.joined(layouts), copies=2, room=2)
        rows = [list(p) for p in prompts for _ in range(2)]
        for step in range(7):
            if step == 4:
                rows = rows[1:5]
                state.select(torch.tensor([1, 2, 3, 4]))
            for row in rows:
                row.append(int(rng.integers(4, 40)))
            tokens = torch.tensor([[row[-1]] for row in rows])
            logits = policy.logits(policy.hidden(tokens, state.advance()[:, None], state)[:, 0])
            expected = torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])
            torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", VIRTUAL)
def test_what_is_saved_loads_in_peft_and_in_packs(tmp_path: Path, kind):
    plain = make_model(*CAN["qwen3"])
    plain.save_pretrained(tmp_path / "base")
    model, groups = attached(plain, kind), mixed_groups()
    model.save_pretrained(tmp_path / "adapter")
    loaded: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter")
    ).eval()
    with torch.no_grad():
        expected = of_every_sample(model, groups)
        torch.testing.assert_close(of_every_sample(loaded, groups), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(Policy(loaded, 2048)(make_pack(groups), 1.0).logprobs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{"kind": kind} for kind in VIRTUAL] + [{"kind": "p_tuning", "encoder": "lstm"}])
def test_whole_tensors_stand_in_for_split_ones_when_saving(settings):
    model = attached(make_model(*CAN["qwen3"]), **settings)
    expected = model.get_prompt_embedding_to_save("default")
    tensors, own = {n: p.detach().clone() for n, p in model.named_parameters()}, model.prompt_encoder["default"]
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.zero_()  # as far as this rank can see
    state = torch.get_rng_state()
    with with_encoder_of(model, tensors):
        assert torch.equal(model.get_prompt_embedding_to_save("default"), expected)
    assert model.prompt_encoder["default"] is own
    assert torch.equal(torch.get_rng_state(), state)


def test_places_of_a_pack_behind_virtual_tokens():
    """Trunks of 2 and 1, a branch of 2 on the second; two virtual tokens, which are 0 and 1 of what is fed."""
    plain = PackedLayout([2, 1], [2], [1])
    fed = plain.behind(Ahead(2, embeddings=torch.zeros(2, 4)))
    source, places = fed.fed()
    assert source.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6]
    assert places.tolist() == [2, 3, 6, 7, 8]
    assert fed.position_ids().tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    kept = plain.behind(Ahead(2, keys_values=[]))
    assert kept.position_ids().tolist() == [2, 3, 2, 3, 4]
    assert (kept.lengths.tolist(), kept.width) == ([4, 3], 4)
    assert plain.behind(None) is plain


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """A model with a tokenizer: the `digits` vocabulary, one token per character."""
    from rlft.config.model import TinyModel
    from rlft.models.tiny import make_tiny_model

    sizes = {"vocabulary": "digits", "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "max_length": 32}
    make_tiny_model(TinyModel.model_validate(sizes), tmp_path / "model", seed=0)
    return AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_it_begins_as_the_text(small, kind):
    """The text before a sequence says what the virtual tokens say: "ab" is repeated."""
    adapter = AdapterConfig.model_validate({"type": kind, "num_tokens": 5, "init_text": "ab"})
    model = add_adapter(copy.deepcopy(small), adapter, seed=0)
    letters = [4 + "0123456789+-*/=()[]{}<>.,:;?!_ \nab".index(letter) for letter in "ababa"]
    with torch.no_grad():
        expected = small(input_ids=torch.tensor([[*letters, 7, 8, 9]])).logits[0, -3:]
        got = model(input_ids=torch.tensor([[7, 8, 9]])).logits[0, -3:]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_text_that_does_not_fit_is_told(small):
    adapter = AdapterConfig.model_validate({"type": "prefix", "num_tokens": 2, "init_text": "abc"})
    with pytest.raises(
        UserError, match=r"init_text: has 3 tokens for model\.adapter\.num_tokens 2.*set num_tokens to 3"
    ):
        add_adapter(small, adapter, seed=0)


@pytest.mark.parametrize("kind", VIRTUAL)
def test_a_fresh_one_is_a_function_of_its_seed(small, kind):
    adapter = AdapterConfig.model_validate({"type": kind, "num_tokens": 3})

    def fresh(seed: int) -> list[torch.Tensor]:
        ahead = ahead_of(add_adapter(copy.deepcopy(small), adapter, seed=seed))
        assert ahead is not None and ahead.count == 3
        return [ahead.embeddings] if ahead.embeddings is not None else [x for kv in ahead.keys_values or () for x in kv]

    state = torch.get_rng_state()
    first, second, other = fresh(0), fresh(0), fresh(1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_window_counts_virtual_tokens(small):
    path = small.name_or_path
    assert window(path, AdapterConfig.model_validate({"type": "prompt", "num_tokens": 5})) == 27
    assert window(path, AdapterConfig()) == window(path) == 32
    with pytest.raises(UserError, match=r"num_tokens: 31 virtual tokens leave no room .* window of 32 .* at most 30"):
        window(path, AdapterConfig.model_validate({"type": "prefix", "num_tokens": 31}))


def test_a_micro_batch_counts_virtual_tokens():
    """Each group feeds 3 tokens: three fit a budget of 10, and with 2 virtual ones before each just two."""
    groups = [make_group([5, 6], [[7, 8]]) for _ in range(6)]
    assert [len(batch) for batch in plan_micro_batches(groups, 1, 10)[0]] == [3, 3]
    assert [len(batch) for batch in plan_micro_batches(groups, 1, 10, ahead=2)[0]] == [2, 2, 2]


def test_plain_logprobs_of_peft_skip_virtual_tokens():
    """The tests' own yardstick: a prompt of as many tokens as samples have places must not shift anything."""
    model = attached(make_model(*CAN["llama"]), "prompt")
    sample = make_group([5, 6], [[7]]).samples[0]
    logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert logits.shape[1] == 8
    torch.testing.assert_close(plain_logprobs(model, sample)[0], torch.log_softmax(logits[0, 6], -1)[7])


# ---- configuration ----


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"generator.engine": "vllm"},
            "model.adapter.type: {kind} cannot be served by vLLM; expected generator.engine",
        ),
        ({"model.adapter.rank": 4}, "model.adapter.rank: has no effect, because model.adapter.type is {kind}"),
        ({"model.adapter.target_modules": "q_proj"}, "model.adapter.target_modules: has no effect"),
        ({"algorithm.type": "reward", "rewards.functions": []}, "{kind} is not there for reward models"),
    ],
)
@pytest.mark.parametrize("kind", VIRTUAL)
def test_what_it_cannot_do_is_told(kind, changes, said):
    with pytest.raises(UserError) as error:
        load_config(BASE, {"model.adapter": {"type": kind}} | changes)
    assert said.format(kind=kind) in str(error.value)


@pytest.mark.parametrize(
    ("kind", "key"),
    [("prompt", "encoder"), ("p_tuning", "init_text"), ("prefix", "projection_size"), ("p_tuning_v2", "encoder"),
     ("p_tuning_v2", "init_text"), ("lora", "num_tokens")],
)  # fmt: skip
def test_keys_of_other_kinds_have_no_effect(kind, key):
    value = {"encoder": "lstm", "init_text": "a", "projection_size": 8, "num_tokens": 8}[key]
    with pytest.raises(UserError, match=f"model.adapter.{key}: has no effect, because model.adapter.type is {kind}"):
        load_config(BASE, {"model.adapter": {"type": kind, key: value}})


def test_vllm_cannot_be_asked_for_an_evaluation_either():
    given = {"model.adapter": {"type": "prefix"}, "generator.engine": "vllm", "evaluation.path": "x.jsonl"}
    with pytest.raises(UserError, match="prefix cannot be served by vLLM"):
        load_config(BASE, given, purpose="evaluate")


def test_what_does_not_fit_is_told_with_the_virtual_tokens():
    adapter = AdapterConfig.model_validate({"type": "prefix", "num_tokens": 5})
    said = r"room for 3 \(window 27\)\. The window is the model's less the 5 virtual tokens"
    with pytest.raises(UserError, match=said), counting_virtual(adapter):
        raise UserError("there is room for 3 (window 27).")
    with pytest.raises(UserError, match=r"^no such file$"), counting_virtual(adapter):
        raise UserError("no such file")
