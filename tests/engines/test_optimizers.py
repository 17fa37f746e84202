"""Every optimizer on real DeepSpeed ranks: the same step however it is computed, exact to resume, and able to do what
rlft.config.optimizers says. What one step is, is in tests/unit/test_optimizers.py.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlft.config.optimizers import OPTIMIZERS
from rlft.config.roles import LearnerConfig
from rlft.engines.deepspeed import cpu_adam
from rlft.engines.learner import RankedLearner
from rlft.errors import UserError
from tests.engines.ranks import Ranks, largest_difference, weights_of
from tests.engines.test_deepspeed_state import train
from tests.helpers import make_config

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),  # DeepSpeed's own calls into torch
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
    pytest.mark.timeout(1800),  # the first that needs cpu_adam compiles it
]

Pool = dict[int, Ranks]
Weights = dict[str, torch.Tensor]
LR = {"lion": 1e-4, "adafactor": 1e-2}


def where(name: str) -> list[tuple[int, int]]:
    """Ranks and ZeRO stages."""
    return [(1, 0), (2, 1), (2, 2), (2, 3)] if OPTIMIZERS[name].splits else [(1, 0), (2, 0)]


EVERYWHERE = [(name, *place) for name in OPTIMIZERS for place in where(name)]
SPLIT = [name for name in OPTIMIZERS if OPTIMIZERS[name].splits]
OFFLOADED = [name for name in SPLIT if OPTIMIZERS[name].offloads]


def make(
    pool: Pool, folder: Path, name: str, num_ranks: int = 1, stage: int = 0, unchecked: Any = None, **more: Any
) -> RankedLearner:
    """eps is large where there is one, or AdamW would blow rounding errors of tiny gradients up to whole steps.
    `unchecked`: keys of the learner that have no effect without a GPU, and whose code runs all the same."""
    kind = OPTIMIZERS[name]
    if name == "cpu_adam":
        built_cpu_adam([nn.Parameter(torch.ones(1))])  # here, where nobody waits for ranks that compile
    config = make_config(
        folder,
        {
            "learner.optimizer": name, "learner.num_ranks": num_ranks, "learner.zero_stage": stage,
            "learner.lr": LR.get(name, 1e-3), "learner.eps": 1e-4 if "eps" in kind.keys else 1e-8,
            "learner.tokens_per_micro_batch": 16, "loop.mismatch_stop": 100.0,
        }
        | {key.replace("__", "."): value for key, value in more.items()},
    )  # fmt: skip
    learner = config.learner.model_copy(update=unchecked or {})
    return pool[num_ranks].learner(config.model_copy(update={"learner": learner}))


def built_cpu_adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """lr 0.1, decay 0.1, betas 0.9 and 0.99."""
    learner = LearnerConfig(optimizer="cpu_adam", lr=0.1, betas=(0.9, 0.99))
    return cpu_adam([{"params": parameters, "weight_decay": 0.1}], learner)


def test_two_steps_of_cpu_adam():
    """As in tests/unit/test_optimizers.py, test_two_steps_of_adamw, and each step exactly that of one made anew."""
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = built_cpu_adam([p])
    for gradient in (0.5, -1.0):
        state, before = copy.deepcopy(optimizer.state_dict()), p.detach().clone()
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
        if gradient == 0.5:
            torch.testing.assert_close(p.detach(), torch.full((2, 2), 0.89))
    ratio = (-0.055 / 0.19) / (0.012475 / 0.0199) ** 0.5
    torch.testing.assert_close(p.detach(), torch.full((2, 2), 0.89 * 0.99 - 0.1 * ratio))
    again = nn.Parameter(before)
    other = built_cpu_adam([again])
    other.load_state_dict(state)
    again.grad = torch.full_like(again, -1.0)
    other.step()
    assert torch.equal(again, p)


def check_resume(pool: Pool, tmp_path: Path, *args: Any, **more: Any) -> None:
    """To the last bit, also where the one that takes over has been somewhere else."""
    whole = make(pool, *args, **more)
    train(whole, range(2))
    whole.save(tmp_path)
    expected_metrics, expected = train(whole, range(2, 4)), weights_of(whole)
    again = make(pool, *args, **more)
    train(again, range(5, 6))
    again.restore(tmp_path)
    assert train(again, range(2, 4)) == expected_metrics
    assert largest_difference(weights_of(again), expected) == 0


@pytest.mark.parametrize(("name", "num_ranks", "stage"), EVERYWHERE)
def test_a_restored_optimizer_goes_on_exactly(rank_pool, wide_folder, tmp_path, name, num_ranks, stage):
    check_resume(rank_pool, tmp_path, wide_folder, name, num_ranks, stage)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", SPLIT)
def test_bfloat16_with_float32_master_weights_goes_on_exactly(rank_pool, wide_folder, tmp_path, name, stage):
    check_resume(rank_pool, tmp_path, wide_folder, name, 2, stage, model__dtype="bfloat16")


# Moved in two updates: 8 bits are rounded in blocks of 256 weights, which begin elsewhere where weights lie in one row.
TOLERANCE = {"adamw_8bit": 0.02, "paged_adamw_8bit": 0.02, "muon": 0.2}  # as a part of that; muon: see below


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_updates_in_micro_batches_and_on_every_number_of_ranks(rank_pool, wide_folder, name):
    """Muon's matrices are multiplied in bfloat16 and their small singular values blown up, so rounding shows there."""
    whole = make(rank_pool, wide_folder, name, learner__tokens_per_micro_batch=8192)
    before = weights_of(whole)
    metrics, expected = train(whole, range(2)), weights_of(whole)
    moved = largest_difference(expected, before)
    assert moved > LR.get(name, 1e-3)
    assert all((expected[n] != before[n]).any() for n in before), "every tensor trains"
    for num_ranks, stage in where(name):
        learner = make(rank_pool, wide_folder, name, num_ranks, stage)
        first, _ = train(learner, range(2))
        assert first == pytest.approx(metrics[0], rel=2e-5, abs=2e-6)
        assert largest_difference(weights_of(learner), expected) < TOLERANCE.get(name, 1e-3) * moved, (num_ranks, stage)


