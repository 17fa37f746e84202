"""One DeepSpeed rank of the learner: ZeRO 0 to 3, NCCL on GPUs, gloo on CPUs.

Everything about DeepSpeed is in this file. What a rank is given is already cut into micro-batches; the sums that it
returns are over its own tokens. Knows nothing about Ray, rewards or how often it is called.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlft.algorithms.statistics import Mean, Stats, joined
from rlft.algorithms.table import ALGORITHMS, MISMATCH
from rlft.batch import make_pack
from rlft.config import Config
from rlft.config.derived import mismatch_stop, off_policy_correction, weight_transport, zero_stage
from rlft.engines.scoring import EMPTY, score_micro_batches
from rlft.engines.transport import Channel, ChannelSeat, share_on_gpu
from rlft.engines.weights import BUCKET_BYTES, Places, WeightUpdate, fill_buckets, pack_weights
from rlft.models.load import load_model, trainable_names
from rlft.models.policy import Policy
from rlft.samples import Group, Totals

_TAG = "state"  # name of DeepSpeed's own folder in a checkpoint


@dataclass(frozen=True)
class Rendezvous:
    """How the ranks of one learner find each other."""

    rank: int = 0
    num_ranks: int = 1
    host: str = "127.0.0.1"
    port: int = 0
    timeout_s: float = 3600.0


@dataclass(frozen=True)
class RankUpdate:
    """What one rank says of one update."""

    loss: float  # this rank's part of the sum
    stats: Stats  # of this rank's tokens
    grad_norm: float  # global, before clipping; not finite when the update was skipped or refused
    applied: bool
    refused: bool = False  # nothing was applied because sampler and learner are too far apart


class DeepSpeedRank:
    """A rank of the learner."""

    def __init__(self, config: Config, rendezvous: Rendezvous, device: str = "cpu") -> None:
        """Load the model, join the other ranks and hand the model to DeepSpeed."""
        self._config, self._where = config, rendezvous
        self._device = torch.device(device)
        self._stage = zero_stage(config)
        self._transport, self._channel = weight_transport(config), None
        algorithm = ALGORITHMS[config.algorithm.type]
        self._loss = algorithm.make_loss(config.algorithm, off_policy_correction(config))
        self._temperature = config.generator.temperature if algorithm.on_policy else 1.0
        _join(rendezvous, self._device)
        torch.manual_seed(config.run.seed * 1_000_003 + rendezvous.rank)
        model: Any = load_model(config.model, device, config.run.seed)
        if config.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        self._trainable = trainable_names(model)
        self._policy = Policy(model, config.learner.tokens_per_logit_chunk)
        self._engine: Any = self._initialize()

    def _initialize(self) -> Any:
        import deepspeed

        learner = self._config.learner
        trained = [p for p in self._policy.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim > 1]
        plain = [p for p in trained if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": learner.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=learner.lr, betas=learner.betas, eps=learner.eps
        )
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # micro-batches are ours: see `update`
            "steps_per_print": None,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": learner.max_grad_norm if self._stage else 0.0,  # stage 0: see `_step`
            "bf16": {"enabled": self._config.model.dtype == "bfloat16"},
            "zero_optimization": {"stage": self._stage, "overlap_comm": False, "contiguous_gradients": False},
        }
        with _quiet():
            engine, *_ = deepspeed.initialize(model=self._policy, optimizer=optimizer, config=settings)
        return engine

    def logprobs(self, micro_batches: Sequence[Sequence[Group]]) -> list[list[list[np.ndarray]]]:
        """Log-probs of trained tokens, [micro-batch][group][sample] -> f32 [T]."""
        self._engine.eval()
        with torch.no_grad():
            return score_micro_batches(self._engine, micro_batches, self._temperature, self._device)

    def update(self, micro_batches: Sequence[Sequence[Group]], totals: Totals, lr: float, version: int) -> RankUpdate:
        """One optimizer step, which begins with weights of this version. Every rank is given as many micro-batches as
        every other. A refused update leaves the weights as they are; it is the run's last, because its gradients stay
        in DeepSpeed."""
        self._engine.train()
        loss_sum, parts = 0.0, list[Stats]()
        for number, groups in enumerate(micro_batches, 1):
            self._engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            average = self._config.algorithm.loss_average
            pack = make_pack(groups or [EMPTY], totals if groups else None, average, self._device, version)
            loss, stats = self._loss(self._engine(pack, self._temperature), pack)
            loss_sum += float(loss.detach())
            if not math.isfinite(loss_sum):
                loss = loss * math.nan  # reaches every gradient on every rank, so that all of them skip the step
            self._engine.backward(loss * self._where.num_ranks)  # DeepSpeed averages over ranks; the loss is a sum
            if groups:
                parts.append(stats)
        stats = joined(parts)
        if not self._mismatch(loss_sum, stats) <= mismatch_stop(self._config):  # also when it is NaN
            return RankUpdate(loss_sum, stats, math.nan, applied=False, refused=True)
        grad_norm, applied = self._step(lr)
        return RankUpdate(loss_sum, stats, grad_norm, applied)

    def _mismatch(self, loss: float, stats: Stats) -> float:
        """Mean difference of log-probs between sampler and learner over the fresh tokens of all ranks, the same number
        on each of them. 0 when there are none, and when the loss is not finite: then `_step` skips the update."""
        mine = stats.get(MISMATCH, Mean(0.0, 0))
        assert isinstance(mine, Mean)
        numbers = torch.tensor([loss, mine.total, mine.count], dtype=torch.float64, device=self._device)
        if self._where.num_ranks > 1:
            torch.distributed.all_reduce(numbers)
        total_loss, total, count = numbers.tolist()
        return total / count if count and math.isfinite(total_loss) else 0.0

    def _step(self, lr: float) -> tuple[float, bool]:
        """Clip and step, or skip when the gradient is not finite. The gradient's global norm; whether it stepped."""
        engine = self._engine
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
        if self._stage == 0:  # DeepSpeed does not look for non-finite gradients here, and all ranks hold all of them
            trained = [p for p in self._policy.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.clip_grad_norm_(trained, self._config.learner.max_grad_norm))
            if not math.isfinite(norm):
                engine.zero_grad()
                return norm, False
            engine.step()
            return norm, True
        engine.step()
        if getattr(engine.optimizer, "overflow", False):
            return math.inf, False
        return float(engine.get_global_grad_norm()), True

    def join(self, seat: ChannelSeat) -> None:
        """On rank 0: open the channel over which weights are broadcast, and wait for the generators there."""
        self._channel = Channel(seat, self._device)

    def publish(self, version: int, everything: bool) -> WeightUpdate | None:
        """The weights, on rank 0; other ranks take part in gathering and return None. To be broadcast: what `send` will
        send. On GPUs that are shared: every rank's tensors as they lie there."""
        if self._transport == "ipc":
            return share_on_gpu(dict(self._gathered(self._published(everything))), version, everything, self._trainable)
        if self._transport == "collective":
            return self._announced(version, everything) if self._where.rank == 0 else None
        tensors = self._gathered(self._published(everything))
        if self._where.rank == 0:
            return pack_weights(tensors, version, everything, self._trainable)
        deque(tensors, maxlen=0)  # takes part in gathering, keeps nothing
        return None

    def send(self, everything: bool) -> None:
        """Broadcast what `publish` announced. Returns when the generators have it."""
        tensors = self._gathered(self._published(everything))
        if self._where.rank == 0:
            assert self._channel is not None
            self._channel.send(fill_buckets(tensors, self._device))
        else:
            deque(tensors, maxlen=0)

    def _published(self, everything: bool) -> list[str]:
        return [n for n, _ in self._policy.model.named_parameters()] if everything else self._trainable

    def _announced(self, version: int, everything: bool) -> WeightUpdate:
        parameters: dict[str, Any] = dict(self._policy.model.named_parameters())
        places = Places()
        named = [(name, parameters[name]) for name in self._published(everything)]
        entries = tuple(places.add(n, getattr(p, "ds_shape", p.shape), p.dtype) for n, p in named)
        return WeightUpdate(version, entries, tuple(places.sizes), everything, tuple(self._trainable), "collective")

    def _gathered(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by name; with ZeRO-3 collected from the ranks a bucket at a time."""
        parameters: dict[str, Any] = dict(self._policy.model.named_parameters())
        if self._stage < 3:
            yield from ((name, parameters[name].detach()) for name in names)
            return
        import deepspeed

        for bucket in _buckets([(n, parameters[n].ds_numel * parameters[n].element_size()) for n in names]):
            with deepspeed.zero.GatheredParameters([parameters[n] for n in bucket]):
                yield from ((name, parameters[name].detach().clone()) for name in bucket)

    def save(self, folder: Path) -> None:
        """Hugging Face model (or adapter) into `folder`, DeepSpeed's and random state into `folder`/learner."""
        names = [name for name, _ in self._policy.model.named_parameters()]
        tensors = self._gathered(names if self._config.model.adapter is None else self._trainable)
        model: Any = self._policy.model
        if self._where.rank == 0:
            model.save_pretrained(folder, state_dict=None if self._stage < 3 else dict(tensors))
        else:
            deque(tensors, maxlen=0)  # takes part in gathering, keeps nothing
        own = folder / "learner"
        own.mkdir(parents=True, exist_ok=True)
        with _quiet():
            self._engine.save_checkpoint(str(own), tag=_TAG, save_latest=False)
        rng = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self._device)
        torch.save(rng, own / f"rng-{self._where.rank}.pt")

    def restore(self, folder: Path) -> None:
        """Back to what `save` wrote."""
        own = folder / "learner"
        with _quiet():
            self._engine.load_checkpoint(str(own), tag=_TAG)
        rng = torch.load(own / f"rng-{self._where.rank}.pt", weights_only=True)
        torch.set_rng_state(rng["cpu"])
        if "cuda" in rng and self._device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self._device)


def _buckets(sizes: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
    bucket, filled = list[str](), 0
    for name, num_bytes in sizes:
        if bucket and filled + num_bytes > BUCKET_BYTES:
            yield bucket
            bucket, filled = [], 0
        bucket.append(name)
        filled += num_bytes
    if bucket:
        yield bucket


def _join(where: Rendezvous, device: torch.device) -> None:
    """Start this process's part of the process group."""
    os.environ.update(
        RANK=str(where.rank), WORLD_SIZE=str(where.num_ranks), LOCAL_RANK="0", LOCAL_SIZE=str(where.num_ranks),
        MASTER_ADDR=where.host, MASTER_PORT=str(where.port),
    )  # fmt: skip
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with _quiet():
        import deepspeed
        import deepspeed.ops

        # DeepSpeed would try every C++ extension's build here, and then compile a shared-memory all-reduce for minutes,
        # whose interrupted build makes every later run hang. gloo and NCCL do without it.
        deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # type: ignore[attr-defined]
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if torch.distributed.is_initialized():
            return
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(seconds=where.timeout_s),
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed prints and logs a good deal that no reader of a run needs; warnings and errors still come through."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.disable(level)
