"""Peak memory of each role by its parts, in bytes: the worst moment of a learner's update, a generator's decoding, a
scorer's pass. Knows nothing about configurations' files or how results are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from rlft.config.model import QuantizationConfig
from rlft.config.roles import TrainedConfig
from rlft.planning.passes import ACTIVATIONS, LOGITS, Skeleton, scoring_pass, update_pass
from rlft.planning.states import ADAPTER, BUFFERS, MASTER, OPTIMIZER, WEIGHTS, Training, gathered, moments, resting
from rlft.samples import Group, Totals, count_totals

KV, SYNC = "KV cache", "sync buffers"
_VLLM_TOKENS = 8192  # max_num_batched_tokens, by default on GPUs
_FIRST_ROOM = 64  # rlft.engines.decoding._ROOM
_SHARED = 64 << 20  # rlft.engines.weights.BUCKET_BYTES


class Peak(NamedTuple):
    """The most memory that one process of a role holds at a time."""

    moment: str
    parts: Counter[str]

    @property
    def total(self) -> int:
        """Bytes."""
        return self.parts.total()


def quantized(plain: Skeleton, quantization: QuantizationConfig) -> tuple[int, int]:
    """Bytes that a quantized base saves, and those of its largest weight, which is made again for each pass.
    bitsandbytes quantizes every linear layer but the output's. `plain`: the model without an adapter."""
    model: Any = plain.model
    output = model.get_output_embeddings()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not output]
    bits = 8.0  # and a scale for each row, too few to count
    if quantization.type == "nf4":  # and a scale for each block of 64; of 8 bits, with one for each 256 of these
        bits = 4 + (8 + 32 / 256 if quantization.double else 32) / 64
    whole = [w.numel() * w.element_size() for w in weights]
    return sum(whole) - int(sum(w.numel() for w in weights) * bits / 8), max(whole, default=0)


def training_of(skeleton: Skeleton, stage: int, settings: TrainedConfig, adapter: str = "", saved: int = 0) -> Training:
    """How the skeleton's weights are trained. `adapter`: its kind. `saved`: bytes of what does not train that are not
    there."""
    ratio_of = (".lora_B.",) if adapter == "lora_plus" else ()  # a learning rate of their own: groups for themselves
    named = [(n, p) for n, p in skeleton.model.named_parameters() if p.requires_grad]
    groups = dict[tuple[bool, bool], list[int]]()
    for name, p in named:
        groups.setdefault((any(part in name for part in ratio_of), p.ndim > 1), []).append(p.numel())
    width = named[0][1].element_size()
    frozen = skeleton.num_bytes() - sum(p.numel() * p.element_size() for _, p in named)
    parts, on_gpu = tuple(map(tuple, groups.values())), settings.gpus > 0
    return Training(
        parts, frozen - saved, width, stage, settings.num_ranks, on_gpu, settings.optimizer, settings.offload, adapter
    )


def learner_peak(
    skeleton: Skeleton, training: Training, micro_batches: Sequence[Sequence[Group]], settings: TrainedConfig,
    chunk: int, with_head: bool = True, entropy_gradient: bool = False, dequantized: int = 0,
) -> Peak:  # fmt: skip
    """The worst moment of a second update, when the optimizer's state is there. `micro_batches`: of one rank.
    `dequantized`: bytes of the largest weight that is made for a pass."""
    totals = count_totals([group for groups in micro_batches for group in groups], 1)
    always = resting(training)
    first = max(micro_batches, key=lambda groups: sum(len(s.token_ids) for g in groups for s in g.samples))
    passes = [first] * min(2, len(micro_batches))  # in the second, the first's gradients are there
    live = _update(skeleton, passes, totals, settings, chunk, with_head, entropy_gradient)
    found = {"backward": always + live + Counter({"gathered weights": gathered(training), BUFFERS: dequantized})}
    found |= {moment: always + parts for moment, parts in moments(training).items()}
    return max((Peak(moment, _positive(parts)) for moment, parts in found.items()), key=lambda peak: peak.total)


