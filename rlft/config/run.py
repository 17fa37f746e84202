"""run, loop, tracking and cluster: the frame of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlft.config.base import Section


class RunConfig(Section):
    """run: its name and place."""

    name: str = "run"
    """Name of the run's folder. From a file: the file's name."""
    dir: str = "runs"
    """Folder in which run folders are made."""
    seed: int = Field(default=0, ge=0)
    """Fixes weights, order of the data and every sample."""


class LoopConfig(Section):
    """loop: how long, how much at a time, how far ahead."""

    steps: int = Field(default=100, ge=1)
    """Training steps."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Prompts (for SFT: examples) in each step."""
    max_staleness: int = Field(default=0, ge=0)
    """Samples may be so many updates older than the weights that learn from them. 0: generate, then learn, in turn."""
    in_flight: bool = True
    """Only with max_staleness above 0. New weights reach samples that are being drawn, each token keeps the version
    that made it, and a step learns from the groups that finish first: half of max_staleness is for steps under way,
    half for long samples that are carried over. false: groups are drawn under one version and learned from in the order
    of the data, so that the run can be repeated and resumed to the digit, but long samples hold up the rest."""
    save_every: int = Field(default=0, ge=0)
    """Checkpoint every so many steps; 0: only after the last."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest so many checkpoints stay."""
    probe_every: int = Field(default=10, ge=0)
    """Every so many weight syncs (and at the first) generator and learner score the same tokens and must agree; 0: only
    at the first."""
    probe_tolerance: float | None = Field(default=None, gt=0)
    """Largest difference of a log-prob in the probe. Empty: 1e-3 in float32, 0.5 in bfloat16."""
    mismatch_warn: float | None = Field(default=None, gt=0)
    """Warn when the generator's log-probs differ from the learner's by more than this under the same weights: the mean
    over a step's tokens. Empty: 1e-4 in float32, 0.05 in bfloat16 or with an adapter's dropout."""
    mismatch_stop: float | None = Field(default=None, gt=0)
    """Stop, before the weights are changed, when they differ by more than this. Empty: 1e-2 in float32, 0.5 in bfloat16
    or with an adapter's dropout."""


class TrackingConfig(Section):
    """tracking: what is written besides metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard event files into the run folder."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project too (needs `pip install wandb`)."""
    rollouts_every: int = Field(default=1, ge=0)
    """Write the samples of every so many steps as Parquet; 0: never."""
    drift_window: int = Field(default=20, ge=0)
    """Warn when the mean reward of so many steps is above that of as many before, while held-out accuracy, length,
    entropy or duplicates say that it is gamed; 0: never. Metrics: drift/*."""


class ClusterConfig(Section):
    """cluster: where the roles run."""

    mode: Literal["inline", "local", "ray"] = "local"
    """`inline`: all in this process, no Ray, a debugger works. `local`: Ray actors on this machine. `ray`: an existing
    cluster."""
    address: str | None = None
    """Address of the cluster for mode `ray`. Empty: RAY_ADDRESS, which `ray job submit` sets, or the running
    cluster."""
    placement: Literal["pack", "spread"] = "pack"
    """Put the actors on as few nodes as possible, or spread them."""
    layout: Literal["separate", "colocated"] = "separate"
    """`separate`: generators and learner each have their own GPUs. `colocated`: they share them and take turns; the
    generators sleep while the learner works."""
    weight_transport: Literal["auto", "memory", "collective", "ipc"] = "auto"
    """How new weights reach the generators. `memory`: through Ray's object store and shared memory. `collective`: the
    learner broadcasts them, by NCCL between GPUs, gloo between CPUs. `ipc`: generators map the learner's tensors on the
    GPU that they share. `auto`: ipc when GPUs are shared, collective when each role has whole GPUs of its own, memory
    otherwise, for adapters, and for ZeRO-3 on shared GPUs."""
    threads: int | None = Field(default=None, ge=1)
    """Threads per process. Empty: an actor's cpus; inline, all cores."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """Longest wait for the actors to start and load the model."""
    stage_timeout_s: float = Field(default=3600.0, gt=0)
    """Longest wait for one stage of a step (generate, score, learn, sync, save)."""
