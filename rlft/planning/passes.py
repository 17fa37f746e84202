"""What a forward and backward pass of a model needs, found by running the learner's own code on the meta device.

The model is made from its configuration alone: no weight is loaded, and none exists. Knows nothing about engines.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlft.batch import Pack, make_pack
from rlft.config.adapters import AdapterConfig
from rlft.models.adapters.attach import add_adapter
from rlft.models.adapters.training import adapter_training
from rlft.models.policy import Policy, causal_lm, use_packed_attention
from rlft.planning.live import LiveBytes, fused_attention
from rlft.samples import Group, Totals

ACTIVATIONS, LOGITS, GRADIENTS = "activations", "logits", "gradients"


class Skeleton(NamedTuple):
    """A model without weights."""

    model: nn.Module
    config: Any  # transformers'
    adapter: AdapterConfig | None = None  # of which a part is in the loss

    def sizes(self, trained: bool) -> list[int]:
        """Elements of each parameter that trains, or that does not."""
        return [p.numel() for p in self.model.parameters() if p.requires_grad == trained]

    def num_bytes(self) -> int:
        """Of all parameters and buffers."""
        tensors: list[Tensor] = [*self.model.parameters(), *self.model.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors)


def skeleton(config: Any, dtype: str, adapter: AdapterConfig | None, steps: int = 0) -> Skeleton:
    """transformers' causal language model of this configuration, perhaps with an adapter around it."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lm: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        if adapter is not None:
            plain = adapter.model_copy(update={"type": "lora"}) if adapter.type == "pissa" else adapter
            lm = add_adapter(lm, plain, seed=0, steps=steps)  # pissa: a lora's shapes, without its singular values
    return Skeleton(lm, config, adapter)


def update_pass(
    skeleton: Skeleton, micro_batches: Sequence[Sequence[Group]], totals: Totals, checkpointing: bool, chunk: int,
    with_head: bool = True, entropy_gradient: bool = False,
) -> LiveBytes:  # fmt: skip
    """Forward and backward of these micro-batches, one after the other, gradients kept: the most that is alive besides
    the weights. `with_head`: log-probs are made, not only hidden states."""
    policy = _policy(skeleton, chunk, checkpointing, entropy_gradient)
    device = next(policy.parameters()).device
    live = LiveBytes(device.type)

    def is_there(parameter: Tensor) -> None:
        assert parameter.grad is not None
        live.call(parameter.grad, GRADIENTS)

    adapter = adapter_training(skeleton.model, skeleton.adapter)
    hooks = [p.register_post_accumulate_grad_hook(is_there) for p in policy.parameters() if p.requires_grad]
    with live, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for groups in micro_batches:
            live.part = ACTIVATIONS
            pack = _pack(groups, totals, device)
            hidden = policy.predicting(pack)
            live.part = LOGITS
            if with_head:
                logprobs, entropy, *_ = policy._scores(hidden, pack.targets, 1.0, None, None)
                loss = (logprobs * pack.weights).sum() + (entropy * pack.weights).sum() * float(entropy_gradient)
                del logprobs, entropy
            else:
                loss = hidden.sum()
            del hidden
            live.part = ACTIVATIONS
            penalty = adapter.penalty()
            (loss if penalty is None else loss + penalty).backward()
            del loss, penalty, pack
    for hook in hooks:
        hook.remove()
    policy.zero_grad()
    return live


@torch.no_grad()
def scoring_pass(skeleton: Skeleton, groups: Sequence[Group], chunk: int) -> LiveBytes:
    """A forward pass that nothing is learned from."""
    policy = _policy(skeleton, chunk, False, False)
    device = next(policy.parameters()).device
    live = LiveBytes(device.type)
    with live:
        live.part = ACTIVATIONS
        pack = _pack(groups, None, device)
        hidden = policy.predicting(pack)
        live.part = LOGITS
        policy._scores(hidden, pack.targets, 1.0, None, None)
    return live


def _pack(groups: Sequence[Group], totals: Totals | None, device: torch.device) -> Pack:
    pack = make_pack(groups, totals, device=device)
    pack.layout.kernel = fused_attention  # type: ignore[method-assign]
    return pack


def _policy(skeleton: Skeleton, chunk: int, checkpointing: bool, entropy_gradient: bool) -> Policy:
    model: Any = skeleton.model
    use_packed_attention(causal_lm(model))  # before Policy, which would compare numbers with the model's own attention
    model.gradient_checkpointing_disable()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return Policy(model, chunk, entropy_gradient).train()
