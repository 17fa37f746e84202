"""A model that gives scores, for reward functions: found and checked before a run, loaded once, asked in one pack.

Knows nothing about what is read where: whoever asks lays out the samples.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rlft.errors import UserError

_FUNCTIONS = {"reward": "reward_model", "process_reward": "process_reward_model"}  # by the algorithm.type that trains
_WEIGHED = ", or what each counts: args: {weights: {NAME: 1.0}}, with the names of the model's id2label"
_LOADING = threading.Lock()  # each call has a thread of its own


class ScoringModel(NamedTuple):
    """A sequence classification model, and how text becomes its tokens."""

    model: Any
    tokenizer: Any
    window: int
    end: set[int]
    device: str
    path: str

    def scores(self, groups: Sequence[Any]) -> list[list[Any]]:
        """The scores in the trained places of each group's one sample, laid out by rlft.data.scores: a number, or a
        list from a model of several outputs. A prompt that all share is read once. Raises ValueError for a sample that
        does not fit the window."""
        import numpy as np
        import torch

        from rlft.batch import make_pack
        from rlft.samples import Group

        samples = [group.samples[0] for group in groups]
        longest = max(len(sample.token_ids) - 1 for sample in samples)
        if longest > self.window:
            raise ValueError(f"{longest} tokens, and the window of {self.path} has {self.window}")
        prompt = groups[0].prompt
        if all(np.array_equal(group.prompt.token_ids, prompt.token_ids) for group in groups):
            groups = [Group(prompt, tuple(samples))]
        with torch.inference_mode():
            found = iter(self.model(make_pack(groups, device=self.device)).tolist())
        return [[next(found) for _ in range(sample.num_trained)] for sample in samples]


def load_scoring_model(path: str, dtype: str, device: str | None, num_outputs: int = 1) -> ScoringModel:
    """The model at `path`, from memory when it was loaded before; without a device on the GPU, if this process has one.
    Raises UserError for a model that gives no scores."""
    with _LOADING:
        return _load(path, dtype, device, num_outputs)


@cache  # asked for with each group
def output_names(path: str) -> tuple[str, ...]:
    """What the outputs of the model at `path` are called there (id2label); one of an adapter's."""
    from transformers import AutoConfig

    from rlft.models.reward import is_adapter

    if is_adapter(path):
        return ("score",)
    named: Any = AutoConfig.from_pretrained(path).id2label
    return tuple(named[number] for number in sorted(named))


def check_scoring_model(name: str, kind: str, path: str | None, dtype: str, several: bool = False) -> None:
    """For before a run starts: raise UserError when there is no model at `path`, or for args that mean nothing. `name`
    of the reward function, `kind` the algorithm.type that trains its models, for messages; `several` outputs are fine.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"rewards: {name}'s dtype is {dtype!r}; expected float32 or bfloat16")
    if not isinstance(path, str) or not path:
        found = "" if path is None else f"; found path {path!r}"
        raise UserError(f"rewards: {name} needs a model: args: {{path: runs/my_reward/checkpoints/step-000100}}{found}")
    from transformers import AutoConfig

    from rlft.data.reading import near_names
    from rlft.models.reward import is_adapter

    if is_adapter(path):
        return _check_kind(name, kind, path)
    if path.count("/") > 1 and not Path(path).exists():
        raise UserError(
            f"rewards: {name}'s path {path} does not exist. {near_names(path)} Train that model first "
            f"(algorithm.type {kind}), or give another's folder."
        )
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"rewards: {name}'s path {path} cannot be loaded as a model ({reason})") from None
    kinds = config.architectures or []
    if kinds and not any("SequenceClassification" in found for found in kinds):
        raise UserError(
            f"rewards: {name}'s path {path} is a {kinds[0]}, which gives no scores. Train a reward model with "
            f"algorithm.type {kind}, and give its checkpoint."
        )
    if kinds and config.num_labels != 1 and not several:
        raise UserError(
            f"rewards: {name}'s path {path} gives {config.num_labels} scores for a text (num_labels); expected a model "
            f"that gives one{_WEIGHED if kind == 'reward' else ''}."
        )
    _check_kind(name, kind, path)


def _check_kind(name: str, kind: str, path: str) -> None:
    from rlft.models.reward import marked_as

    found = marked_as(path)
    if found not in (None, kind):
        raise UserError(
            f"rewards: {name}'s path {path} was trained with algorithm.type {found}, and {name} expects {kind}: its "
            f"scores are read in other places. Use {_FUNCTIONS.get(found, 'the function for that')}, or give another "
            "model."
        )


@cache  # as many as a configuration names
def _load(path: str, dtype: str, device: str | None, num_outputs: int) -> ScoringModel:
    import torch

    from rlft.data.tokenizer import end_tokens, load_tokenizer
    from rlft.models.load import window
    from rlft.models.reward import base_of, load_trained_reward_model

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_trained_reward_model(path, dtype, device, num_outputs)
    tokenizer, base = load_tokenizer(path), base_of(path)
    return ScoringModel(model, tokenizer, window(base), end_tokens(base, tokenizer), device, path)
