"""Kinds of adapters that are ours, against their papers' formulas: small numbers worked by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rlft.batch import make_pack
from rlft.config.adapters import AdapterConfig
from rlft.data.mixture import named
from rlft.errors import UserError
from rlft.models.adapters.attach import adapter_off, add_adapter, own_names
from rlft.models.adapters.bottleneck import Bottleneck
from rlft.models.adapters.lora_drop import kept
from rlft.models.adapters.merging import merged_weights
from rlft.models.adapters.own import is_own, own_adapter, read_own, write_own
from rlft.models.adapters.training import adapter_training
from rlft.models.policy import Policy
from tests.helpers import make_group, plain_logprobs


class Small(nn.Module):
    """Layers that each have a linear layer q, of the identity."""

    def __init__(self, num_layers: int = 1, size: int = 2) -> None:
        super().__init__()
        self.config = SimpleNamespace(_name_or_path="small")
        self.embed, self.layers = nn.Embedding(3, size), nn.ModuleList()
        for _ in range(num_layers):
            layer = nn.Module()
            layer.q = nn.Linear(size, size, bias=False)
            layer.q.weight.data = torch.eye(size)
            self.layers.append(layer)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed


def put(parameter: Any, values: Any) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(values, dtype=torch.float32))


def adapted(model: Any, kind: str, **keys: Any) -> Any:
    return add_adapter(model, AdapterConfig(type=kind, **keys), seed=0)  # type: ignore[arg-type]


# ---- bitfit ----


def test_bitfit_trains_biases_and_the_base_is_the_one_with_the_first_biases():
    """y = W x + b with W = [1, 2], b = 3, at x = (1, 1): 6; b trained to 5: 8; off: 6; merged: 5."""
    model = nn.Sequential(nn.Linear(2, 1), nn.LayerNorm(1))
    put(model[0].weight, [[1.0, 2.0]])
    put(model[0].bias, [3.0])
    adapted(model, "bitfit")
    assert [n for n, p in model.named_parameters() if p.requires_grad] == own_names(model) == ["0.bias", "1.bias"]
    put(model[0].bias, [5.0])
    x, linear = torch.ones(2), model[0]
    assert linear(x).item() == 8
    with adapter_off(model):
        assert linear(x).item() == 6
    assert linear(x).item() == 8
    merged = dict(merged_weights(model))
    assert list(merged) == ["0.bias", "1.bias"]
    assert merged["0.bias"].tolist() == [5]


def test_bitfit_says_that_a_model_has_no_biases(tiny_folder):
    with pytest.raises(UserError, match=r"bitfit trains biases, and Qwen3ForCausalLM has none"):
        adapted(AutoModelForCausalLM.from_pretrained(tiny_folder), "bitfit")


# ---- bottleneck ----


def test_a_bottleneck_is_its_formula():
    """down (1, -1) + 0.5, up (2, 3) + (0.1, 0.2), relu. h = (2, 1): 1.5 inside, (3.1, 4.7) out, with h (5.1, 5.7).
    h = (0, 2): -1.5 inside, cut to 0, so (0.1, 0.2) out, with h (0.1, 2.2)."""
    layer = Bottleneck(2, 1, "relu")
    h = torch.tensor([[2.0, 1.0], [0.0, 2.0]])
    assert torch.equal(layer(h), h), "fresh, it is the identity"
    put(layer.down.weight, [[1.0, -1.0]])
    put(layer.down.bias, [0.5])
    put(layer.up.weight, [[2.0], [3.0]])
    put(layer.up.bias, [0.1, 0.2])
    torch.testing.assert_close(layer(h), torch.tensor([[5.1, 5.7], [0.1, 2.2]]))


@pytest.mark.parametrize(("placement", "behind"), [("houlsby", ["self_attn", "mlp"]), ("pfeiffer", ["mlp"])])
def test_bottlenecks_stand_behind_sublayers_and_before_the_sum(tiny_folder, placement, behind):
    """What the last layer gives grows by what the bottlenecks behind its last sublayer add."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    ids, outputs = torch.tensor([[5, 6, 7]]), []
    expected = model(ids).logits
    adapted(model, "bottleneck", bottleneck_size=3, placement=placement)
    places = [f"model.layers.{i}.{part}" for i in range(2) for part in behind]
    parts = ("down.weight", "down.bias", "up.weight", "up.bias")
    assert own_names(model) == [f"{place}.bottleneck.{part}" for place in places for part in parts]
    assert torch.equal(model(ids).logits, expected), "fresh, it changes nothing"
    model.model.layers[-1].register_forward_hook(lambda module, args, output: outputs.append(output))
    model(ids)
    put(model.model.layers[-1].mlp.bottleneck.up.bias, [0.5] * 32)
    model(ids)
    with adapter_off(model):
        assert torch.equal(model(ids).logits, expected)
    before, after, off = (o[0] if isinstance(o, tuple) else o for o in outputs)
    torch.testing.assert_close(after, before + 0.5)
    assert torch.equal(off, before)
    if "self_attn" in behind:
        put(model.model.layers[0].self_attn.bottleneck.up.bias, [0.5] * 32)
        assert not torch.allclose(model(ids).logits, expected)


