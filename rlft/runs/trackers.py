"""Where metrics go besides metrics.jsonl: TensorBoard and Weights & Biases. Their packages are imported when used.

Knows nothing about what the numbers mean. `MetricsWriter` and `Console` have the same two methods.
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rlft.config.run import TrackingConfig
from rlft.errors import UserError
from rlft.runs.folder import RunFolder


class Tracker(Protocol):
    """Takes the metrics of a step."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the metrics of one step."""
        ...

    def close(self) -> None:
        """Write out what is still buffered."""
        ...


def make_trackers(
    tracking: TrackingConfig, run: RunFolder, name: str, config: Mapping[str, Any], from_step: int | None = None
) -> list[Tracker]:
    """The trackers that are switched on. `name`, `config`: shown by W&B. `from_step`: the first step that will be
    logged (again) after a resume. Raises UserError, before anything starts, when a package is missing."""
    trackers: list[Tracker] = []
    if tracking.tensorboard:
        trackers.append(TensorBoardTracker(run.tensorboard, from_step))
    if tracking.wandb_project is not None:
        trackers.append(WandbTracker(tracking.wandb_project, name, run.logs, config))
    return trackers


class TensorBoardTracker:
    """Writes TensorBoard event files."""

    def __init__(self, folder: Path, from_step: int | None = None) -> None:
        """`from_step`: TensorBoard hides what was logged for this step and later before."""
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise UserError(
                f"tracking.tensorboard is true, but its package cannot be imported ({error}). "
                "Run `pip install tensorboard`, or set tracking.tensorboard to false."
            ) from error
        self._writer = module.SummaryWriter(log_dir=str(folder), purge_step=from_step)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the numbers; other values are left out."""
        for key, value in _numbers(metrics).items():
            self._writer.add_scalar(key, value, global_step=step)
        self._writer.flush()  # a kill must not cost what people were looking at

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandbTracker:
    """Logs to a Weights & Biases project."""

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        """`folder`: takes W&B's own files and wandb-id, by which a resumed run goes on in the same place."""
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                f"tracking.wandb_project is {project}, but wandb cannot be imported ({error}). "
                "Run `pip install wandb`, or leave tracking.wandb_project empty."
            ) from error
        id_file = folder / "wandb-id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run: Any = self._wandb.init(
            project=project,
            name=name,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            config=dict(config),
            allow_val_change=True,  # a resumed run may have other steps, paths and machines
        )
        self._run.define_metric("*", step_metric="step")  # W&B's own step only rises; a resumed run's does not

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Send the numbers; other values are left out."""
        self._run.log({"step": step, **_numbers(metrics)})

    def close(self) -> None:
        """Send the rest and end the W&B run."""
        self._run.finish()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in metrics.items()
        if key != "step" and value is not None and not isinstance(value, str)
    }
