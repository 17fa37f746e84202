"""A run as the loops see it: where it goes on, where its metrics, rollouts and checkpoints go.

Brings together what the files beside this one do. Knows nothing about how training works.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlft.config import Config
from rlft.errors import RunError
from rlft.roles import Critic, Metrics, Scorer, Trained
from rlft.runs.checkpoints import Checkpoints
from rlft.runs.console import Console, readable_seconds
from rlft.runs.drift import DriftWatch
from rlft.runs.files import atomic_write_text
from rlft.runs.folder import RunFolder
from rlft.runs.metrics import MetricsWriter, read_metrics
from rlft.runs.rollouts import set_aside_rollouts, write_rollouts
from rlft.runs.trackers import make_trackers
from rlft.samples import Group

_LOOP = "loop.pkl"  # in a checkpoint: what the loop keeps, rollouts under way among it
Kept = Critic | Scorer


class StageClock(Protocol):
    """Seconds per stage of a step (rlft.loops.clock)."""

    def metrics(self) -> dict[str, float]:
        """time/<stage>_s and time/step_s."""
        ...


class Run:
    """Use as a context manager. `step` counts finished steps, so the first that is logged is 1."""

    def __init__(self, folder: RunFolder, config: Config, tokenizer: Any, console: Console) -> None:
        self.folder, self.console = folder, console
        self._config, self._tokenizer = config, tokenizer
        self.step = 0 if folder.resumed is None else int(folder.resumed[1]["step"])
        self.last_metrics: Metrics = {}
        self.last_checkpoint = None if folder.resumed is None else folder.resumed[0]
        self._checkpoints = Checkpoints(folder.checkpoints, config.loop.keep_checkpoints)
        following = self.step + 1
        set_aside_rollouts(folder.rollouts, following)
        self._metrics = MetricsWriter(folder.metrics_path, following)
        self._evaluations = MetricsWriter(folder.eval_path, following if self.step else 0)  # 0: the one before training
        self._trackers = make_trackers(
            config.tracking, folder, config.run.name, config.model_dump(mode="json"), following if self.step else None
        )
        self._metrics_of_save: Metrics = {}
        past = [read_metrics(path) for path in (folder.metrics_path, folder.eval_path)]
        self._drift = DriftWatch(config.tracking.drift_window, *past)

    def __enter__(self) -> Run:
        self.console.__enter__()
        for message in self.folder.messages:
            self.console.message(message)
        return self

    def __exit__(self, *exc: object) -> None:
        for part in (self._metrics, self._evaluations, *self._trackers, self.console, self.folder):
            part.close()

    def is_done(self) -> bool:
        """Whether a resumed run has made all its steps already. Says so, or that the run starts now."""
        steps = self._config.loop.steps
        if self.step >= steps:
            self.console.message(f"all {steps} steps are done already; to go on, raise loop.steps")
            return True
        self.console.stage("starting")
        if self._config.cluster.mode != "inline":
            self.console.message("starting Ray and the actors (10 to 60 s)")
        return False

    def tell_places(self, places: Mapping[str, str]) -> None:
        """Say where each actor runs, on the console and in logs/actors.json."""
        if not places:
            return
        atomic_write_text(self.folder.logs / "actors.json", json.dumps(dict(places), indent=1) + "\n")
        for name, place in sorted(places.items()):
            self.console.message(f"{name}: {place}")

    def tell_facts(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Say what reward functions tell of where they run ({place: {function: {name: value}}}), on the console and in
        logs/rewards.json. Equal facts of several places are said once, and a "warning" by itself."""
        told = {place: dict(functions) for place, functions in facts.items() if functions}
        if not told:
            return
        atomic_write_text(self.folder.logs / "rewards.json", json.dumps(told, indent=1) + "\n")
        lines: dict[str, list[str]] = {}
        for place, functions in sorted(told.items()):
            for name, values in functions.items():
                shown = ", ".join(f"{key} {value}" for key, value in values.items() if key != "warning")
                lines.setdefault(f"reward {name}: {shown}", []).append(place)
                if "warning" in values:
                    lines.setdefault(f"warning: reward {name}: {values['warning']}", []).append(place)
        for line, places in lines.items():
            self.console.message(f"{line} ({', '.join(places)})")

    def restore(self, learner: Trained, others: Sequence[Kept] = ()) -> tuple[int, Any]:
        """Put the learner and others where the run goes on; the number of finished steps, and what `save` was given of
        the loop."""
        if self.folder.resumed is None:
            return 0, None
        checkpoint = self.folder.resumed[0]
        self.console.stage("restore")
        learner.restore(checkpoint)
        for other in others:
            other.restore(checkpoint)
        loop = checkpoint / _LOOP
        return self.step, pickle.loads(loop.read_bytes()) if loop.exists() else None

    def log_step(
        self, step: int, metrics: Mapping[str, float], clock: StageClock, num_tokens: int, groups: Sequence[Group] = ()
    ) -> None:
        """Metrics of a finished step. `num_tokens`: trained tokens; `groups`: its rollouts, written when due."""
        self.step = step
        self.console.stage(f"in step {step + 1}")
        times = clock.metrics()
        everything = {**metrics, **times, **self._metrics_of_save, "tokens_per_s": num_tokens / times["time/step_s"]}
        self._metrics_of_save = {}
        drift, warnings = self._drift(step, everything)
        everything |= drift
        self.last_metrics |= everything
        for sink in (self._metrics, *self._trackers, self.console):
            sink.log(step, everything)
        for warning in warnings:
            self.console.message(warning)
        every = self._config.tracking.rollouts_every
        if groups and every and step % every == 0:
            write_rollouts(self.folder.rollouts, step, groups)

    def log_evaluation(self, step: int, metrics: Metrics) -> None:
        """Metrics of an evaluation after `step` steps."""
        self.last_metrics |= metrics
        self._drift.evaluated(step, metrics)
        for sink in (self._evaluations, *self._trackers):
            sink.log(step, metrics)
        self.console.show(metrics)
        shown = "  ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in metrics.items())
        self.console.message(f"evaluation after step {step}: {shown}")

    def save_is_due(self, step: int) -> bool:
        """Whether to write a checkpoint after so many steps."""
        every = self._config.loop.save_every
        return step >= self._config.loop.steps or (every > 0 and step % every == 0)

    def save(self, step: int, learner: Trained, loop: Any = None, others: Sequence[Kept] = ()) -> None:
        """Write a checkpoint. `loop`: what it must keep of the loop."""
        begin = time.perf_counter()
        self.console.stage("save")

        def write(folder: Path) -> None:
            folder = folder.resolve()
            self._tokenizer.save_pretrained(folder)
            learner.save(folder)
            for other in others:
                other.save(folder)
            if loop is not None:
                (folder / _LOOP).write_bytes(pickle.dumps(loop))
            if not list(folder.glob("*.safetensors")):
                raise RunError(
                    f"checkpoint {folder}: the learner has written no weights there. Are this process and the learner "
                    "on the same file system? Put run.dir on a folder that all nodes share."
                )

        state = {"step": step, "weight_version": step, "prompts_used": step * self._config.loop.prompts_per_step}
        self.last_checkpoint = self._checkpoints.save(step, state, write)
        seconds = time.perf_counter() - begin
        self._metrics_of_save = {"time/save_s": seconds}
        self.console.message(f"checkpoint {self.last_checkpoint} ({readable_seconds(seconds)})")
