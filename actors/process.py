"""What every process that plays a role does first."""

from __future__ import annotations

import os

from rlft.config import Config


def prepare(config: Config, gpus: float, cpus: float | None = None) -> None:
    """Before anything heavy is imported: quiet libraries, and the number of threads. That is cluster.threads, otherwise
    an actor's cpus (at least 1); without either, torch's own choice. Idle threads sleep instead of spinning, because
    cores are shared between roles. `gpus`: those of this process."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"  # otherwise DeepSpeed looks for one and warns
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
