"""One rank of the learner: the policy, its loss, and the ways that its weights take.

What a rank is given is already cut into micro-batches; the sums that it returns are over its own tokens. Knows nothing
about Ray, rewards or how often it is called.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlft.algorithms.sampler import MISMATCH
from rlft.algorithms.statistics import Mean, Stats
from rlft.algorithms.table import make_loss
from rlft.algorithms.users import asks_for_entropy
from rlft.batch import Pack
from rlft.config import Config
from rlft.config.derived import (
    draws,
    loss_average,
    mismatch_stop,
    off_policy_correction,
    serving,
    weight_transport,
    zero_stage,
)
from rlft.engines.deepspeed import Rendezvous, ZeroEngine, join
from rlft.engines.publishing import Published
from rlft.engines.scoring import score_micro_batches
from rlft.engines.transport import Channel, ChannelSeat, share_on_gpu
from rlft.engines.updating import RankUpdate, accumulate
from rlft.engines.weights import Places, WeightUpdate, fill_buckets, pack_weights
from rlft.models.adapters.attach import adapter_off
from rlft.models.adapters.training import adapter_training
from rlft.models.base_values import write_base
from rlft.models.load import load_model
from rlft.models.policy import Policy
from rlft.models.quantization import write_quantization
from rlft.samples import Group, Totals


class PolicyRank:
    """A rank of the learner."""

    def __init__(self, config: Config, rendezvous: Rendezvous, device: str = "cpu") -> None:
        """Load the model, join the other ranks and hand the model to DeepSpeed."""
        self._config, self._where = config, rendezvous
        self._device = torch.device(device)
        self._transport, self._channel = weight_transport(config), None
        self._loss = make_loss(config.algorithm, off_policy_correction(config))
        self._temperature = config.generator.temperature if draws(config) else 1.0
        join(rendezvous, self._device)
        torch.manual_seed(config.run.seed * 1_000_003 + rendezvous.rank)
        model: Any = load_model(config.model, device, config.run.seed, config.loop.steps)
        self._adapter = adapter_training(model, config.model.adapter)
        if config.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        self._weights = Published(model, merged=serving(config) == "merged")
        chunk, algorithm = config.learner.tokens_per_logit_chunk, config.algorithm
        with_entropy = algorithm.entropy_coef > 0 or (":" in algorithm.type and asks_for_entropy(algorithm.type))
        self._policy = Policy(model, chunk, entropy_gradient=with_entropy, noise=algorithm.neftune_alpha)
        stage = zero_stage(config.learner, config.model.dtype)
        rates = {f"model.{name}": rate for name, rate in self._adapter.rates().items()}
        self._engine = ZeroEngine(
            self._policy, config.learner, stage, config.model.dtype, rendezvous, self._device, rates
        )

    def logprobs(self, micro_batches: Sequence[Sequence[Group]]) -> list[list[list[np.ndarray]]]:
        """Log-probs of trained tokens, [micro-batch][group][sample] -> f32 [T]."""
        return self._scored(micro_batches, "logprobs")

    def reference_logprobs(self, micro_batches: Sequence[Sequence[Group]]) -> list[list[list[np.ndarray]]]:
        """The same of the model without its adapter."""
        with adapter_off(self._policy.model, partial(self._engine.whole, writing=True)):
            return self._scored(micro_batches, "logprobs")

    def entropies(self, micro_batches: Sequence[Sequence[Group]]) -> list[list[list[np.ndarray]]]:
        """Entropies of the distributions in their places, shaped alike."""
        return self._scored(micro_batches, "entropy")

    def _scored(self, micro_batches: Sequence[Sequence[Group]], what: str) -> list[list[list[np.ndarray]]]:
        self._engine.eval()
        with torch.no_grad():
            return score_micro_batches(
                lambda pack: getattr(self._engine(pack, self._temperature), what), micro_batches, self._device
            )

    def update(
        self, micro_batches: Sequence[Sequence[Group]], totals: Totals, lr: float, version: int, kl_coef: float
    ) -> RankUpdate:
        """One optimizer step, which begins with weights of this version. Every rank is given as many micro-batches as
        every other. A refused update leaves the weights as they are; it is the run's last, because its gradients stay
        in DeepSpeed."""
        average, share = loss_average(self._config.algorithm), 1 / (len(micro_batches) * self._where.num_ranks)

        def loss_of(pack: Pack) -> tuple[Tensor, Stats]:
            loss, stats = self._loss(self._engine(pack, self._temperature), pack, kl_coef)
            penalty = self._adapter.penalty()
            return (loss if penalty is None else loss + share * penalty), stats

        loss_sum, stats = accumulate(self._engine, micro_batches, totals, average, self._device, loss_of, version)
        if not self._mismatch(loss_sum, stats) <= mismatch_stop(self._config):  # also when it is NaN
            return RankUpdate(loss_sum, stats, math.nan, applied=False, refused=True)
        self._adapter.gradient_is_there()
        grad_norm, applied = self._engine.step(lr)
        told = self._adapter.stepped(version) if applied else {}  # the same on every rank
        if self._where.rank == 0:
            stats |= {name: Mean(value, 1) for name, value in told.items()}
        return RankUpdate(loss_sum, stats, grad_norm, applied)

    def _mismatch(self, loss: float, stats: Stats) -> float:
        """Mean difference of log-probs between sampler and learner over the fresh tokens of all ranks, the same number
        on each of them. 0 when there are none, and when the loss is not finite: then `step` skips the update."""
        mine = stats.get(MISMATCH, Mean(0.0, 0))
        assert isinstance(mine, Mean)
        total_loss, total, count = self._engine.sum_over_ranks([loss, mine.total, mine.count])
        return total / count if count and math.isfinite(total_loss) else 0.0

    def join(self, seat: ChannelSeat) -> None:
        """On rank 0: open the channel over which weights are broadcast, and wait for the generators there."""
        self._channel = Channel(seat, self._device)

    def publish(self, version: int, everything: bool, carried: bool) -> WeightUpdate | None:
        """The weights, on rank 0; other ranks take part in gathering and return None. To be broadcast: what `send` will
        send. On GPUs that are shared: every rank's tensors as they lie there."""
        transport = "memory" if carried else self._transport
        if transport == "ipc":
            return share_on_gpu(dict(self._tensors(everything)), version, everything, self._weights.always)
        if transport == "collective":
            return self._announced(version, everything) if self._where.rank == 0 else None
        tensors = self._tensors(everything)
        if self._where.rank == 0:
            return pack_weights(tensors, version, everything, self._weights.always)
        deque(tensors, maxlen=0)  # takes part in gathering, keeps nothing
        return None

    def send(self, everything: bool) -> None:
        """Broadcast what `publish` announced. Returns when the generators have it."""
        tensors = self._tensors(everything)
        if self._where.rank == 0:
            assert self._channel is not None
            self._channel.send(fill_buckets(tensors, self._device))
        else:
            deque(tensors, maxlen=0)

    def _tensors(self, everything: bool) -> Iterator[tuple[str, Tensor]]:
        return self._weights.tensors(self._engine, everything)

    def _announced(self, version: int, everything: bool) -> WeightUpdate:
        places = Places()
        entries = tuple(
            places.add(n, getattr(p, "ds_shape", p.shape), p.dtype) for n, p in self._weights.entries(everything)
        )
        return WeightUpdate(version, entries, tuple(places.sizes), everything, self._weights.always, "collective")

    def save(self, folder: Path) -> None:
        """Hugging Face model (or adapter) into `folder`, DeepSpeed's and random state into `folder`/learner."""
        self._engine.write_pretrained(self._policy.model, self._weights.saved_names(), folder)
        if self._where.rank == 0:
            write_quantization(self._config.model, folder)
            if self._config.model.adapter is not None:
                values: Any = self._policy.model.rlft_base_values
                write_base(values, str(self._config.model.path), folder)
        self._engine.save(folder / "learner", self._adapter.state())

    def restore(self, folder: Path) -> None:
        """Back to what `save` wrote."""
        self._adapter.restore(self._engine.restore(folder / "learner"))
