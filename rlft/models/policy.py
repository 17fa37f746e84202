"""A causal language model as the learner and the scorers use it: a pack of tokens in, a log-prob per target out.

Knows nothing about losses, rewards or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlft.batch import Pack
from rlft.errors import UserError
from rlft.models.adapters.attach import adapter_off
from rlft.models.adapters.own import own_adapter
from rlft.models.adapters.virtual import ahead_of
from rlft.models.attention import ATTENTION, Ahead, PackedLayout, attend
from rlft.models.logprobs import log_softmax, token_logprobs


class TokenScores(NamedTuple):
    """What the policy says of each target of a pack."""

    logprobs: Tensor  # f32 [M]
    entropy: Tensor  # f32 [M], with gradient only where the policy was made so
    at_teacher: Tensor | None = None  # f32 [M, K], log-probs of the tokens of a pack's teacher_top


def use_packed_attention(model: nn.Module) -> None:
    """Switch a transformers model to rlft's attention, or say why that cannot be."""
    from transformers import AttentionInterface

    config: Any = model.config
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds or not getattr(model, "_supports_attention_backend", False):
        what = f"layers of type {', '.join(sorted(kinds))}" if kinds else "attention of its own"
        raise UserError(
            f"model.path: {type(model).__name__} has {what}, which packed training cannot do: "
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

    def __init__(self, lm: Any, chunk: int, entropy_gradient: bool) -> None:
        super().__init__()
        self._entropy_gradient = entropy_gradient
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

    def forward(
        self, hidden: Tensor, targets: Tensor, temperature: float, also: Tensor | None, also_temperature: float | None
    ) -> tuple[Tensor, ...]:
        """See token_logprobs."""
        chunk, gradient = self._chunk, self._entropy_gradient
        return token_logprobs(self.logits, hidden, targets, temperature, chunk, also, gradient, also_temperature)


class EmbeddingNoise:
    """Uniform noise on the embeddings of tokens, of at most alpha / sqrt(L * d) for a sequence of L tokens and width d
    (NEFTune, Jain et al. 2023, arXiv:2310.05914, algorithm 1). Works while `lengths` is set."""

    def __init__(self, embeddings: Any, alpha: float) -> None:
        self._alpha = alpha
        self.lengths: Tensor | None = None  # int64 [N], of the sequence that each token of the next pass is part of
        embeddings.register_forward_hook(self._add)

    def _add(self, module: Any, args: Any, output: Tensor) -> Tensor:
        if self.lengths is None:
            return output
        scale = self._alpha / torch.sqrt(self.lengths * output.shape[-1]).to(output.dtype)
        return output + (2 * torch.rand_like(output) - 1) * scale[None, :, None]


class Policy(nn.Module):
    """Wraps a transformers causal language model (with or without an adapter) for packs."""

    def __init__(self, model: nn.Module, chunk: int, entropy_gradient: bool = False, noise: float = 0.0) -> None:
        """`chunk`: targets whose logits are made at a time. `noise`: of the embeddings in training (EmbeddingNoise)."""
        super().__init__()
        self.model = model
        lm: Any = causal_lm(model)
        self._noise = EmbeddingNoise(lm.get_input_embeddings(), noise) if noise else None
        plain = lm.config._attn_implementation
        use_packed_attention(lm)
        self._scores = _Scores(lm, chunk, entropy_gradient)
        own = own_adapter(model)
        sourceless = adapter_off(model) if own is not None and own.by_source else nullcontext()
        if plain != ATTENTION:
            with sourceless:
                check_packed(
                    lm, plain,
                    lambda ids, positions, layout: self.logits(self.packed(ids, layout.behind(self.ahead()))),
                    lambda ids: model(input_ids=ids[None], use_cache=False).logits[0, -len(ids) :],
                )  # fmt: skip

    def hidden(self, input_ids: Tensor, position_ids: Tensor, layout: Any) -> Tensor:
        """Last hidden states [B, N, hidden] of tokens [B, N]."""
        lm: Any = causal_lm(self.model)
        return lm.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, layout=layout
        ).last_hidden_state

    def use_sources(self, told: Callable[[], tuple[Sequence[str], Any]]) -> None:
        """Before a pass: `told` gives sources and, for each of its tokens, the place of its source among them; asked
        only where the adapter wants to know."""
        own = own_adapter(self.model)
        if own is not None and own.by_source:
            sources, source_of = told()
            own.use_sources(tuple(sources), torch.as_tensor(source_of, device=next(self.model.parameters()).device))

    def ahead(self) -> Ahead | None:
        """What the adapter puts before every trunk, if it does, for one pass."""
        return ahead_of(self.model)

    def packed(self, input_ids: Tensor, layout: PackedLayout) -> Tensor:
        """Last hidden states [N, hidden] of the tokens of a pack, [N]."""
        if layout.ahead is None or layout.ahead.embeddings is None:
            return self.hidden(input_ids[None], layout.position_ids()[None], layout)[0]
        lm: Any = causal_lm(self.model)
        embedded = lm.get_input_embeddings()(input_ids[None])[0]
        source, places = layout.fed()
        fed = torch.cat([layout.ahead.embeddings.to(embedded.dtype), embedded]).index_select(0, source)
        hidden = lm.base_model(
            inputs_embeds=fed[None], position_ids=layout.position_ids()[None], use_cache=False, layout=layout
        ).last_hidden_state
        return hidden[0].index_select(0, places)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states."""
        return self._scores.logits(hidden)

    def forward(self, pack: Pack, temperature: float) -> TokenScores:
        """Score every target of a pack."""
        also, there = (None, None) if pack.teacher_top is None else (pack.teacher_top.ids, pack.teacher_top.temperature)
        if self._noise is not None:
            self._noise.lengths = pack.layout.sequence_lengths() if self.training else None
        return TokenScores(*self._scores(self.predicting(pack), pack.targets, temperature, also, there))

    def predicting(self, pack: Pack) -> Tensor:
        """The hidden state that predicts each target, [M, hidden]."""
        self.use_sources(lambda: (pack.sources, pack.fed_for[None]))
        hidden = self.packed(pack.input_ids, pack.layout.behind(self.ahead()))
        return hidden.index_select(0, pack.predict_from)

    def top_tokens(self, pack: Pack, temperature: float, count: int, width: int) -> tuple[Tensor, Tensor]:
        """Ids int64 and log-probs f32 of the likeliest tokens in each target's place, [M, count] both; of the first
        `width` tokens (a model may have rows behind its vocabulary), and of fewer than `count` if there are no more."""
        pieces = []
        for hidden in self.predicting(pack).split(self._scores._chunk):
            logits = self.logits(hidden)[:, :width]
            pieces.append(log_softmax(logits, temperature).topk(min(count, logits.shape[-1]), -1))
        return torch.cat([p.indices for p in pieces]), torch.cat([p.values for p in pieces])


@torch.no_grad()
def check_packed(
    model: Any, plain: str, packed: Callable[[Tensor, Tensor, Any], Tensor], alone: Callable[[Tensor], Tensor]
) -> None:
    """Compare what `packed` (of tokens, positions and layout) gives for a small pack with what `alone` gives for
    separate sequences, where the model has its own attention `plain`; [N, ...] both. Models whose code does something
    of its own with positions, masks or logits would otherwise be trained silently wrong."""
    device, vocab = model.device, model.config.get_text_config().vocab_size
    tokens = torch.arange(1, 13, device=device) * 7919 % vocab
    trunk, *branches = tokens.split([5, 3, 4])
    layout = PackedLayout([5], [3, 4], [0, 0], device)
    name = type(model).__name__
    try:
        found = packed(tokens, layout.position_ids(), layout)
    except ValueError as error:
        raise UserError(f"model.path: {name} cannot be trained in packs: {error}") from error
    model.set_attn_implementation(plain)
    try:
        whole = [alone(torch.cat([trunk, branch])) for branch in branches]
    finally:
        model.set_attn_implementation(ATTENTION)
    expected = torch.cat([whole[0][:5], whole[0][5:], whole[1][5:]]).float()
    if not bool(torch.isfinite(expected).all()):
        raise UserError(
            f"model.path: {name} gives numbers that are not finite: its weights are damaged, or too large for "
            f"{found.dtype}"
        )
    difference = float((found.float() - expected).norm() / expected.norm().clamp(min=1e-12))
    limit = 1e-3 if found.dtype == torch.float32 else 0.05
    if not difference <= limit:
        raise UserError(
            f"model.path: {name} gives other numbers in a pack than alone (relative difference {difference:.2g}, "
            f"allowed {limit:g}), so it cannot be trained in packs: its code treats positions or masks in its own way"
        )
