"""Whether a plan fits its devices, and which keys to change, in what order, if it does not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rlft.config import Config
from rlft.config.adapters import KINDS
from rlft.config.derived import draws, generator_engine, zero_stage
from rlft.planning.plan import Lengths, Planned, plan

_WORTH = 0.02  # of a device's need: what saves less is not told


class Device(NamedTuple):
    """What one device, or the machine's memory, must hold."""

    roles: str
    need: int  # bytes
    there: int | None  # None: nobody knows

    @property
    def fits(self) -> bool | None:
        """None where nobody knows."""
        return None if self.there is None else self.need <= self.there


class Advice(NamedTuple):
    """A change of the configuration, on top of those before it, and what it saves."""

    key: str
    value: Any
    saves: int  # bytes of the device that it is for
    fits: bool  # with it and those before it


def devices(planned: Planned, given: int | None) -> list[Device]:
    """`given`: bytes of each device; without it those of the GPUs here, and of this machine for roles without any."""
    by_name = {role.name: role for role in planned.roles}
    found, host = list[Device](), dict[str, int]()
    for names, need in planned.devices:
        own = [by_name[name] for name in names.split(" + ")]
        if given is not None or any(role.gpus > 0 for role in own):
            found.append(Device(names, need, given if given is not None else _gpu_memory()))
        else:
            host[" + ".join(_counted(role.name, role.count) for role in own)] = sum(r.count * r.peak.total for r in own)
    if host:
        found.append(Device(f"this machine: {' + '.join(host)}", sum(host.values()), _host_memory()))
    return found


def _counted(name: str, count: int) -> str:
    return name if count == 1 else f"{count} x {name}"


def advise(config: Config, planned: Planned, given: int | None, sequence: int | None) -> list[Advice]:
    """Changes that together make it fit: first what costs nothing but time, then what changes what is learned. Empty
    when it fits already."""
    advice, now = list[Advice](), planned
    for key, value in _candidates(config, planned.lengths):
        tight = [i for i, d in enumerate(devices(now, given)) if d.fits is False]
        if not tight:
            break
        changed = _with(config, key, value)
        after = plan(changed, sequence)
        before, then = devices(now, given), devices(after, given)
        saves = max(before[i].need - then[i].need for i in tight)
        if saves > _WORTH * before[tight[0]].need:
            config, now = changed, after
            advice.append(Advice(key, value, saves, all(d.fits is not False for d in then)))
    return advice


def _candidates(config: Config, lengths: Lengths) -> Iterator[tuple[str, Any]]:
    learner, sequence = config.learner, lengths.prompt + lengths.completion
    if learner.tokens_per_logit_chunk > 512:
        yield "learner.tokens_per_logit_chunk", 512
    if not learner.gradient_checkpointing:
        yield "learner.gradient_checkpointing", True
    tokens = learner.tokens_per_micro_batch
    while tokens > sequence:
        tokens = max(sequence, tokens // 2)
        yield "learner.tokens_per_micro_batch", tokens
    if draws(config):
        most = config.generator.max_concurrent
        least = config.algorithm.group_size
        while generator_engine(config) == "transformers" and most > least:
            most = max(least, most // 2)
            yield "generator.max_concurrent", most
    stage = zero_stage(learner, config.model.dtype)
    adapter = config.model.adapter
    highest = 3 if adapter is None else KINDS[adapter.type].zero
    for better in range(stage + 1, highest + 1 if learner.num_ranks > 1 else 0):
        yield "learner.zero_stage", better
    if config.model.dtype == "float32" and highest > 0:
        yield "model.dtype", "bfloat16"
    if adapter is None:
        yield "model.adapter", {"type": "lora", "rank": 16}
    for ranks in (learner.num_ranks * factor for factor in (2, 4, 8) if highest == 3):
        yield "learner.num_ranks", ranks


def _with(config: Config, key: str, value: Any) -> Config:
    tree: dict[str, Any] = config.model_dump(mode="json")
    node: Any = tree
    *sections, last = key.split(".")
    for section in sections:
        node = node[section]
    node[last] = value
    if key == "learner.num_ranks" and node["zero_stage"] is None:
        node["zero_stage"] = 3
    return Config.model_validate(tree)


def _gpu_memory() -> int | None:
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def as_json(planned: Planned, found: list[Device], advice: list[Advice]) -> Mapping[str, Any]:
    """For machines; bytes."""
    return {
        "lengths": planned.lengths._asdict(),
        "roles": [
            {"name": r.name, "count": r.count, "gpus": r.gpus, "moment": r.peak.moment, "bytes": dict(r.peak.parts),
             "total": r.peak.total, "note": r.note} for r in planned.roles
        ],
        "devices": [d._asdict() | {"fits": d.fits} for d in found],
        "advice": [a._asdict() for a in advice],
    }  # fmt: skip
