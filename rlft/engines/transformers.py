"""The embedded generator: Hugging Face transformers, decoding many samples side by side.

Each prompt is run once for its whole group. Rows that are finished leave the batch. Knows nothing about Ray, rewards or
learners; speaks `rlft.roles.Generator`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rlft.batch import make_pack, unpack
from rlft.config.model import ModelConfig
from rlft.engines.weights import WeightUpdate, load_weights
from rlft.errors import WeightSyncError
from rlft.models.attention import DecodeLayout, PrefillLayout
from rlft.models.load import load_model, trainable_names
from rlft.models.policy import Policy
from rlft.models.sampling import draw, uniforms
from rlft.samples import Group, Prompt, Sample, SamplingParams

_ROOM = 64  # first room for new tokens per row; grows by half each time it is used up
_ONE_THREAD_FLOPS = 1e8  # a matrix product of so many operations takes about a millisecond on one core
_SHRINK = 0.75  # rows are copied together when this part of them or less is still decoding


@dataclass
class _Row:
    """A sample while it is decoded."""

    place: int  # of its prompt
    index: int  # in its group
    seed: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""


class TransformersGenerator:
    """See rlft.roles.Generator."""

    def __init__(
        self, model: ModelConfig, tokenizer: Any, max_concurrent: int, device: str = "cpu", name: str = "generator"
    ) -> None:
        """`name` stands in error messages. `max_concurrent`: samples decoded side by side."""
        self._name = name
        self._tokenizer = tokenizer
        self._device = torch.device(device)
        self._max_concurrent = max_concurrent
        self.policy = Policy(load_model(model, device), chunk=2048).eval()
        self._lm = self.policy.model
        self._parameters = dict(self._lm.named_parameters())
        self._trainable = trainable_names(self._lm)
        self._end = _end_tokens(self._lm, tokenizer)
        self._work_per_row = 2 * max(m.weight.numel() for m in self._lm.modules() if isinstance(m, torch.nn.Linear))
        self.version: int | None = None  # None: not provably on any version
        self._frozen_verified = len(self._trainable) == len(self._parameters)  # the weights that updates leave out

    def load(self, update: WeightUpdate) -> None:
        """See rlft.roles.Generator. Until the last tensor is verified the generator is on no version."""
        self.version = None
        if not (update.complete or self._frozen_verified):
            raise WeightSyncError(
                f"{self._name}: weight version {update.version} brings only what trains, but the other weights here "
                "were never compared with the learner's"
            )
        expected = list(self._parameters) if update.complete else self._trainable
        load_weights(update, self._parameters, expected, self._name)
        self.version, self._frozen_verified = update.version, True

    def token_logprobs(self, group: Group, temperature: float) -> dict[str, list[np.ndarray]]:
        """See rlft.roles.Generator."""
        with torch.inference_mode():
            pack = make_pack([group], device=self._device)
            scores = self.policy(pack, temperature).logprobs.float().cpu().numpy()
        return {self._name: unpack([group], scores)[0]}

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int
    ) -> Iterator[tuple[int, Group]]:
        """See rlft.roles.Generator."""
        if self.version != version:
            raise WeightSyncError(
                f"{self._name} was asked for samples of weight version {version} but is on "
                f"{'no verified version' if self.version is None else f'version {self.version}'}"
            )
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
        per_wave = max(1, self._max_concurrent // params.num_samples)
        for start in range(0, len(order), per_wave):
            yield from self._wave(prompts, seeds, params, version, order[start : start + per_wave])

    def _wave(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int,
        places: Sequence[int],
    ) -> Iterator[tuple[int, Group]]:  # fmt: skip
        rows = [_Row(i, j, seeds[i][j]) for i in places for j in range(params.num_samples)]
        waiting = dict.fromkeys(places, params.num_samples)
        for row in self._decode([prompts[i] for i in places], rows, params):
            waiting[row.place] -= 1
            if waiting[row.place] == 0:
                group = [r for r in rows if r.place == row.place]
                yield row.place, self._group(prompts[row.place], group, version)

    @torch.inference_mode()
    def _decode(self, prompts: Sequence[Prompt], rows: list[_Row], params: SamplingParams) -> Iterator[_Row]:
        """Decode all rows; yield each when it is finished."""
        device = self._device
        logits, layout = self._prefill(prompts, params)
        seeds = np.array([row.seed for row in rows], dtype=np.uint64)
        live = np.arange(len(rows))  # row of `rows` that each row of the batch is; finished ones stay until shrunk
        done = np.zeros(len(rows), dtype=bool)
        banned = torch.tensor(sorted(self._end), device=device)
        for t in range(params.max_new_tokens):
            if t % _ROOM == 0:
                random = torch.from_numpy(uniforms(seeds, t, _ROOM)).to(device)
            ban = banned if t < params.min_new_tokens and self._end else None
            tokens, logprobs = draw(logits, random[:, t % _ROOM], params.temperature, ban)
            for i, token, logprob in zip(live.tolist(), tokens.tolist(), logprobs.tolist(), strict=True):
                row = rows[i]
                if not row.finish_reason:
                    row.tokens.append(token)
                    row.logprobs.append(logprob)
                    row.finish_reason = self._finish(row, params)
                    if row.finish_reason:
                        done[i] = True
                        yield row
            active = np.flatnonzero(~done[live])
            if len(active) == 0:
                return
            if len(active) <= _SHRINK * len(live):
                keep = torch.from_numpy(active).to(device)
                layout.select(keep)
                tokens, random, seeds, live = tokens[keep], random[keep], seeds[active], live[active]
            with self._threads(len(tokens)):
                hidden = self.policy.hidden(tokens[:, None], layout.advance()[:, None], layout)
                logits = self.policy.logits(hidden[:, 0])

    @contextmanager
    def _threads(self, rows: int) -> Iterator[None]:
        """One thread where the matrices of a decoding step are too small for more to pay."""
        before = torch.get_num_threads()
        if self._device.type != "cpu" or before == 1 or rows * self._work_per_row > _ONE_THREAD_FLOPS:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _prefill(self, prompts: Sequence[Prompt], params: SamplingParams) -> tuple[torch.Tensor, DecodeLayout]:
        """Run each prompt once; logits [B, V] for the first token of every sample, and what to decode from."""
        layout = PrefillLayout([len(p.token_ids) for p in prompts], self._device)
        ids = torch.from_numpy(np.concatenate([p.token_ids for p in prompts])).to(self._device, torch.int64)
        hidden = self.policy.hidden(ids[None], layout.position_ids()[None], layout)[0]
        last = hidden[layout.trunks.lengths.cumsum(0) - 1]
        logits = self.policy.logits(last).repeat_interleave(params.num_samples, 0)
        return logits, DecodeLayout(layout, params.num_samples, min(params.max_new_tokens, _ROOM))

    def _finish(self, row: _Row, params: SamplingParams) -> str:
        """ "stop", "length" or "" for a row that goes on."""
        if row.tokens[-1] in self._end and not params.ignore_eos:
            return "stop"
        if params.stop:
            tail = self._tokenizer.decode(row.tokens[-64:], skip_special_tokens=False)
            if any(stop in tail for stop in params.stop):
                return "stop"
        return "length" if len(row.tokens) >= params.max_new_tokens else ""

    def _group(self, prompt: Prompt, rows: list[_Row], version: int) -> Group:
        texts = self._tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return Group(prompt, tuple(_sample(prompt, row, text, version) for row, text in zip(rows, texts, strict=True)))


def _sample(prompt: Prompt, row: _Row, text: str, version: int) -> Sample:
    start, length = len(prompt.token_ids), len(prompt.token_ids) + len(row.tokens)
    mask = np.arange(length) >= start
    logprobs = np.zeros(length, dtype=np.float32)
    logprobs[start:] = row.logprobs
    return Sample(
        token_ids=np.concatenate([prompt.token_ids, np.array(row.tokens, dtype=np.int32)]),
        loss_mask=mask,
        logprobs=logprobs,
        weight_versions=np.where(mask, version, -1).astype(np.int32),
        finish_reason="stop" if row.finish_reason == "stop" else "length",
        seed=row.seed,
        text=text,
    )


def _end_tokens(lm: Any, tokenizer: Any) -> set[int]:
    """Every token that ends a completion: the tokenizer's and the generation config's."""
    end = getattr(lm.generation_config, "eos_token_id", None)
    ids = end if isinstance(end, list) else [end]
    return {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}
