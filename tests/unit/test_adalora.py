"""AdaLoRA's budget follows the steps of a run, however many updates a step has and whichever of them is applied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlft.config.adapters import AdapterConfig
from rlft.models.adapters.attach import add_adapter
from rlft.models.adapters.training import adapter_training

STEPS = 6  # of the run; ranks are decided at step 4, two thirds


def run_of(folder: Any, updates: list[int], **keys: Any) -> tuple[list[float], Any]:
    """The mean rank after each step of as many applied updates, and the model. Initial rank 3 in 14 layers, then 2."""
    adapter = AdapterConfig.model_validate({"type": "adalora", "rank": 2, "initial_rank": 3} | keys)
    model = add_adapter(AutoModelForCausalLM.from_pretrained(folder), adapter, seed=0, steps=STEPS)
    training, ranks = adapter_training(model, adapter), list[float]()
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer, data = torch.optim.Adam(own, 1e-2), torch.Generator().manual_seed(0)
    for step, number in enumerate(updates):
        rank = float("nan")
        for _ in range(number):
            ids = torch.randint(3, 13, (4, 6), generator=data)
            model(input_ids=ids, labels=ids).loss.backward()
            training.gradient_is_there()
            optimizer.step()
            optimizer.zero_grad()
            rank = training.stepped(step)["adapter/mean_rank"]
        ranks.append(rank)
    return ranks, model


@pytest.mark.parametrize("updates", [[1] * STEPS, [2] * STEPS, [4, 1, 3, 2, 5, 2]])
def test_the_budget_is_kept_from_its_step_on(tiny_folder, updates):
    ranks, model = run_of(tiny_folder, updates)
    kept = {
        name: (p != 0).flatten().tolist() for name, p in model.base_model.model.named_parameters() if ".lora_E." in name
    }
    assert ranks[3:] == [2.0] * 3, ranks
    assert kept == model.peft_config["default"].rank_pattern, "what was taken away stays away"


@pytest.mark.parametrize("updates", [[1, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 2]])
def test_a_step_whose_updates_are_skipped_is_made_up_for(tiny_folder, updates):
    ranks, _ = run_of(tiny_folder, updates)
    assert ranks[-1] == 2.0 and [r for r in ranks[4:] if r == r] == [2.0] * (2 if updates[4] else 1)


def test_decided_in_the_first_step(tiny_folder):
    assert run_of(tiny_folder, [1] * STEPS, budget_end=1)[0] == [2.0] * STEPS