@pytest.mark.parametrize(
    ("stage", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "optimizer_and_weights")]
)
@pytest.mark.parametrize("name", OFFLOADED)
def test_offloaded_it_steps_and_resumes_alike(rank_pool, wide_folder, tmp_path, name, stage, offload):
    plain = make(rank_pool, wide_folder, name, 2, stage)
    metrics, expected = train(plain, range(2)), weights_of(plain)
    learner = make(rank_pool, wide_folder, name, 2, stage, unchecked={"offload": offload})
    for ours, theirs in zip(train(learner, range(2)), metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-6)
    assert largest_difference(weights_of(learner), expected) < 1e-6
    if name in ("adamw", "cpu_adam"):
        check_resume(rank_pool, tmp_path, wide_folder, name, 2, stage, unchecked={"offload": offload})


@pytest.mark.parametrize("more", [{}, {"learner__gradient_checkpointing": True}, {"model__adapter": {"rank": 4}}])
@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 3)])
def test_offloaded_activations_change_nothing(rank_pool, wide_folder, num_ranks, stage, more):
    outcomes = []
    for offload in (False, True):
        unchecked = {"offload_activations": offload}
        learner = make(rank_pool, wide_folder, "adamw", num_ranks, stage, unchecked, **more)
        outcomes.append((train(learner, range(2)), weights_of(learner)))
    assert outcomes[0][0] == outcomes[1][0]
    assert largest_difference(outcomes[0][1], outcomes[1][1]) == 0


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_rates_of_layers_names_and_adapter_multiply(rank_pool, wide_folder, num_ranks, stage):
    """The first step of AdamW is proportional to the learning rate: 0.5 for the layer (below one level above it), 3 for
    the matrices named, 4 for LoRA+'s B. B is zero before, so A has no gradient yet and only B moves."""
    adapter = {"model__adapter": {"type": "lora_plus", "rank": 4, "lr_ratio": 4.0}}
    rates = {"learner__layer_decay": 0.5, "learner__lr_by_layer": [{"match": "*.q_proj.*", "lr_ratio": 3.0}]}
    moved = []
    for more in (adapter, {"model__adapter": {"rank": 4}}, adapter | rates):
        learner = make(rank_pool, wide_folder, "adamw", num_ranks, stage, **more)
        before = weights_of(learner)
        train(learner, range(1))
        after = weights_of(learner)
        moved.append({n: after[n] - before[n] for n in before if "lora_B" in n})
    with_plus, plain, with_all = moved
    for name in plain:
        torch.testing.assert_close(with_plus[name], 4 * plain[name], rtol=1e-4, atol=1e-8)
        ratio = 4 * 0.5 * (3 if "q_proj" in name else 1)
        torch.testing.assert_close(with_all[name], ratio * plain[name], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_muon_trains_adapters(rank_pool, wide_folder, kind):
    learner = make(rank_pool, wide_folder, "muon", 2, 0, model__adapter={"type": kind, "rank": 4})
    before = weights_of(learner)
    train(learner, range(2))
    after = weights_of(learner)
    assert all((after[n] != before[n]).any() for n in learner.publish(2).trainable)


def test_nothing_for_muon_and_names_that_match_nothing(rank_pool, wide_folder):
    with pytest.raises(UserError, match=r"learner.optimizer: muon is for matrices .* What trains: .*layernorm"):
        make(rank_pool, wide_folder, "muon", model__adapter={"type": "ln_tuning"})
    rates = {"learner__lr_by_layer": [{"match": "*", "lr_ratio": 2.0}, {"match": "layer.0.*", "lr_ratio": 2.0}]}
    with pytest.raises(UserError, match=r"lr_by_layer.1.match: .layer.0.\*. matches no .*model.layers.0.self_attn"):
        make(rank_pool, wide_folder, "adamw", **rates)
