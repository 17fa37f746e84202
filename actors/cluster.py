"""Joining or starting Ray."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

import rlft
from actors.placement import Seat, total
from rlft.config import Config
from rlft.errors import RunError, UserError


@contextmanager
def connected(config: Config, all_seats: dict[str, list[Seat]]) -> Iterator[None]:
    """Within this block Ray runs: one of our own on this machine (mode local), or the cluster that is there (mode ray).
    A Ray that the calling script has already joined is used as it is."""
    if ray.is_initialized():
        joined, wanted = ray.get_runtime_context().gcs_address, config.cluster.address
        if wanted not in (None, "auto", joined):
            raise UserError(f"cluster.address is {wanted}, but this process has already joined the Ray at {joined}")
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # under `ray job submit` the working directory comes along
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(_import_folders())}}
    if config.cluster.mode == "local":
        need = total(all_seats)
        custom: dict[str, float] = {kind: amount for kind, amount in need.items() if kind not in ("CPU", "GPU")}
        # Logical CPUs: the four roles take turns more than they compete, so a laptop may hold more actors than cores.
        cpus = max(math.ceil(need["CPU"]), os.cpu_count() or 1)
        _start_here(num_cpus=cpus, include_dashboard=False, resources=custom or None, **options)
    else:
        address = config.cluster.address or os.environ.get("RAY_ADDRESS") or "auto"
        try:
            _knock(address)
            ray.init(address=address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"cluster.mode is ray, but no cluster answers at {address} ({str(error).splitlines()[0]}). Start one "
                "with `ray start --head`, give --cluster.address, or use --cluster.mode local. With token "
                "authentication, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here as on the cluster."
            ) from error
    _unwind_on_sigterm()
    try:
        yield
    finally:
        ray.shutdown()


def _start_here(**options: Any) -> None:
    """A Ray of our own on this machine. Ray gives a node 30 s to come up, where a busy machine may need longer: then
    once more. Raises RunError when that fails too."""
    for tries_left in (1, 0):
        try:
            ray.init(address="local", **options)
            return
        except Exception as error:
            if type(error) is not Exception:  # what Ray raises for a node that has not come up has no type of its own
                raise
            ray.shutdown()
            if not tries_left:
                raise RunError(
                    f"Ray did not start on this machine, and was tried twice: {str(error).rstrip('.')}. Is the machine "
                    "very busy, or its memory or /tmp full? Ray's logs are in /tmp/ray/session_latest/logs; "
                    "cluster.mode inline needs no Ray."
                ) from error


def _unwind_on_sigterm() -> None:
    """Ray's core puts a handler of its own under Python's, which prints stack traces and then aborts; this takes it
    out, so that a scheduler's stop ends the run in order."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))


def _knock(address: str) -> None:
    """Raise OSError when nothing listens at host:port: Ray itself would try for minutes before it gives up."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()  # 10 s: across a slow network


def _import_folders() -> list[str]:
    """Folders from which actors must be able to import what this process can: the project's, the script's, this one."""
    folders = [str(Path(rlft.__file__).resolve().parent.parent), os.getcwd()]
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script:
        folders.append(str(Path(script).resolve().parent))
    known = os.environ.get("PYTHONPATH")
    return list(dict.fromkeys([*folders, *(known.split(os.pathsep) if known else [])]))