# ---- delta_lora ----


def test_delta_lora_moves_the_base_by_the_change_of_the_branch():
    """W = 1, s = alpha / rank = 2. A goes from (1, 2) to (2, 2), B from (1, 0) to (1, 1), so BA from [[1, 2], [0, 0]]
    to [[2, 2], [2, 2]]: changed by [[1, 0], [2, 2]], times ratio 0.5 times s 2. W is [[2, 0], [2, 3]]; its change has
    the norm 3. At x = (1, 1): W x = (2, 5), s B A x = (8, 8)."""
    model = adapted(Small(), "delta_lora", rank=1, alpha=2, delta_start=1, delta_ratio=0.5)
    layer = model.layers[0].q
    put(layer.lora_A, [[1.0, 2.0]])
    put(layer.lora_B, [[1.0], [0.0]])
    training = adapter_training(model, model.rlft_adapter.adapter)
    training.gradient_is_there()
    assert training.stepped(0) == {"adapter/base_change": 0.0}
    training.gradient_is_there()
    put(layer.lora_A, [[2.0, 2.0]])
    put(layer.lora_B, [[1.0], [1.0]])
    assert training.stepped(1) == {"adapter/base_change": 3.0}
    assert layer.base_layer.weight.tolist() == [[2, 0], [2, 3]]
    assert layer(torch.ones(2)).tolist() == [10, 13]
    assert own_names(model) == [f"layers.0.q.{name}" for name in ("lora_A", "lora_B", "base_layer.weight")]
    assert {n: t.tolist() for n, t in merged_weights(model)} == {"layers.0.q.weight": [[6, 4], [6, 7]]}
    training.gradient_is_there()
    put(layer.lora_A, [[0.0, 0.0]])
    assert training.stepped(0) == {"adapter/base_change": 0.0}, "before delta_start nothing moves"
    assert layer.base_layer.weight.tolist() == [[2, 0], [2, 3]]


@pytest.mark.parametrize("kind", ["lora", "delta_lora"])
@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_what_is_tied_to_another_layer_gets_no_adapter(tiny_folder, kind, name):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)  # whose output layer is its embeddings
    with pytest.raises(UserError, match=f"target_modules: {name} shares its weight with another layer"):
        adapted(model, kind, target_modules=["q_proj", name])


@pytest.mark.parametrize("kind", ["lora", "vera", "delta_lora", "lora_drop"])
def test_a_name_that_fits_nothing_is_refused_beside_others_that_do(tiny_folder, kind):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with pytest.raises(UserError, match=r"target_modules: typo, proj fits no module .* named: down_proj, gate_proj"):
        adapted(model, kind, target_modules=["q_proj", "typo", "0.self_attn.v_proj", "proj"])


@pytest.mark.parametrize("kind", ["lora", "adalora", "delta_lora"])
def test_one_name_may_stand_without_a_list(tiny_folder, kind):
    model = adapted(AutoModelForCausalLM.from_pretrained(tiny_folder), kind, target_modules="v_proj")
    found = {name.split(".lora_")[0].rpartition(".")[2] for name in own_names(model) if ".lora_" in name}
    assert found == {"v_proj"}


# ---- lora_drop ----


