"""What one step of each optimizer is, which parameters are in which group, and what moves off the GPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from rlft.config.optimizers import OPTIMIZERS, LayerRate
from rlft.config.roles import LearnerConfig
from rlft.engines import activations
from rlft.engines.optimizers import BUILDERS, Lion, layer_rates, make_groups, matched_rates
from rlft.errors import UserError

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
LEAVE_OUT = {"cpu_adam"}  # DeepSpeed's, and compiled: tests/engines/test_optimizers.py


class Small(nn.Module):
    """Parameters named as in a language model."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(size, size)
        self.layers = nn.ModuleList([nn.Linear(size, size), nn.Linear(size, size)])
        self.head = nn.Linear(size, size, bias=False)


def settings(name: str, **more: Any) -> LearnerConfig:
    return LearnerConfig.model_validate({"optimizer": name, "lr": 0.1, "weight_decay": 0.1} | more)


def filled(value: float, size: int = 2) -> Small:
    module = Small(size)
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(value)
    return module


def step_with(module: nn.Module, optimizer: torch.optim.Optimizer, gradient: float) -> None:
    for p in module.parameters():
        p.grad = torch.full_like(p, gradient)
    optimizer.step()


def optimizer_of(module: nn.Module, learner: LearnerConfig) -> torch.optim.Optimizer:
    return BUILDERS[learner.optimizer](make_groups(module, learner, {})[0], learner)


def test_every_optimizer_has_a_builder():
    assert {*BUILDERS, *LEAVE_OUT} == {*OPTIMIZERS}