def _update(
    skeleton: Skeleton, passes: Sequence[Sequence[Group]], totals: Totals, settings: TrainedConfig, chunk: int,
    with_head: bool, entropy_gradient: bool,
) -> Counter[str]:  # fmt: skip
    checkpointing = settings.gradient_checkpointing
    return update_pass(skeleton, passes, totals, checkpointing, chunk, with_head, entropy_gradient).at_peak


def scorer_peak(skeleton: Skeleton, groups: Sequence[Group], chunk: int) -> Peak:
    """A pass of a model that does not train."""
    live = scoring_pass(skeleton, groups, chunk)
    return Peak("forward", _positive(Counter({WEIGHTS: skeleton.num_bytes()}) + live.at_peak))


def generator_peak(
    skeleton: Skeleton, prompts: int, samples: int, prompt: int, completion: int, on_gpu: bool = False
) -> Peak:
    """The embedded generator (transformers) with so many prompts side by side: the cache's last growth, when the old
    and the new one are both there, or the end. Room that nothing was written to takes no memory but on GPUs."""
    text, rows = skeleton.config.get_text_config(), prompts * samples
    width = next(skeleton.model.parameters()).element_size()
    column = rows * cache_per_token(text, width)
    fed = prompt + completion - 1  # the last token is drawn and not fed
    have, growing = prompt + min(completion, _FIRST_ROOM), 0
    while have < fed:
        room = have + have // 2 + 1
        growing, have = have + (room if on_gpu else have), room
    logits = rows * text.vocab_size * (width + (4 if width < 4 else 0) + 4 + 8)  # them, log-probs, and sums in float64
    always = Counter({WEIGHTS: skeleton.num_bytes()})
    ending = always + Counter({KV: column * (have if on_gpu else fed), LOGITS: logits})
    found = (Peak("growing cache", always + Counter({KV: column * growing})), Peak("decoding", ending))
    return max(found, key=lambda peak: peak.total)


def vllm_peak(skeleton: Skeleton, parallel: int, rows: int, samples: int, prompt: int, completion: int) -> Peak:
    """One of vLLM's `parallel` workers: its share of the weights, a cache for so many rows (those of a group share
    their prompt), what a pass over its 8192 tokens at once holds, and the logits of the rows."""
    text = skeleton.config.get_text_config()
    width = next(skeleton.model.parameters()).element_size()
    cache = cache_per_token(text, width) * (completion * rows + prompt * -(-rows // samples))
    through = _VLLM_TOKENS * width * (2 * text.hidden_size * parallel + 3 * text.intermediate_size)
    logits = 2 * 4 * rows * text.vocab_size * parallel
    parts = {WEIGHTS: skeleton.num_bytes(), KV: cache, ACTIVATIONS: through, LOGITS: logits}
    return Peak("decoding", Counter({name: size // parallel for name, size in parts.items()}))


def publishing_peak(peak: Peak, waiting: int) -> Peak:
    """A learner between updates, with so many bytes that wait to be sent."""
    kept = {name: peak.parts[name] for name in (WEIGHTS, MASTER, OPTIMIZER, ADAPTER)}
    return Peak("publishing", _positive(Counter(kept | {SYNC: waiting})))


def cache_per_token(text: object, width: int) -> int:
    """Bytes of the keys and values of one token. `text`: transformers' configuration."""
    heads: int = getattr(text, "num_key_value_heads", None) or text.num_attention_heads  # type: ignore[attr-defined]
    size: int = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads  # type: ignore[attr-defined]
    layers: int = text.num_hidden_layers  # type: ignore[attr-defined]
    return 2 * layers * heads * size * width


def sync_buffers(skeleton: Skeleton, transport: str) -> int:
    """Bytes of what is on its way to the generators, at the first time: everything in memory, two buckets of a
    broadcast, nothing where it is mapped."""
    if transport == "ipc":
        return 0
    return 2 * _SHARED if transport == "collective" else skeleton.num_bytes()


def _positive(parts: Counter[str]) -> Counter[str]:
    return Counter({name: size for name, size in parts.items() if size > 0})
