"""Rows of tokens decoded side by side by one model: what is cached of them, and what comes next.

Each prompt is run once for its whole group. Rows that are finished leave the batch. When the model's weights have
changed, what is cached is thrown away and the rows that go on are run again as a whole. Knows nothing about weight
versions, tokenizers, threads or Ray. Shape letters: B rows of the batch, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlft.models.attention import DecodeLayout, PrefillLayout
from rlft.models.policy import Policy
from rlft.models.sampling import draw, uniforms
from rlft.samples import FinishReason, SamplingParams

_ROOM = 64  # first room for new tokens per row; grows by half each time it is used up
_ONE_THREAD_FLOPS = 1e8  # a matrix product of so many operations takes about a millisecond on one core
_SHRINK = 0.75  # rows are copied together when this part of them or less is still decoding
_AT_ONCE = 1 << 14  # tokens of rows run again at once: enough for any device, and what a pass needs stays small


@dataclass
class Row:
    """A sample while it is decoded."""

    place: int  # of its prompt
    seed: int
    prompt: np.ndarray  # int32 [P]
    source: str = ""  # of its prompt
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None  # a row that has one is drawn no further


class Decoding:
    """Draws the tokens of some rows, one of each row at a time."""

    def __init__(
        self, policy: Policy, rows: Sequence[Row], params: SamplingParams, end: Iterable[int], device: torch.device
    ) -> None:
        """`rows`: `params.num_samples` of each prompt, side by side, at their beginning. `end`: tokens that may not
        come before `params.min_new_tokens`."""
        self._policy, self._rows, self._params, self._device = policy, rows, params, device
        self._banned = torch.tensor(sorted(end), dtype=torch.int64, device=device)
        linear = [m for m in policy.modules() if isinstance(m, torch.nn.Linear)]
        self._work_per_row = 2 * max(m.weight.numel() for m in linear)
        self._weights: int | None = None  # those that made what is cached
        self._layout: DecodeLayout | None = None  # the cache
        self._at = 0  # number of tokens that every row has
        # One entry per row of the batch. Finished rows stay until the batch shrinks.
        self._live = np.arange(len(rows))  # place in `rows`
        self._seeds = np.array([row.seed for row in rows], dtype=np.uint64)
        self._tokens = torch.zeros(len(rows), dtype=torch.int64, device=device)  # the last ones
        self._random = torch.zeros(len(rows), 0, dtype=torch.float64, device=device)

    @torch.inference_mode()
    def step(self, weights: int) -> list[Row]:
        """Draw the next token of every row that goes on; returns these rows. `weights` is a number that changes when
        the model's weights do: then every token's log-prob is still that of the weights that drew it."""
        active = np.flatnonzero([not self._rows[i].finish_reason for i in self._live.tolist()])
        if weights != self._weights:
            self._layout = None  # first of all, to make room for its successor
        if self._layout is None or len(active) <= _SHRINK * len(self._live):
            self._select(active)
        logits = self._whole() if self._layout is None else self._next(self._layout)
        self._weights = weights
        column = self._at % _ROOM
        if column == 0:
            self._random = torch.from_numpy(uniforms(self._seeds, self._at, _ROOM)).to(self._device)
        ban = self._banned if self._at < self._params.min_new_tokens and len(self._banned) else None
        self._tokens, logprobs = draw(logits, self._random[:, column], self._params.temperature, ban)
        self._at += 1
        return self._append(self._tokens.tolist(), logprobs.tolist())

    def _append(self, tokens: list[int], logprobs: list[float]) -> list[Row]:
        drawn = []
        for i, token, logprob in zip(self._live.tolist(), tokens, logprobs, strict=True):
            row = self._rows[i]
            if not row.finish_reason:
                row.tokens.append(token)
                row.logprobs.append(logprob)
                drawn.append(row)
        return drawn

    def _select(self, active: np.ndarray) -> None:
        """Go on with these rows of the batch only."""
        if len(active) == len(self._live):
            return
        keep = torch.from_numpy(active).to(self._device)
        if self._layout is not None:
            self._layout.select(keep)
        self._tokens, self._random = self._tokens[keep], self._random[keep]
        self._seeds, self._live = self._seeds[active], self._live[active]

    def _next(self, layout: DecodeLayout) -> Tensor:
        """Run the last token of every row; logits [B, V]."""
        live = self._live.tolist()
        self._policy.use_sources(lambda: ([self._rows[i].source for i in live], np.arange(len(live))[:, None]))
        with _threads(len(self._tokens) * self._work_per_row, self._device):
            hidden = self._policy.hidden(self._tokens[:, None], layout.advance()[:, None], layout)
            return self._policy.logits(hidden[:, 0])

    def _whole(self) -> Tensor:
        """Run every row from its first token; logits [B, V], and a new cache. Rows without tokens of their own share
        their prompt's pass."""
        copies = self._params.num_samples if self._at == 0 else 1
        rows = [self._rows[i] for i in self._live[::copies].tolist()]
        sequences = [np.concatenate([row.prompt, np.array(row.tokens, dtype=row.prompt.dtype)]) for row in rows]
        sources = iter([row.source for row in rows])
        parts = _parts(sequences) if self._at else [sequences]
        passes = [self._prefill(part, [next(sources) for _ in part]) for part in parts]
        logits = torch.cat([last for last, _ in passes]).repeat_interleave(copies, 0)
        layout = PrefillLayout.joined([layout for _, layout in passes])
        self._layout = DecodeLayout(layout, copies, min(self._params.max_new_tokens - self._at, _ROOM))
        return logits

    def _prefill(self, sequences: Sequence[np.ndarray], sources: list[str]) -> tuple[Tensor, PrefillLayout]:
        """One pass over these sequences: logits [sequences, V] behind each, and what to decode from."""
        lengths = [len(s) for s in sequences]
        self._policy.use_sources(lambda: (sources, np.repeat(np.arange(len(sources)), lengths)[None]))
        layout = PrefillLayout(lengths, self._device, self._policy.ahead())
        ids = torch.from_numpy(np.concatenate(sequences)).to(self._device, torch.int64)
        last = torch.from_numpy(np.cumsum(lengths) - 1).to(self._device)
        return self._policy.logits(self._policy.packed(ids, layout)[last]), layout


def _parts(sequences: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The sequences in their order, `_AT_ONCE` tokens or a single sequence at a time."""
    parts: list[list[np.ndarray]] = [[]]
    for sequence in sequences:
        if parts[-1] and sum(map(len, parts[-1])) + len(sequence) > _AT_ONCE:
            parts.append([])
        parts[-1].append(sequence)
    return parts


@contextmanager
def _threads(work: float, device: torch.device) -> Iterator[None]:
    """One thread where the largest matrix product, of `work` operations, is too small for more to pay."""
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1 or work > _ONE_THREAD_FLOPS:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
