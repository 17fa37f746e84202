"""model: what is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlft.config.base import Section


class TinyModel(Section):
    """A small Qwen3-style model with random weights that the run makes for itself, so that nothing is downloaded."""

    vocabulary: Literal["digits", "bytes"] = "bytes"
    """`digits`: one token per character of a 64-symbol alphabet. `bytes`: one token per byte, any text works."""
    hidden_size: int = Field(default=192, ge=8)
    """Width of the model; divisible by num_heads."""
    num_layers: int = Field(default=4, ge=1)
    """Transformer layers."""
    num_heads: int = Field(default=6, ge=1)
    """Attention heads."""
    num_kv_heads: int = Field(default=2, ge=1)
    """Key/value heads; divides num_heads."""
    intermediate_size: int = Field(default=512, ge=8)
    """Width of the feed-forward layers."""
    max_length: int = Field(default=512, ge=8)
    """The model's window, prompt and completion together, in tokens."""


class LoraAdapter(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), by peft. Only the adapters train and travel."""

    type: Literal["lora"] = "lora"
    """The kind of adapter."""
    rank: int = Field(default=16, ge=1)
    """Rank of each update."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input while training."""
    target_modules: str | list[str] = "all-linear"
    """Names of the linear layers that get an adapter, or "all-linear"."""


class ModelConfig(Section):
    """model: what is trained. Give either `path` or `tiny`."""

    path: str | None = None
    """A Hugging Face model: a folder, or a name on the Hub."""
    tiny: TinyModel | None = None
    """Make a small model with random weights instead."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in every role. With bfloat16 the learner keeps float32 master weights."""
    adapter: LoraAdapter | None = None
    """Train an adapter instead of the full weights."""
    chat_template: str | None = None
    """A file with a Jinja chat template, used instead of the tokenizer's own."""
