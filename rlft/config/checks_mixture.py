"""What must hold between the sources of data.mixture, and between them and other keys."""

from __future__ import annotations

from collections.abc import Iterator

from rlft.config.data import KEYS_OF_ROWS, SourceConfig
from rlft.config.derived import learns_from
from rlft.config.problems import Problem
from rlft.config.schema import Config

NO_CUTTING = "cuts completions, and only sft and kd learn from a part of one; expected error or drop"
_ROWS = {  # of a source's own keys
    kind: tuple(key for key in keys if key in SourceConfig.model_fields) for kind, keys in KEYS_OF_ROWS.items()
}


def check_mixture(config: Config, has_dataset: bool = False) -> Iterator[Problem]:
    """Rows from the sources alone, names that tell them apart, shares of one kind, keys with an effect."""
    data, sources = config.data, config.data.mixture
    if not sources:
        return
    if data.path is not None:
        yield Problem("data.mixture", f'data.path is set too ("{data.path}"); keep one of the two')
    if has_dataset:
        yield Problem("data.mixture", "would be ignored, because dataset= was passed; keep one")
    seen: dict[str, int] = {}
    for i, source in enumerate(sources):
        key = f"data.mixture.{i}"
        if not source.label or "/" in source.label:
            yield Problem(f"{key}.name", f'"{source.label}" cannot name metrics; expected a word without slashes')
        elif source.label in seen:
            where = f"data.mixture.{seen[source.label]}"
            yield Problem(f"{key}.name", f'"{source.label}" is the name of {where} too; give it another name')
        seen.setdefault(source.label, i)
        if data.mixture_temperature is not None and source.weight != 1:
            yield Problem(
                f"{key}.weight",
                f"{source.weight:g} has no effect, because data.mixture_temperature takes shares from sizes; keep one",
            )
        yield from _check_keys(config, i)


def _check_keys(config: Config, i: int) -> Iterator[Problem]:
    source = config.data.mixture[i]
    kind = learns_from(config.algorithm)
    read = _ROWS[kind] if kind else ()
    reads = f"reads {kind}" if kind else "draws completions and does not read them"
    for name in dict.fromkeys(name for names in _ROWS.values() for name in names):
        if name not in read and getattr(source, name) is not None:
            reason = f"algorithm.type {config.algorithm.type} {reads}"
            yield Problem(f"data.mixture.{i}.{name}", f"has no effect, because {reason}; take it out")
    if source.too_long == "truncate" and kind != "examples":
        yield Problem(f"data.mixture.{i}.too_long", f"truncate {NO_CUTTING}")
    for name, whole in (("chat_template", "model.chat_template"), ("system_prompt", "data.system_prompt")):
        if config.environment is not None and getattr(source, name) is not None:
            yield Problem(
                f"data.mixture.{i}.{name}",
                f"an environment, which writes prompts and answers too, knows one for all; expected {whole}",
            )
