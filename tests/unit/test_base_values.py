"""The few numbers by which an adapter knows its base."""

from __future__ import annotations

import torch
from torch import nn

from rlft.models.base_values import base_values


def test_the_last_number_of_a_weight_of_more_elements_than_float32_counts() -> None:
    """2**24 + 3 is no float32 and becomes 2**24 + 4: places that were computed so lay beyond the end."""
    last = 2**24 + 3
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(last + 1, dtype=torch.bfloat16))
    with torch.no_grad():
        for place, number in ((0, 1.0), (last // 3, 2.0), (2 * last // 3, 3.0), (last, 4.0)):
            model.weight[place] = number
    assert base_values(model) == {"weight": [1.0, 2.0, 3.0, 4.0]}