@pytest.mark.parametrize(
    ("importance", "share", "expected"),
    [
        ([1, 5, 3, 1], 0.8, [False, True, True, False]),  # 5 + 3 of 10
        ([1, 5, 3, 1], 0.81, [True, True, True, True]),  # 5 + 3 + 1 would leave one that shares with nobody
        ([1, 1, 1, 1], 0.5, [True, True, False, False]),
        ([0, 0, 0], 0.5, [True, True, True]),
    ],
)
def test_the_fewest_layers_that_make_up_the_share_keep_their_own(importance, share, expected):
    assert kept(importance, share) == expected


def drop_model() -> Any:
    """Three layers, s = 1, A = (1, 0), B = (b, 0) with b = 2, 1, 0.5."""
    model = adapted(Small(3), "lora_drop", rank=1, alpha=1, sample_steps=2, keep_share=0.7)
    for layer, b in zip(model.layers, (2.0, 1.0, 0.5), strict=True):
        put(layer.q.lora_A, [[1.0, 0.0]])
        put(layer.q.lora_B, [[b], [0.0]])
    return model


def test_lora_drop_measures_what_branches_give_and_then_shares():
    """x = (3, 5) and (1, 0): |B A x|^2 = b^2 (9 + 1): 40, 10, 2.5 of 52.5. 40 is 0.76 of it, so the first layer alone
    keeps its own; the others share a pair. With A = (0, 1), B = (0, 3) there, (1, 1) becomes (1, 4)."""
    model = drop_model()
    training = adapter_training(model, model.rlft_adapter.adapter)
    x = torch.tensor([[3.0, 5.0], [1.0, 0.0]])
    assert training.stepped(0) == {"adapter/own_layers": 3, "adapter/sharing_layers": 0}
    for layer in model.layers:
        layer.q.train()(x)
        layer.q.eval()(x)  # only looked at: not counted
    assert training.state() == {
        "decided": False,
        "sums": {"layers.0.q": 40.0, "layers.1.q": 10.0, "layers.2.q": 2.5},
    }
    told = training.stepped(1)
    assert told == pytest.approx(
        {
            "adapter/own_layers": 1, "adapter/sharing_layers": 2, "adapter/own_layers/q": 1,
            "adapter/importance/layers.0.q": 40 / 52.5, "adapter/importance/layers.1.q": 10 / 52.5,
            "adapter/importance/layers.2.q": 2.5 / 52.5,
        }
    )  # fmt: skip
    first, second, third = (layer.q for layer in model.layers)
    shared = model.lora_shared["q_2x2"]
    assert shared.lora_B.tolist() == [[0], [0]], "the shared one begins anew"
    put(shared.lora_A, [[0.0, 1.0]])
    put(shared.lora_B, [[0.0], [3.0]])
    one = torch.ones(2)
    assert first(one).tolist() == [3, 1]
    assert second(one).tolist() == third(one).tolist() == [1, 4]
    with adapter_off(model):
        assert second(one).tolist() == [1, 1]
    assert second.lora_A.tolist() == [[0, 0]]
    assert [t.tolist() for _, t in merged_weights(model)] == [[[3, 0], [0, 1]], [[1, 0], [0, 4]], [[1, 0], [0, 4]]]
    assert training.stepped(2) == {"adapter/own_layers": 1, "adapter/sharing_layers": 2, "adapter/own_layers/q": 1}


def test_what_nobody_uses_has_no_gradient_and_is_not_saved(tmp_path: Path):
    model = drop_model()
    own, training = own_adapter(model), adapter_training(model, model.rlft_adapter.adapter)
    assert own is not None
    assert own.unused() == {"lora_shared.q_2x2.lora_A", "lora_shared.q_2x2.lora_B"}
    for layer in model.layers:
        layer.q.train()(torch.ones(2))
    training.stepped(1)
    dropped = {f"layers.{i}.q.{name}" for i in (1, 2) for name in ("lora_A", "lora_B")}
    assert own.unused() == dropped
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # as DeepSpeed does
    training.gradient_is_there()
    assert {n for n, p in model.named_parameters() if p.grad is None} == dropped
    write_own(own, {n: p for n, p in model.named_parameters() if n in own.names}, tmp_path)
    again = adapted(Small(3), "lora_drop", rank=1, alpha=1, sample_steps=2, keep_share=0.7)
    read_own(again, tmp_path)
    assert again.layers[1].q.shares and not again.layers[0].q.shares
    assert torch.equal(again.layers[0].q.lora_B, model.layers[0].q.lora_B)


