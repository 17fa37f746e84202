"""A model that gives a number for each token: the body of a causal language model with a head of one output.

Knows nothing about losses, rewards or engines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlft.batch import Pack
from rlft.config.model import ModelConfig
from rlft.models.load import load_model
from rlft.models.policy import Policy


class ValueModel(nn.Module):
    """For packs, as Policy. The output layer of the language model does not take part."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        policy = Policy(model, chunk=2048)  # checks that the model can be fed in packs
        lm: Any = policy.model
        self.body = lm.base_model
        self.head = nn.Linear(lm.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)  # so a fresh critic expects nothing, and the first advantages are the returns
        nn.init.zeros_(self.head.bias)

    def forward(self, pack: Pack) -> Tensor:
        """What is expected in the state before each target, f32 [M]."""
        hidden = self.body(
            input_ids=pack.input_ids[None], position_ids=pack.position_ids[None], use_cache=False, layout=pack.layout
        ).last_hidden_state[0]
        return self.head(hidden.index_select(0, pack.predict_from)).squeeze(-1).float()


def load_value_model(path: str, dtype: str, device: torch.device | str, gradient_checkpointing: bool) -> ValueModel:
    """The body of the model at `path` with a head of zeros, everything trainable."""
    model: Any = load_model(ModelConfig.model_validate({"path": path, "dtype": dtype}), device)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    value = ValueModel(model)
    value.head.to(device=device, dtype=getattr(torch, dtype))
    return value
