"""Adapters that peft does not have: what every such kind says of itself, and its files.

A kind changes a transformers model in place and leaves its object on the model, as `rlft_adapter`; the rest of the
house asks that object. Knows nothing about losses, engines or Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlft.config.adapters import KINDS, AdapterConfig
from rlft.errors import UserError
from rlft.models.adapters.training import AdapterTraining

Whole = Callable[[list[nn.Parameter]], AbstractContextManager[Any]]  # inside it these parameters are whole
_SETTINGS, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names, so that one finds them
_MARK = "rlft_type"  # in the settings, where peft has peft_type


def alone(parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
    """For weights that are whole anyway."""
    return nullcontext()


class OwnAdapter:
    """What a kind says of itself. The constructor of a kind has put it into `model` and marked what trains."""

    def __init__(self, model: nn.Module, adapter: AdapterConfig, names: list[str]) -> None:
        """`names` of the parameters that travel and are saved, those that do not train among them."""
        self.model, self.adapter, self.names = model, adapter, tuple(names)

    by_source = False  # rows of different sources are treated differently: see `use_sources`

    def off(self, writing: Whole) -> AbstractContextManager[None]:
        """The model as it was before, for the length of the block. `writing`: for parameters that it must change, which
        may be split over ranks."""
        raise NotImplementedError

    def merged(self, whole: Whole) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Plain name, and how to come by the merged weight while the loop stands there, of each weight that the
        adapter changes."""
        raise AssertionError(f"{self.adapter.type} cannot be merged")

    def training(self) -> AdapterTraining:
        """What it needs in each update."""
        return AdapterTraining(self.model, self.adapter)

    def unused(self) -> set[str]:
        """Of `names`, those whose values no longer matter: they are not saved."""
        return set()

    def loaded(self) -> None:
        """Weights were put into the model from outside."""

    def use_sources(self, sources: tuple[str, ...], source_of: Tensor) -> None:
        """Before a pass, for kinds that treat rows by where they are from. `source_of`: int64, shaped as the pass's
        tokens, of each its source's place in `sources`."""


def own_adapter(model: nn.Module) -> OwnAdapter | None:
    """The model's adapter, if it is one of these kinds."""
    found: Any = getattr(model, "rlft_adapter", None)
    return found


def write_own(adapter: OwnAdapter, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """The adapter's files. Their settings begin with `rlft_type`, by which no one takes them for peft's."""
    kind = adapter.adapter
    settings = {_MARK: kind.type, "base_model_name_or_path": str(adapter.model.config._name_or_path)}  # type: ignore[union-attr]
    keys = [*KINDS[kind.type].keys, *(["target_modules"] if KINDS[kind.type].targeted else [])]
    settings |= {key: getattr(kind, key) for key in keys}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
    left_out = adapter.unused()
    kept = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items() if n not in left_out}
    save_file(kept, folder / _WEIGHTS, metadata={"format": "pt"})


def read_own(model: nn.Module, folder: Path) -> None:
    """Put the weights in `folder` into the model's adapter. Raises UserError when they are of another kind or shape."""
    adapter = own_adapter(model)
    assert adapter is not None
    try:
        settings = json.loads((folder / _SETTINGS).read_text())
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no adapter that can be read: {error}") from error
    expected = adapter.adapter.type
    if settings.get(_MARK) != expected:
        found = settings.get(_MARK) or f"one of peft's ({settings.get('peft_type')})"
        raise UserError(f"{folder} holds an adapter of another kind: {found}; model.adapter.type is {expected}")
    parameters = dict(model.named_parameters())
    odd = [name for name in tensors if name not in adapter.names or parameters[name].shape != tensors[name].shape]
    if odd:
        raise UserError(
            f"{folder}: {len(odd)} tensors have no place of their size in this model (the first: {odd[0]}). Was it "
            "made with the same model.path and keys of model.adapter?"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    adapter.loaded()
    missing = set(adapter.names) - set(tensors) - adapter.unused()
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} tensors of the adapter: {sorted(missing)[0]} and others")


def is_own(folder: str) -> bool:
    """Whether the folder holds an adapter of one of these kinds."""
    path = Path(folder, _SETTINGS)
    return path.is_file() and _MARK in json.loads(path.read_text())