def test_lora_drop_needs_layers_that_can_share():
    with pytest.raises(UserError, match=r"no two of those that model\.adapter\.target_modules names do: layers\.0\.q"):
        adapted(Small(1), "lora_drop")


# ---- lora_experts ----


def experts_model() -> Any:
    """One input and output, W = 1, two experts of rank 1 with A = 1 and 3, B = 1 and 2, s = 1. The gate gives task a
    softmax(ln 3, 0) = (3/4, 1/4), task b softmax(0, 0) = (1/2, 1/2)."""
    keys = {"rank": 2, "alpha": 2, "num_experts": 2, "gate_size": 1, "tasks": ["a", "b"]}
    model = adapted(Small(1, size=1), "lora_experts", **keys)
    layer = model.layers[0].q
    put(layer.lora_A, [[1.0], [3.0]])
    put(layer.lora_B, [[1.0, 2.0]])
    put(model.lora_gate.embedding, [[math.log(3)], [0.0]])
    put(model.lora_gate.weight, [[1.0], [0.0]])
    return model


def test_experts_are_mixed_by_task_token_by_token():
    """At x = 2 expert 1 gives 1 * 1 * 2 = 2 and expert 2 gives 2 * 3 * 2 = 12. Task a: 2 + 3/4 * 2 + 1/4 * 12 = 6.5;
    task b: 2 + 1 + 6 = 9. A row of three tokens may be of both."""
    model = experts_model()
    own, layer = own_adapter(model), model.layers[0].q
    assert own is not None
    own.use_sources(("b", "a"), torch.tensor([1, 0, 1]))
    torch.testing.assert_close(layer(torch.full((3, 1), 2.0)), torch.tensor([[6.5], [9.0], [6.5]]))
    with adapter_off(model):
        assert layer(torch.full((1,), 2.0)).item() == 2
    with pytest.raises(UserError, match=r"rows of source 'c', but model\.adapter\.tasks knows a, b"):
        own.use_sources(("a", "c"), torch.tensor([0, 1]))


def test_a_pack_that_mixes_tasks_says_what_each_row_says_alone(tiny_folder):
    """Rows of both tasks, some of which share a prompt; and the task makes a difference."""
    keys = {"rank": 4, "num_experts": 2, "gate_size": 3, "tasks": ["a", "b"]}
    model = adapted(AutoModelForCausalLM.from_pretrained(tiny_folder).eval(), "lora_experts", **keys)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.3)
    own = own_adapter(model)
    assert own is not None
    groups = [
        named(make_group([5, 6, 7], [[8, 9], [10], [11, 12, 13]]), "b"),
        named(make_group([20], [[21, 22]]), "a"),
        named(make_group([5, 6], [[7, 8], [9, 10]]), "a"),
    ]

    def alone(source: str | None = None) -> torch.Tensor:
        scores = []
        for group in groups:
            own.use_sources((source or group.prompt.source,), torch.zeros(1, 1, dtype=torch.int64))
            scores += [plain_logprobs(model, sample) for sample in group.samples]
        return torch.cat(scores)

    with torch.no_grad():
        expected, of_b = alone(), alone("b")
        found = Policy(model, chunk=4)(make_pack(groups), 1.0).logprobs
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert (found - of_b).abs().max() > 1e-2


# ---- files ----


def test_files_name_their_kind_and_refuse_others(tmp_path: Path):
    model = experts_model()
    own = own_adapter(model)
    assert own is not None
    write_own(own, {n: p for n, p in model.named_parameters() if n in own.names}, tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["rlft_type"] == "lora_experts" and settings["tasks"] == ["a", "b"]
    assert settings["base_model_name_or_path"] == "small" and "peft_type" not in settings
    assert is_own(str(tmp_path)) and not is_own(str(tmp_path.parent))
    with pytest.raises(UserError, match=r"of another kind: lora_experts; model\.adapter\.type is delta_lora"):
        read_own(adapted(Small(1, size=1), "delta_lora"), tmp_path)
    keys = {"num_experts": 2, "gate_size": 1, "tasks": ["a", "b"]}
    with pytest.raises(UserError, match=r"tensors have no place of their size in this model \(the first: layers\.0"):
        read_own(adapted(Small(1, size=1), "lora_experts", rank=4, **keys), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no adapter that can be read"):
        read_own(model, tmp_path)
