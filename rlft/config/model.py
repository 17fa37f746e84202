"""model: what is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlft.config.adapters import AdapterConfig
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


class QuantizationConfig(Section):
    """model.quantization: the base in fewer bits while an adapter trains (Dettmers et al. 2023, arXiv:2305.14314)."""

    type: Literal["nf4", "int8"] = "nf4"
    """`nf4`: 4 bits, in blocks of 64. `int8`: 8 bits, in rows. Passes compute with the dequantized weights."""
    double: bool = True
    """For nf4: quantize the blocks' scales too, which saves 0.4 bits a weight."""


class ModelConfig(Section):
    """model: what is trained. Give either `path` or `tiny`."""

    path: str | None = None
    """A Hugging Face model: a folder, or a name on the Hub."""
    tiny: TinyModel | None = None
    """Make a small model with random weights instead."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in every role. With bfloat16 the learner keeps float32 master weights."""
    adapter: AdapterConfig | None = None
    """Train an adapter instead of the full weights."""
    quantization: QuantizationConfig | None = None
    """Hold the weights that do not train in fewer bits, at the learner; needs an adapter. See docs/adapters.md."""
    chat_template: str | None = None
    """A file with a Jinja chat template, used instead of the tokenizer's own."""