@pytest.mark.parametrize("name", ["adamw", "adamw_fused", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_two_steps_of_adamw(name):
    """lr 0.1, decay 0.1 on matrices, betas 0.9 and 0.99. Gradient 0.5: both moments corrected give 0.5 / 0.5 = 1, so
    1 -> 0.99 - 0.1 = 0.89. Gradient -1: m = 0.9 * 0.05 - 0.1 = -0.055, over 1 - 0.81; v = 0.99 * 0.0025 + 0.01 =
    0.012475, over 1 - 0.9801. Tensors below 4,096 weights have 32 bits also in 8-bit optimizers."""
    module = filled(1.0)
    optimizer = optimizer_of(module, settings(name, betas=(0.9, 0.99)))
    step_with(module, optimizer, 0.5)
    torch.testing.assert_close(module.head.weight.detach(), torch.full((2, 2), 0.89))
    torch.testing.assert_close(module.layers[0].bias.detach(), torch.full((2,), 0.9))
    step_with(module, optimizer, -1.0)
    ratio = (-0.055 / 0.19) / (0.012475 / 0.0199) ** 0.5
    torch.testing.assert_close(module.head.weight.detach(), torch.full((2, 2), 0.89 * 0.99 - 0.1 * ratio))


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_eight_bits_are_the_librarys_and_near_to_adamw(name):
    steps = []
    for kind in (name, "adamw"):
        torch.manual_seed(0)
        module = Small(64)
        optimizer = optimizer_of(module, settings(kind, weight_decay=0.0, lr=1e-3))
        before = module.head.weight.detach().clone()
        for _ in range(3):
            for p in module.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        steps.append(module.head.weight.detach() - before)
        if kind == name:
            assert optimizer.state[module.head.weight]["state1"].dtype == torch.uint8
    assert float((steps[0] - steps[1]).norm() / steps[1].norm()) < 0.05


def test_two_steps_of_lion():
    """lr 0.1, decay 0.1, betas 0.9 and 0.99. Gradient 0.5: sign 1, so 1 -> 0.99 - 0.1 = 0.89, and m = 0.005. Gradient
    -0.01: 0.9 * 0.005 - 0.001 > 0, so the sign is still 1: 0.89 -> 0.8811 - 0.1. m = 0.00495 - 0.0001."""
    module = filled(1.0)
    optimizer = optimizer_of(module, settings("lion"))
    step_with(module, optimizer, 0.5)
    torch.testing.assert_close(module.head.weight.detach(), torch.full((2, 2), 0.89))
    step_with(module, optimizer, -0.01)
    torch.testing.assert_close(module.head.weight.detach(), torch.full((2, 2), 0.7811))
    torch.testing.assert_close(optimizer.state[module.head.weight]["momentum"], torch.full((2, 2), 0.00485))
    assert not [p for p in module.parameters() if len(optimizer.state[p]) != 1], "one number a weight"


def test_lion_is_that_of_bitsandbytes():
    torch.manual_seed(0)
    start, gradients = torch.randn(8, 8), torch.randn(5, 8, 8)
    found = []
    for kind in (Lion, bitsandbytes.optim.Lion):
        p = nn.Parameter(start.clone())
        optimizer = kind([{"params": [p], "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.99))
        for gradient in gradients:
            p.grad = gradient.clone()
            optimizer.step()
        found.append(p.detach())
    torch.testing.assert_close(found[0], found[1])


def test_a_step_of_adafactor():
    """First step: the average is g^2 itself, [[1, 4], [4, 16]], which rows and columns give back exactly; so the update
    is all ones. Weights are 2, so the step is 0.1 * 2, behind a decay of 0.1 * 0.1."""
    module = filled(2.0)
    optimizer = optimizer_of(module, settings("adafactor"))
    module.head.weight.grad = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    optimizer.step()
    torch.testing.assert_close(module.head.weight.detach(), torch.full((2, 2), 2 * 0.99 - 0.2))
    kept = [t for t in optimizer.state[module.head.weight].values() if t.numel() > 1]
    assert sum(t.numel() for t in kept) == 4, "a row and a column for a matrix"


def test_a_step_of_muon_on_matrices_in_layers_and_of_adamw_on_the_rest():
    """The gradient is 3 times the identity, whose singular values are 1 / sqrt(2) of its norm; five times through the
    polynomial 3.4445 x - 4.775 x^3 + 2.0315 x^5 they are the step, times 0.2 * sqrt(2) * lr. It is computed in
    bfloat16."""
    module = filled(1.0)
    optimizer = optimizer_of(module, settings("muon"))
    for p in module.parameters():
        p.grad = 3 * torch.eye(2) if p.ndim > 1 else torch.full_like(p, 0.5)
    optimizer.step()
    x = 0.5**0.5
    for _ in range(5):
        x = 3.4445 * x - 4.775 * x**3 + 2.0315 * x**5
    expected = 0.99 - 0.1 * 0.2 * 2**0.5 * x * torch.eye(2)
    for layer in module.layers:
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=6e-4)
        torch.testing.assert_close(layer.bias.detach(), torch.full((2,), 0.9))
    by_adamw = 0.99 - 0.1 * torch.eye(2)
    torch.testing.assert_close(module.head.weight.detach(), by_adamw)
    torch.testing.assert_close(module.embed.weight.detach(), by_adamw)
    assert [sorted(optimizer.state[p]) for p in (module.layers[0].weight, module.embed.weight)] == [
        ["momentum_buffer"],
        ["exp_avg", "exp_avg_sq", "step"],
    ]


def test_muon_goes_on_exactly_from_its_state():
    def gradients(module: nn.Module, seed: int) -> None:
        torch.manual_seed(seed)
        for p in module.parameters():
            p.grad = torch.randn_like(p)

    module = filled(1.0)
    optimizer = optimizer_of(module, settings("muon"))
    gradients(module, 0)
    optimizer.step()
    again = filled(0.0)
    other = optimizer_of(again, settings("muon"))
    again.load_state_dict(module.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, by in ((module, optimizer), (again, other)):
        gradients(each, 1)
        by.param_groups[0]["lr"] = 0.05
        by.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


# ---- groups ----


def test_groups_are_matrices_and_vectors_by_rate():
    module = Small()
    groups, rates = make_groups(module, settings("adamw"), {"head.weight": 3.0})
    found = [(len(g["params"]), g["weight_decay"], g["lr"]) for g in groups]
    assert found == [(3, 0.1, 0.1), (2, 0.0, 0.1), (1, 0.1, pytest.approx(0.3))]
    assert rates == [1.0, 1.0, 3.0]


def test_rates_multiply():
    """Embeddings are two layers below the last, that is three below the head; the task's own rate is 3."""
    learner = settings("adamw", layer_decay=0.5, lr_by_layer=[{"match": "embed.*", "lr_ratio": 10.0}])
    module = Small()
    groups, rates = make_groups(module, learner, {"head.weight": 3.0})
    by_name = {
        name: rate
        for name, p in module.named_parameters()
        for g, rate in zip(groups, rates, strict=True)
        if any(p is other for other in g["params"])
    }
    assert by_name == {
        "embed.weight": 10 * 0.125, "layers.0.weight": 0.25, "layers.0.bias": 0.25, "layers.1.weight": 0.5,
        "layers.1.bias": 0.5, "head.weight": 3.0,
    }  # fmt: skip


def test_layers_decay_from_the_top():
    names = ["model.embed", "model.layers.0.a", "model.layers.1.a", "model.norm", "head"]
    assert layer_rates(names, 0.5) == {
        "model.embed": 0.125, "model.layers.0.a": 0.25, "model.layers.1.a": 0.5, "model.norm": 1.0, "head": 1.0
    }  # fmt: skip
    assert layer_rates(names, 1.0) == {}
    opt = ["decoder.embed.weight", "decoder.final_layer_norm.weight", "decoder.layers.0.final_layer_norm.weight"]
    assert layer_rates(opt, 0.5) == dict(zip(opt, [0.25, 1, 0.5], strict=True)), "OPT names its last norm first"
    with pytest.raises(UserError, match="layer_decay: no layers with numbers among the parameters: head"):
        layer_rates(["head"], 0.5)


def test_the_first_pattern_that_matches_counts():
    names = ["model.layers.0.a.weight", "model.layers.10.a.weight", "head.weight"]
    wanted = [LayerRate(match="layers.0.*", lr_ratio=2.0), LayerRate(match="*.weight", lr_ratio=3.0)]
    assert matched_rates(names, wanted) == {names[0]: 2.0, names[1]: 3.0, names[2]: 3.0}
    assert matched_rates(names, wanted[:1]) == {names[0]: 2.0}
    with pytest.raises(UserError, match=r'lr_by_layer.0.match: "layer.0" matches no parameter that trains.*layers.0.a'):
        matched_rates(names, [LayerRate(match="layer.0", lr_ratio=2.0)])


# ---- activations ----


def test_activations_move_and_weights_stay(monkeypatch):
    moved, kept = [], []
    to_cpu = activations._to_cpu

    def seen(tensor):
        saved = to_cpu(tensor)
        if saved is tensor:
            kept.append(tensor.untyped_storage().data_ptr())
        else:
            moved.append(tuple(tensor.shape))
        return saved

    monkeypatch.setattr(activations, "_to_cpu", seen)
    module = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64))
    x = torch.randn(32, 64, requires_grad=True)
    module(x).sum().backward()
    expected = [p.grad.clone() for p in module.parameters()] + [x.grad.clone()]
    module.zero_grad()
    x.grad = None
    activations.keep_activations_on_cpu(module)
    module(x).sum().backward()
    for got, wanted in zip([p.grad for p in module.parameters()] + [x.grad], expected, strict=True):
        assert torch.equal(got, wanted)
    assert sorted(set(moved)) == [(32, 64), (32, 128)]
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    # Which are saved depends on torch's kernels for this CPU: some save the biases too.
    assert kept and set(kept) <= weights, "weights and views of them"
