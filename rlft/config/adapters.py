"""model.adapter: what is trained instead of the full weights, and what each kind can do.

What a kind can do is stated once, in KINDS, and each cell is held by a test (tests/engines/test_adapters.py). How a
kind is built is in rlft.models.adapters.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from rlft.config.base import Section


class AdapterConfig(Section):
    """model.adapter: train this instead of the full weights. Only what trains travels and is saved."""

    type: Literal[
        "lora", "dora", "pissa", "lora_plus", "lora_fa", "adalora", "vera", "ia3", "ln_tuning",
        "bitfit", "bottleneck", "delta_lora", "lora_drop", "lora_experts",
        "prompt", "p_tuning", "prefix", "p_tuning_v2",
    ] = "lora"  # fmt: skip
    """The kind of adapter. docs/adapters.md says what each can do."""
    rank: int = Field(default=16, ge=1)
    """Rank of each update. For adalora the average rank that is left at the end."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / rank, or with rank_stabilized by alpha / sqrt(rank)."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732), so that high ranks learn as fast as low."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input while training."""
    target_modules: str | list[str] = "all-linear"
    """Names of the linear layers that get an adapter (or ends of their paths), or "all-linear"."""
    lr_ratio: float = Field(default=16.0, ge=1)
    """For lora_plus: the learning rate of the B matrices is so many times that of the A matrices."""
    initial_rank: int | None = Field(default=None, ge=1)
    """For adalora: rank of each update at the beginning. Empty: one and a half times rank."""
    budget_start: int = Field(default=0, ge=0)
    """For adalora: after so many steps ranks begin to be taken away."""
    budget_end: int | None = Field(default=None, ge=1)
    """For adalora: step at which the average rank is `rank` and stays so. Empty: two thirds of loop.steps."""
    budget_every: int = Field(default=1, ge=1)
    """For adalora: steps between two decisions on which ranks are taken away."""
    orthogonality: float = Field(default=0.5, ge=0)
    """For adalora: weight of the penalty that keeps its factors orthogonal."""
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    """For bottleneck: behind attention and feed-forward part of each layer (houlsby), or the latter alone."""
    bottleneck_size: int = Field(default=64, ge=1)
    """For bottleneck: width between its two layers."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    """For bottleneck: between its two layers."""
    delta_start: int = Field(default=0, ge=0)
    """For delta_lora: the base weights move from this 0-based step on."""
    delta_ratio: float = Field(default=0.5, gt=0)
    """For delta_lora: the base weights move by so many times the change of the low-rank update."""
    sample_steps: int = Field(default=10, ge=2)
    """For lora_drop: steps in which it is measured what each layer's LoRA does. In the first it does nothing yet."""
    keep_share: float = Field(default=0.9, gt=0, lt=1)
    """For lora_drop: the layers that make up this share of what was measured keep a LoRA of their own."""
    num_experts: int = Field(default=8, ge=1)
    """For lora_experts: experts; each has rank / num_experts of the rank."""
    gate_size: int = Field(default=64, ge=1)
    """For lora_experts: width of the vector that stands for a task in the gate."""
    tasks: list[str] = []
    """For lora_experts: the tasks, which are names of the sources of data.mixture."""
    num_tokens: int = Field(default=16, ge=1)
    """For prompt, p_tuning, prefix and p_tuning_v2: virtual tokens before the text, counted in the model's window."""
    init_text: str | None = Field(default=None, min_length=1)
    """For prompt and prefix: a text that the virtual tokens begin as, repeated where it has fewer than num_tokens.
    Empty: a prompt begins as tokens drawn from the vocabulary, a prefix with small random numbers."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """For p_tuning: what makes the virtual tokens."""
    projection_size: int | None = Field(default=None, ge=1)
    """For p_tuning and p_tuning_v2: width of the hidden layer of what makes the virtual tokens. Empty: as wide as what
    it makes for one token in one place."""

    @field_validator("target_modules")
    @classmethod
    def _one_name_is_a_list(cls, value: str | list[str]) -> str | list[str]:
        return [value] if isinstance(value, str) and value != "all-linear" else value


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for max_lora_rank
VLLM_UNSERVED = frozenset({"lm_head", "embed_tokens"})  # layers on which it serves none


class AdapterKind(NamedTuple):
    """What a kind of adapter has and can do."""

    keys: tuple[str, ...]  # of AdapterConfig, besides type and target_modules, that mean something
    source: str
    served: Literal["adapter", "merged"] | None  # how vLLM gets it; None: it cannot
    merges: bool = True  # into weights that are then a plain model
    zero: int = 3  # highest ZeRO stage
    quantized: bool = True  # the base may be quantized
    reference: bool = True  # with the adapter off it is the model that training began from
    targeted: bool = True  # target_modules says where it is
    virtual: bool = False  # it puts num_tokens virtual tokens before the text


def _virtual(*keys: str, source: str) -> AdapterKind:
    return AdapterKind(("num_tokens", *keys), source, None, merges=False, targeted=False, virtual=True)


_LORA = ("rank", "alpha", "rank_stabilized", "dropout")
KINDS: dict[str, AdapterKind] = {
    "lora": AdapterKind(_LORA, "Hu et al. 2021, arXiv:2106.09685", "adapter"),
    "dora": AdapterKind(_LORA, "Liu et al. 2024, arXiv:2402.09353", "merged"),
    "pissa": AdapterKind(_LORA, "Meng et al. 2024, arXiv:2404.02948", "adapter", reference=False, quantized=False),
    "lora_plus": AdapterKind((*_LORA, "lr_ratio"), "Hayou et al. 2024, arXiv:2402.12354", "adapter"),
    "lora_fa": AdapterKind(_LORA, "Zhang et al. 2023, arXiv:2308.03303", "adapter"),
    "adalora": AdapterKind(
        ("rank", "alpha", "dropout", "initial_rank", "budget_start", "budget_end", "budget_every", "orthogonality"),
        "Zhang et al. 2023, arXiv:2303.10512", "merged", zero=0,
    ),
    "vera": AdapterKind(("rank", "dropout"), "Kopiczko et al. 2023, arXiv:2310.11454", "merged"),
    "ia3": AdapterKind((), "Liu et al. 2022, arXiv:2205.05638", "merged", targeted=False),
    "ln_tuning": AdapterKind((), "Zhao et al. 2023, arXiv:2312.11420", "merged", targeted=False),
    "bitfit": AdapterKind((), "Ben Zaken et al. 2021, arXiv:2106.10199", "merged", quantized=False, targeted=False),
    "bottleneck": AdapterKind(
        ("placement", "bottleneck_size", "activation"), "Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, "
        "arXiv:2005.00247", None, merges=False, quantized=False, targeted=False,
    ),
    "delta_lora": AdapterKind(
        ("rank", "alpha", "rank_stabilized", "delta_start", "delta_ratio"), "Zi et al. 2023, arXiv:2309.02411",
        "merged", zero=0, quantized=False, reference=False,
    ),
    "lora_drop": AdapterKind(
        (*_LORA, "sample_steps", "keep_share"), "Zhou et al. 2024, arXiv:2402.07721", "merged", zero=0, quantized=False,
    ),
    "lora_experts": AdapterKind(
        (*_LORA, "num_experts", "gate_size", "tasks"), "Liu et al. 2023, arXiv:2310.18339", None, merges=False,
        quantized=False,
    ),
    "prompt": _virtual("init_text", source="Lester et al. 2021, arXiv:2104.08691"),
    "p_tuning": _virtual("encoder", "projection_size", source="Liu et al. 2021, arXiv:2103.10385"),
    "prefix": _virtual("init_text", source="Li & Liang 2021, arXiv:2101.00190"),
    "p_tuning_v2": _virtual("projection_size", source="Liu et al. 2022, arXiv:2110.07602"),
}  # fmt: skip
SAVED_AS = {"p_tuning": "prompt", "p_tuning_v2": "prefix"}  # what is saved is what their encoders make


def num_virtual_tokens(adapter: AdapterConfig | None) -> int:
    """How many virtual tokens stand before every text."""
    return adapter.num_tokens if adapter is not None and KINDS[adapter.type].virtual else 0


def lora_scale(adapter: AdapterConfig) -> float:
    """What the product of LoRA's matrices is multiplied by."""
    return adapter.alpha / (adapter.rank**0.5 if adapter.rank_stabilized else adapter.rank)
