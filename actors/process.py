"""What every process that plays a role does first."""

from __future__ import annotations

import os

from rlft.config import Config

# Read by OpenMP when torch is first imported, so they must be there before. Idle threads sleep instead of spinning:
# roles share cores, and spinning threads on busy cores make small matrix products many times slower.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def set_environment() -> None:
    """For this process, unless the user has set something else."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def prepare(config: Config, gpus: float, cpus: float | None = None) -> None:
    """Quiet libraries, and the number of threads. That is cluster.threads, otherwise an actor's cpus (at least 1);
    without either, torch's own choice. `gpus`: those of this process."""
    # Without, DeepSpeed looks for one and warns; and an actor on a GPU may have inherited the driver's, which has none.
    os.environ["DS_ACCELERATOR"] = "cuda" if gpus > 0 else "cpu"
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()

    threads = config.cluster.threads or (max(1, int(cpus)) if cpus is not None else None)
    if threads:
        torch.set_num_threads(threads)


def here() -> str:
    """Where this actor runs: address and id of its node, and its process."""
    import ray

    return f"{ray.util.get_node_ip_address()} node {ray.get_runtime_context().get_node_id()[:8]} pid {os.getpid()}"
