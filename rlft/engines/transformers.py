"""The embedded generator: Hugging Face transformers, decoding many samples side by side.

Threads may draw, score and load at the same time: they take turns, and a turn is one token of every row of one call, or
one load. Knows nothing about Ray, rewards or learners; speaks `rlft.roles.Generator`. How rows are decoded is in
`rlft.engines.decoding`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from rlft.config.model import ModelConfig
from rlft.data.tokenizer import end_tokens
from rlft.engines.decoding import Decoding, Row
from rlft.engines.transport import Channel, ChannelSeat, arriving
from rlft.engines.turns import Turns
from rlft.engines.weights import WeightUpdate, load_weights
from rlft.errors import WeightSyncError
from rlft.models.adapters.attach import own_names
from rlft.models.adapters.own import own_adapter
from rlft.models.load import load_model
from rlft.models.policy import Policy
from rlft.samples import FinishReason, Group, Prompt, Sample, SamplingParams


class TransformersGenerator:
    """See rlft.roles.Generator. May be used by several threads at once; each iterator that `generate` returns by one at
    a time."""

    def __init__(
        self, model: ModelConfig, tokenizer: Any, max_concurrent: int, device: str = "cpu", name: str = "generator"
    ) -> None:
        """`name` stands in error messages. `max_concurrent`: samples of one call decoded side by side."""
        self._name = name
        self._tokenizer = tokenizer
        self._device = torch.device(device)
        self._max_concurrent = max_concurrent
        held = model.model_copy(update={"quantization": None})  # its weights come dequantized, and are read back
        self.policy = Policy(load_model(held, device), chunk=2048).eval()
        self._lm = self.policy.model
        self._parameters = dict(self._lm.named_parameters())
        self._trainable = own_names(self._lm)
        self._end = end_tokens(str(model.path), tokenizer)
        self._turns = Turns()  # whoever uses or changes the model or what follows holds the turn
        self.version: int | None = None  # None: not provably on any version, or a load is under way
        self._channel: Channel | None = None
        self._num_loads = 0  # begun ones; tells a call that the weights are no longer those that it has cached from
        self._frozen_verified = len(self._trainable) == len(self._parameters)  # the weights that updates leave out

    def num_receivers(self) -> int:
        """See rlft.engines.build.Engine."""
        return 1

    def join(self, seat: ChannelSeat) -> None:
        """See rlft.engines.build.Engine."""
        self._channel = Channel(seat, self._device)

    def load(self, update: WeightUpdate) -> bool:
        """See rlft.roles.Generator. Until the last tensor is verified the generator is on no version."""
        with self._turns:
            self.version = None
            self._num_loads += 1
            if not (update.complete or self._frozen_verified):
                raise WeightSyncError(
                    f"{self._name}: weight version {update.version} brings only what trains, but the other weights "
                    "here were never compared with the learner's"
                )
            expected = list(self._parameters) if update.complete else self._trainable
            tensors = arriving(update, self._channel, self._device)
            load_weights(update, tensors, self._parameters, expected, self._name)
            own = own_adapter(self._lm)
            if own is not None:
                own.loaded()
            self.version, self._frozen_verified = update.version, True
        return True

    def probe(self, prompt: Prompt, seed: int, params: SamplingParams) -> dict[str, Group]:
        """See rlft.roles.Generator."""
        ((_, group),) = self.generate([prompt], [[seed]], params, self.version or 0)
        return {self._name: group}

    def sleep(self) -> None:
        """See rlft.roles.Generator. This engine keeps nothing but its weights, and keeps those."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Nothing to stop: no processes of its own."""

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int
    ) -> Iterator[tuple[int, Group]]:
        """See rlft.roles.Generator. Begins at the first `next`, and draws only while the consumer waits."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
        per_wave = max(1, self._max_concurrent // params.num_samples)
        for start in range(0, len(order), per_wave):
            yield from self._wave(prompts, seeds, params, version, order[start : start + per_wave])

    def _wave(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], params: SamplingParams, version: int,
        places: Sequence[int],
    ) -> Iterator[tuple[int, Group]]:  # fmt: skip
        numbers = range(params.num_samples)
        rows = [Row(i, seeds[i][j], prompts[i].token_ids, prompts[i].source) for i in places for j in numbers]
        end = self._end.union(params.stop_token_ids)
        decoding = Decoding(self.policy, rows, params, end, self._device)
        waiting = dict.fromkeys(places, params.num_samples)  # rows that are not finished
        versions: list[int] = []  # of the weights that drew the rows' first, second, ... token
        while any(waiting.values()):
            with self._turns:  # never held while yielding: a consumer may be slow, or never come back
                versions.append(self._verified_version(version))
                drawn = decoding.step(self._num_loads)
            for row in drawn:
                row.finish_reason = self._finish(row, params)
                if not row.finish_reason:
                    continue
                waiting[row.place] -= 1
                if waiting[row.place] == 0:
                    group = self._group(prompts[row.place], [r for r in rows if r.place == row.place], versions)
                    if self.version is None:  # a load is under way or has failed: once it is over we know
                        with self._turns:
                            self._verified_version(version)
                    yield row.place, group

    def _verified_version(self, at_least: int) -> int:
        """That of the weights; asked during a turn, since no load is under way then."""
        if self.version is None or self.version < at_least:
            raise WeightSyncError(
                f"{self._name} was asked for samples of at least weight version {at_least} but is on "
                f"{'no verified version' if self.version is None else f'version {self.version}'}"
            )
        return self.version

    def _finish(self, row: Row, params: SamplingParams) -> FinishReason | None:
        """None for a row that goes on."""
        if (row.tokens[-1] in self._end or row.tokens[-1] in params.stop_token_ids) and not params.ignore_eos:
            return "stop"
        if params.stop:
            tail = self._tokenizer.decode(row.tokens[-64:], skip_special_tokens=False)
            if any(stop in tail for stop in params.stop):
                return "stop"
        return "length" if len(row.tokens) >= params.max_new_tokens else None

    def _group(self, prompt: Prompt, rows: list[Row], versions: list[int]) -> Group:
        texts = self._tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return Group(prompt, tuple(_sample(row, text, versions) for row, text in zip(rows, texts, strict=True)))


def _sample(row: Row, text: str, versions: list[int]) -> Sample:
    start, length = len(row.prompt), len(row.prompt) + len(row.tokens)
    logprobs = np.zeros(length, dtype=np.float32)
    logprobs[start:] = row.logprobs
    weight_versions = np.full(length, -1, dtype=np.int32)
    weight_versions[start:] = versions[: len(row.tokens)]
    assert row.finish_reason is not None
    return Sample(
        token_ids=np.concatenate([row.prompt, np.array(row.tokens, dtype=np.int32)]),
        loss_mask=np.arange(length) >= start,
        logprobs=logprobs,
        weight_versions=weight_versions,
        finish_reason=row.finish_reason,
        seed=row.seed,
        text=text,
    )
