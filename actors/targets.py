"""What `rlft eval` can be pointed at: a run (its newest checkpoint), one checkpoint of a run, or a Hugging Face folder.

Knows nothing about what is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import nn

from actors import inline, launch
from rlft.config import Config, derived
from rlft.config.adapters import SAVED_AS, AdapterConfig
from rlft.config.checks import Purpose
from rlft.config.derived import makes_reward_model
from rlft.config.load import load_config
from rlft.data.tokenizer import load_tokenizer
from rlft.engines.publishing import Published, Unsplit
from rlft.engines.weights import pack_weights
from rlft.environments.load import BoundEnvironment
from rlft.errors import UserError
from rlft.models.load import load_checkpoint
from rlft.roles import Generator
from rlft.runs.checkpoints import Checkpoints, read_state, verify

_HERE = [  # whatever shared the work of the run: here it is one process
    "--cluster.mode=inline", "--generator.num_actors=1", "--rewards.num_actors=1", "--scorer.num_actors=1",
    "--learner.num_ranks=1", "--critic.num_ranks=1", "--teacher.num_actors=1", "--cluster.weight_transport=memory",
]  # fmt: skip
_ALONE = [  # a model that is scored alone needs no file of its run
    "--data.path=null", "--evaluation.path=null", "--rewards.functions=[]",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A model to measure."""

    config: Config  # of its run; of a plain folder, the defaults
    folder: Path  # the checkpoint, or the plain folder
    run: Path | None  # None: a plain folder
    version: int  # of the weights

    @property
    def device(self) -> str:
        """Where `rlft eval` computes: on the GPU where the generators of the run had some."""
        return "cuda" if self.config.generator.gpus > 0 else "cpu"

    @property
    def whole(self) -> str:
        """A folder or name with the model's own configuration; a checkpoint of an adapter has its base's."""
        return str(self.folder) if self.config.model.adapter is None else str(self.config.model.path)

    def tokenizer(self) -> Any:
        """The tokenizer that was saved with the weights, with the run's chat template."""
        return load_tokenizer(str(self.folder), self.config.model.chat_template)

    def model(self, device: str) -> nn.Module:
        """The weights, with the adapter around the base if there is one."""
        return load_checkpoint(self.config.model, self.folder, device)

    def base(self) -> Target | None:
        """What training started from; None for a plain folder."""
        if self.run is None:
            return None
        model = self.config.model.model_copy(update={"adapter": None})
        return Target(self.config.model_copy(update={"model": model}), Path(str(model.path)), None, 0)


@contextmanager
def serving(target: Target, environment: BoundEnvironment | None = None) -> Iterator[Generator]:
    """A generator with the target's weights, for the length of this block."""
    with inline.generator(_as_saved(target.config), environment) as generator:
        model = target.model("cpu")
        weights = Published(model, merged=derived.serving(target.config) == "merged")
        tensors = weights.tensors(Unsplit(), everything=True)
        generator.load(pack_weights(tensors, target.version, True, weights.always))
        del model, weights, tensors
        yield generator


def _as_saved(config: Config) -> Config:
    """With the kind of adapter that is in its checkpoints."""
    adapter = config.model.adapter
    if adapter is None or adapter.type not in SAVED_AS:
        return config
    plain = AdapterConfig.model_validate({"type": SAVED_AS[adapter.type], "num_tokens": adapter.num_tokens})
    return config.model_copy(update={"model": config.model.model_copy(update={"adapter": plain})})


def find_target(target: Path, overrides: Sequence[str], purpose: Purpose) -> Target:
    """The model that `target` names, with `overrides` on the configuration of its run. A plain folder will do for
    purpose "score" alone. Raises UserError when it is none of these, or a corrupt checkpoint."""
    alone = [*_HERE, *_ALONE] if purpose == "score" else _HERE
    if purpose == "score" and is_plain_model(target):
        config = load_config({"model": {"path": str(target)}}, [*alone, *overrides], purpose=purpose)
        return Target(_inline(config), target, None, 0)
    run, checkpoint = find_checkpoint(target, plain_too=purpose == "score")
    config = _inline(load_config(run / "config.yaml", [*alone, *overrides], purpose=purpose))
    if makes_reward_model(config) and purpose == "score":
        raise UserError(f"{checkpoint} is a reward model (algorithm.type {config.algorithm.type}), which says nothing.")
    return Target(launch.with_model(config, run), checkpoint, run, int(read_state(checkpoint)["step"]))


def compared_with(now: Target, against: str | None) -> Target:
    """What to compare `now` with: `against` (a run, a checkpoint or a Hugging Face folder), without one what its
    training started from. Its own weights, else everything as for `now`. Raises UserError when there is none."""
    if against is None:
        base = now.base()
        if base is None:
            raise UserError(f"{now.folder} is a model without a run, so nothing says what it was: give --against BASE.")
        return base
    model = now.config.model
    words = [f"--model.dtype={model.dtype}"]
    words += [] if model.chat_template is None else [f"--model.chat_template={model.chat_template}"]
    base = find_target(Path(against), words, "score")
    return replace(base, config=now.config.model_copy(update={"model": base.config.model}))


def _inline(config: Config) -> Config:
    if config.cluster.mode != "inline":
        raise UserError(f"--cluster.mode {config.cluster.mode}: rlft eval runs in this process; leave the key out")
    return config


def is_plain_model(folder: Path) -> bool:
    """Whether it is a Hugging Face model that no run keeps as its checkpoint."""
    return (folder / "config.json").is_file() and not (folder.resolve().parent.parent / "config.yaml").is_file()


def find_checkpoint(target: Path, plain_too: bool = False, to: str = "evaluate") -> tuple[Path, Path]:
    """(run folder, checkpoint) that `target` names. For messages `plain_too`: a plain folder would have done;
    `to`: what it is wanted for."""
    if (target / "config.yaml").is_file():
        latest = Checkpoints(target / "checkpoints", keep=1).latest()
        if latest is None:
            raise UserError(f"{target} has no checkpoint yet: nothing to {to}")
        return target, latest[0]
    run = target.resolve().parent.parent
    if not (run / "config.yaml").is_file():
        what = "does not exist" if not target.exists() else "is neither a run folder nor a checkpoint in one"
        more = ", or a Hugging Face model's with config.json" if plain_too else ""
        if is_plain_model(target) and to == "evaluate":
            more = ". Of a Hugging Face model without a run there are --perplexity and --golden"
        raise UserError(f"{target} {what}: expected a folder such as runs/x or runs/x/checkpoints/step-000100{more}")
    problems = verify(target)
    if problems:
        raise UserError(f"{target}: the checkpoint is corrupt: {'; '.join(problems[:3])}")
    return run, target


def check_overrides(overrides: Sequence[str], patterns: Sequence[str], what: str) -> None:
    """Raise UserError for a key on the command line that does nothing here: that fits none of `patterns`. `what` says
    what is measured."""
    keys = [word.partition("=")[0].removeprefix("--") for word in overrides if word.startswith("--")]
    for key in keys:
        plain = key.replace("-", "_")
        if not any(fnmatch(plain, pattern) for pattern in patterns):
            raise UserError(
                f"--{key} has no effect on {what}; take it out. What counts there: {', '.join(patterns)} (* is any key)"
            )
