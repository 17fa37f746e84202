"""DeepSpeed under a module that is trained: ZeRO 0 to 3, NCCL on GPUs, gloo on CPUs.

Everything about DeepSpeed is in this file. Knows nothing about policies, critics, losses or Ray.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlft.config.derived import moment_betas
from rlft.config.roles import TrainedConfig
from rlft.engines.activations import keep_activations_on_cpu
from rlft.engines.extensions import built
from rlft.engines.optimizers import BUILDERS, make_groups
from rlft.engines.weights import BUCKET_BYTES, fingerprint
from rlft.errors import UserError
from rlft.models.adapters.own import own_adapter, write_own
from rlft.models.adapters.reading import no_false_alarm
from rlft.models.adapters.virtual import with_encoder_of
from rlft.models.quantization import quantized_layers, scales

_TAG = "state"  # name of DeepSpeed's own folder in a checkpoint


@dataclass(frozen=True)
class Rendezvous:
    """How the ranks of one learner find each other."""

    rank: int = 0
    num_ranks: int = 1
    host: str = "127.0.0.1"
    port: int = 0
    timeout_s: float = 3600.0


class ZeroEngine:
    """One rank's share of a module that several ranks train."""

    def __init__(
        self,
        module: nn.Module,
        settings: TrainedConfig,
        stage: int,
        dtype: str,
        where: Rendezvous,
        device: torch.device,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """The ranks have found each other (`join`). `rates`: by parameter, its learning rate as a part of what `step`
        is given; 1 where it is not named."""
        self._rates, self._group_rates = rates or {}, list[float]()
        self.module, self.stage, self._settings, self._where, self._device = module, stage, settings, where, device
        if settings.offload_activations:
            keep_activations_on_cpu(module)
        self._engine: Any = self._initialize(dtype)

    def _initialize(self, dtype: str) -> Any:
        import deepspeed

        learner = self._settings
        groups, self._group_rates = make_groups(self.module, learner, self._rates)
        build = cpu_adam if learner.optimizer == "cpu_adam" else BUILDERS[learner.optimizer]
        optimizer = build(groups, learner)
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # micro-batches are ours: see `accumulate`
            "steps_per_print": None,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": learner.max_grad_norm if self.stage else 0.0,  # stage 0: see `step`
            "bf16": {"enabled": dtype == "bfloat16"},
            "zero_optimization": {
                "stage": self.stage, "overlap_comm": False, "contiguous_gradients": False, **self._offload(),
            },
        }  # fmt: skip
        with quiet():
            engine, *_ = deepspeed.initialize(model=self.module, optimizer=optimizer, config=settings)
        return engine

    def _offload(self) -> dict[str, Any]:
        """What of it DeepSpeed keeps where else."""
        wanted = self._settings.offload
        if wanted == "none":
            return {}
        place = {"device": "cpu", "pin_memory": self._device.type == "cuda"}
        return {"offload_optimizer": place} | ({"offload_param": place} if wanted == "optimizer_and_weights" else {})

    def __call__(self, *args: Any) -> Any:
        """The module's forward pass."""
        return self._engine(*args)

    def train(self) -> None:
        """Before passes that are learned from."""
        self._engine.train()

    def eval(self) -> None:
        """Before passes that are only looked at."""
        self._engine.eval()

    def accumulate(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of this rank's part of the sum that is minimised; `last`: of the update's micro-batches. A
        loss that is not finite reaches every gradient on every rank, so that all of them skip the step."""
        self._engine.set_gradient_accumulation_boundary(last)
        if not math.isfinite(float(loss.detach())):
            loss = loss * math.nan
        self._engine.backward(loss * self._where.num_ranks)  # DeepSpeed averages over ranks; the loss is a sum

    def put_gradient(self, parameters: Sequence[nn.Parameter], gradient: Tensor) -> None:
        """In the place of `accumulate`, with stage 0: the update's whole gradient of these parameters, one behind the
        other. Every rank has the same."""
        assert self.stage == 0, self.stage
        self._engine.set_gradient_accumulation_boundary(True)
        parts = gradient.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def add_over_ranks(self, tensor: Tensor) -> Tensor:
        """The tensor, now the sum over all ranks."""
        if self._where.num_ranks > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def step(self, lr: float) -> tuple[float, bool]:
        """Clip and step, or skip when the gradient is not finite. The gradient's global norm; whether it stepped."""
        engine = self._engine
        for group, rate in zip(engine.optimizer.param_groups, self._group_rates, strict=True):
            group["lr"] = lr * rate
        if self.stage == 0:  # DeepSpeed does not look for non-finite gradients here, and all ranks hold all of them
            trained = [p for p in self.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.clip_grad_norm_(trained, self._settings.max_grad_norm))
            if not math.isfinite(norm):
                engine.zero_grad()
                return norm, False
            engine.step()
            return norm, True
        engine.step()
        if getattr(engine.optimizer, "overflow", False):
            return math.inf, False
        return float(engine.get_global_grad_norm()), True

    def sum_over_ranks(self, numbers: Sequence[float]) -> list[float]:
        """The sums, the same on every rank."""
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        if self._where.num_ranks > 1:
            torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def gathered(self, parameters: dict[str, Any], names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by name; with ZeRO-3 collected from the ranks a bucket at a time."""
        if self.stage < 3:
            yield from ((name, parameters[name].detach()) for name in names)
            return
        import deepspeed

        for bucket in _buckets([(n, parameters[n].ds_numel * parameters[n].element_size()) for n in names]):
            with deepspeed.zero.GatheredParameters([parameters[n] for n in bucket]):
                yield from ((name, parameters[name].detach().clone()) for name in bucket)

    def whole(
        self, parameters: Sequence[nn.Parameter], writing: bool = False
    ) -> contextlib.AbstractContextManager[Any]:
        """Inside it these parameters are whole on every rank; all ranks enter it together. `writing`: what rank 0 puts
        into them there is what they are afterwards."""
        if self.stage < 3:
            return contextlib.nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if writing else None)

    def write_pretrained(self, model: Any, names: Sequence[str], folder: Path) -> None:
        """`model`, the transformers or peft model inside the module, as Hugging Face's files into `folder`; `names` of
        the parameters that it keeps there. All ranks take part in gathering them, rank 0 writes."""
        parameters = dict(model.named_parameters())
        tensors, own = self.gathered(parameters, names), own_adapter(model)
        if self._where.rank == 0 and own is not None:
            write_own(own, dict(tensors), folder)
        elif self._where.rank == 0:
            buffers = {name: t for name, t in model.state_dict().items() if name not in parameters}
            whole = None if self.stage < 3 else dict(tensors) | buffers
            kinds = [each.peft_type for each in getattr(model, "peft_config", {}).values()]
            with with_encoder_of(model, whole) if whole else contextlib.nullcontext(), no_false_alarm(*kinds):
                model.save_pretrained(folder, state_dict=whole)
        else:
            deque(tensors, maxlen=0)

    def save(self, folder: Path, also: Mapping[str, Any] | None = None) -> None:
        """DeepSpeed's and random state into `folder`, and what else a rank must remember (tensors and builtins). Of a
        quantized base only fingerprints: it is made again from model.path."""
        folder.mkdir(parents=True, exist_ok=True)
        rebuilt = bool(quantized_layers(self.module))
        with quiet():
            self._engine.save_checkpoint(str(folder), _TAG, save_latest=False, exclude_frozen_parameters=rebuilt)
        rng: dict[str, Any] = {"cpu": torch.get_rng_state()} | ({"also": dict(also)} if also else {})
        if rebuilt:
            rng["frozen"] = self._frozen()
        if self._device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self._device)
        torch.save(rng, folder / f"rng-{self._where.rank}.pt")

    def restore(self, folder: Path) -> dict[str, Any]:
        """Back to what `save` wrote; gives what else was to be remembered."""
        rng = torch.load(folder / f"rng-{self._where.rank}.pt", weights_only=True)
        if "frozen" in rng:
            _check_frozen(rng["frozen"], self._frozen())
        with quiet():
            load = _load_trained if "frozen" in rng else None
            self._engine.load_checkpoint(str(folder), tag=_TAG, custom_load_fn=load)
        torch.set_rng_state(rng["cpu"])
        if "cuda" in rng and self._device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self._device)
        return rng.get("also", {})

    def _frozen(self) -> dict[str, int]:
        """Fingerprints of what does not train, scales of a quantized base among it. All ranks take part."""
        parameters = dict(self.module.named_parameters())
        names = [name for name, p in parameters.items() if not p.requires_grad]
        tensors = chain(self.gathered(parameters, names), scales(self.module))
        return {name: fingerprint(tensor) for name, tensor in tensors}


def _check_frozen(saved: Mapping[str, int], found: Mapping[str, int]) -> None:
    """Raise UserError when what does not train is not, to the bit, what it was."""
    odd = [name for name in saved if found.get(name) != saved[name]]
    if odd or len(found) != len(saved):
        raise UserError(
            f"model.path: the quantized base is not the one that this checkpoint was trained on: {len(odd)} of "
            f"{len(saved)} tensors differ ({', '.join(odd[:1])}). A run goes on with the model, model.dtype, "
            "model.quantization and bitsandbytes that it began with"
        )


def _load_trained(src: Mapping[str, Tensor], dst: nn.Module) -> None:
    """What trains, and buffers, into the module (DeepSpeed names the arguments)."""
    trained = {name for name, p in dst.named_parameters() if p.requires_grad}
    wanted = {name: t for name, t in src.items() if name in trained or name in dict(dst.named_buffers())}
    assert trained <= wanted.keys(), sorted(trained - wanted.keys())
    dst.load_state_dict(wanted, strict=False)


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


def cpu_adam(groups: list[dict[str, Any]], settings: TrainedConfig) -> torch.optim.Optimizer:
    """DeepSpeed's AdamW for CPUs, compiled when it is first needed."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import (
        CPUAdamBuilder,  # pyright: ignore[reportAttributeAccessIssue]  # put there when it is imported
    )

    class Exact(DeepSpeedCPUAdam):
        """Its C++ half multiplies powers of beta up from step to step, and a resumed run, which begins with a power,
        would round them otherwise. Made anew without betas, it begins each step with a power."""

        def step(self, closure: Any = None) -> Any:
            self.ds_opt_adam.create_adam(self.opt_id, 0.0, 0.0, 0.0, settings.eps, 0.0, self.adam_w_mode, False)
            return super().step(closure)

    with quiet():
        built("cpu_adam", lambda: CPUAdamBuilder().load(verbose=False))
        return Exact(groups, lr=settings.lr, betas=moment_betas(settings), eps=settings.eps)


def join(where: Rendezvous, device: torch.device) -> None:
    """Start this process's part of the process group."""
    os.environ.update(
        RANK=str(where.rank), WORLD_SIZE=str(where.num_ranks), LOCAL_RANK="0", LOCAL_SIZE=str(where.num_ranks),
        MASTER_ADDR=where.host, MASTER_PORT=str(where.port),
    )  # fmt: skip
    os.environ["DS_ACCELERATOR"] = device.type
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with quiet():
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
def quiet() -> Iterator[None]:
    """DeepSpeed prints and logs a good deal that no reader of a run needs; warnings and errors still come through."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.disable(level)
