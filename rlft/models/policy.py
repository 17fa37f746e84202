"""A causal language model as the learner and the scorers use it: a pack of tokens in, a log-prob per target out.

Knows nothing about losses, rewards or engines.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlft.batch import Pack
from rlft.models.attention import ATTENTION, attend
from rlft.models.logprobs import token_logprobs


class TokenScores(NamedTuple):
    """What the policy says of each target of a pack."""

    logprobs: Tensor  # f32 [M]
    entropy: Tensor  # f32 [M], no gradient


def use_packed_attention(model: nn.Module) -> None:
    """Switch a transformers model to rlft's attention, or say why that cannot be."""
    from transformers import AttentionInterface

    config: Any = model.config
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds or not getattr(model, "_supports_attention_backend", False):
        what = f"layers of type {', '.join(sorted(kinds))}" if kinds else "attention of its own"
        raise ValueError(
            f"{type(model).__name__} has {what}, which packed training cannot do: "
            "it needs a decoder whose attention layers all go through transformers' attention interface"
        )
    AttentionInterface.register(ATTENTION, attend)
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers causal language model inside `model` (itself, or under a peft adapter)."""
    return model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator,return-value]


def logit_transform(config: Any) -> Any:
    """What some models do to their logits after the output layer, as a function."""
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None)
    divide = getattr(config, "logits_scaling", None)

    def transform(logits: Tensor) -> Tensor:
        if scale is not None:
            logits = logits * scale
        if divide is not None:
            logits = logits / divide
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return transform


class _Scores(nn.Module):
    """The output layer and all that follows it, as one module with the layer's weights as its own. ZeRO-3 collects a
    module's weights whenever it is called, on all ranks at once: a layer called once per chunk of targets would hang
    ranks that have different numbers of targets."""

    def __init__(self, lm: Any, chunk: int) -> None:
        super().__init__()
        output = lm.get_output_embeddings()
        self._transform, self._chunk = logit_transform(lm.config.get_text_config()), chunk
        self._layer = None if type(output) is nn.Linear else [output]  # under an adapter; in a list: not a child
        if self._layer is None:
            self.weight, self.bias = output.weight, output.bias

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states."""
        if self._layer is None:
            return self._transform(F.linear(hidden, self.weight, self.bias))
        return self._transform(self._layer[0](hidden))

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """See token_logprobs."""
        return token_logprobs(self.logits, hidden, targets, temperature, self._chunk)


class Policy(nn.Module):
    """Wraps a transformers causal language model (with or without an adapter) for packs."""

    def __init__(self, model: nn.Module, chunk: int) -> None:
        """`chunk`: targets whose logits are made at a time."""
        super().__init__()
        self.model = model
        lm: Any = causal_lm(model)
        use_packed_attention(lm)
        self._scores = _Scores(lm, chunk)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, layout: Any) -> Tensor:
        """Last hidden states [B, N, hidden] of tokens [B, N]."""
        lm: Any = causal_lm(self.model)
        return lm.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, layout=layout
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states."""
        return self._scores.logits(hidden)

    def forward(self, pack: Pack, temperature: float) -> TokenScores:
        """Score every target of a pack."""
        hidden = self.hidden(pack.input_ids[None], pack.position_ids[None], pack.layout)[0]
        predicting = hidden.index_select(0, pack.predict_from)
        return TokenScores(*self._scores(predicting, pack.targets, temperature))
