"""What is exported: a checkpoint and what its run says of it. Knows nothing about how it is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlft.config import Config
from rlft.config.adapters import KINDS, VLLM_RANKS, VLLM_UNSERVED
from rlft.config.derived import learner_kind
from rlft.errors import UserError
from rlft.models.adapters.own import is_own

Form = Literal["full", "adapter", "merged"]


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a run."""

    config: Config  # model.path is a folder or a name, also where the run made its model itself
    run: Path
    checkpoint: Path
    step: int

    @property
    def kind(self) -> str:
        """`learner` (a policy), `reward_model` or `tasks`."""
        return learner_kind(self.config)

    def folders(self) -> list[Path]:
        """The models in it, relative to it: each task is one."""
        if self.kind != "tasks":
            return [Path()]
        return [Path("tasks", task.name) for task in self.config.tasks]

    def form(self, merge: bool) -> Form:
        """What is written. Raises UserError where nothing can be merged, or the base is not there."""
        adapter = self.config.model.adapter
        if adapter is None:
            if merge:
                raise UserError(
                    f"--merge: {self.run} trained full weights, so there is no adapter to merge; leave it out"
                )
            return "full"
        if merge and not KINDS[adapter.type].merges:
            raise UserError(
                f"--merge: an adapter of type {adapter.type} cannot be merged into weights; leave it out to export the "
                "adapter"
            )
        self._check_base()
        return "merged" if merge else "adapter"

    def _check_base(self) -> None:
        path = Path(str(self.config.model.path)).expanduser()
        if path.exists() or not (path.is_absolute() or str(self.config.model.path).startswith((".", "~"))):
            return  # there, or a name on the Hub: whoever loads it says whether it is one
        raise UserError(
            f"{self.checkpoint}: its adapter belongs to the model {self.config.model.path}, which is not there any "
            "more (model.path of the run's config.yaml). Put it back"
        )

    def settings(self, folder: Path) -> dict[str, Any] | None:
        """PEFT's configuration of the adapter in `folder`; None where PEFT has no such kind."""
        return None if is_own(str(folder)) else json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))

    def loaders(self, form: Form, folder: Path) -> tuple[str, ...]:
        """Which of transformers, peft, vllm and rlft load what is in `folder`."""
        if form != "adapter":
            return ("transformers", "vllm") if self.kind == "learner" else ("transformers",)
        adapter, settings = self.config.model.adapter, self.settings(folder)
        assert adapter is not None
        if settings is None:
            return ("rlft",)
        served = self.kind == "learner" and KINDS[adapter.type].served == "adapter"
        served = (
            served and settings.get("r", 0) <= VLLM_RANKS[-1] and not VLLM_UNSERVED.intersection(adapter.target_modules)
        )
        return ("peft", "vllm") if served and self.config.model.quantization is None else ("peft",)
