"""The schema seen from outside: every key with its type in words, and the nearest key to a misspelt one."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from rlft.config.base import Section
from rlft.config.schema import Config

# What other trainers call our keys.
OTHER_NAMES = {
    "num_generations": "algorithm.group_size",
    "num_samples": "algorithm.group_size",
    "beta": "algorithm.kl_coef",
    "epsilon": "algorithm.clip_low",
    "epsilon_high": "algorithm.clip_high",
    "learning_rate": "learner.lr",
    "max_steps": "loop.steps",
    "batch_size": "loop.prompts_per_step",
    "max_completion_length": "generator.max_new_tokens",
    "max_tokens": "generator.max_new_tokens",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "lora": "model.adapter",
    "peft": "model.adapter",
    "torch_dtype": "model.dtype",
    "dataset": "data.path",
    "train_file": "data.path",
    "eval_dataset": "evaluation.path",
    "reward_funcs": "rewards.functions",
    "save_steps": "loop.save_every",
    "eval_steps": "evaluation.every",
    "save_total_limit": "loop.keep_checkpoints",
    "output_dir": "run.dir",
    "run_name": "run.name",
    "report_to": "tracking.wandb_project",
    "gradient_accumulation_steps": "learner.tokens_per_micro_batch",
    "num_gpus": "learner.gpus",
}


class Key(NamedTuple):
    """One key of the schema."""

    path: str  # list items are called N: "rewards.functions.N.weight"
    field: FieldInfo
    section: type[Section] | None  # what is inside, when the key is a section or a list of them


@cache
def schema_keys(root: type[Section] = Config) -> dict[str, Key]:
    """Every key of the schema by its path, sections included, in the schema's order."""
    return {key.path: key for key in _keys_of(root, "")}


def _keys_of(section: type[Section], prefix: str) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        yield Key(prefix + name, field, inner)
        if inner:
            item = "N." if is_list(field.annotation) else ""
            yield from _keys_of(inner, f"{prefix}{name}.{item}")


def section_in(annotation: Any) -> type[Section] | None:
    """The section that a key holds: X for `X`, `X | None` and `list[X]`; else None."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list):
        return next((found for arg in get_args(annotation) if (found := section_in(arg))), None)
    return None


def is_list(annotation: Any) -> bool:
    """Whether a key holds a list."""
    return get_origin(annotation) is list


def is_tuple(annotation: Any) -> bool:
    """Whether a key holds a list of a fixed length, or that or nothing."""
    return any(get_origin(each) is tuple for each in _alternatives(annotation))


def is_text(annotation: Any) -> bool:
    """Whether a key holds text, or text or nothing, or one word of several; so that `3` on the command line is "3"."""
    words = [arg for arg in _alternatives(annotation) if arg is not type(None)]
    return all(word is str or get_origin(word) is Literal for word in words) and all(
        isinstance(value, str) for word in words if get_origin(word) is Literal for value in get_args(word)
    )


def generic(path: tuple[str | int, ...] | list[str]) -> str:
    """A path in a configuration as a path in the schema: indices become N."""
    return ".".join("N" if isinstance(part, int) or part.isdigit() else part for part in path)


def expected(field: FieldInfo) -> str:
    """What a key takes, in words: "an integer, at least 1"."""
    limits = []
    for bound in field.metadata:
        for kind, attribute, words in (
            (Ge, "ge", "at least"),
            (Gt, "gt", "above"),
            (Le, "le", "at most"),
            (Lt, "lt", "below"),
        ):
            if isinstance(bound, kind):
                limits.append(f"{words} {getattr(bound, attribute)}")
    return ", ".join([_words(field.annotation), " and ".join(limits)] if limits else [_words(field.annotation)])


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _words(annotation: Any) -> str:
    simple = {int: "an integer", float: "a number", str: "text", bool: "true or false", Any: "anything"}
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in simple:
        return simple[annotation]
    if annotation is type(None):
        return "nothing (null)"
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(arg) for arg in args)
    if origin is list and get_origin(args[0]) is Literal:
        return f"a list of any of {', '.join(map(str, get_args(args[0])))}"
    if origin is list:
        return "a list of sections" if section_in(annotation) else f"a list of {_plural(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)} {_plural(args[0])}"
    if origin is dict:
        return "a mapping" if args[1] is Any else f"a mapping of names to {_plural(args[1])}"
    return "a section (a mapping of keys)"


def _plural(annotation: Any) -> str:
    return {int: "integers", float: "numbers", str: "texts"}.get(annotation, "values")


def suggest(path: str, root: type[Section] = Config) -> str | None:
    """The key that was probably meant by an unknown one, over the whole schema; None when nothing is near.

    The last word decides, the section before it breaks ties: `groupsize`, `group_size` and `learner.group_size` all
    give algorithm.group_size.
    """
    parts = path.split(".")
    wanted, section = _plain(parts[-1]), generic(parts[:-1])
    best, best_score = None, 0.0
    for candidate in schema_keys(root):
        head, _, last = candidate.rpartition(".")
        score = _likeness(wanted, _plain(last))
        if score < 0.75 and not (len(wanted) >= 4 and head == section and _plain(last).startswith(wanted)):
            continue
        score += 0.3 if head == section else 0.2 * difflib.SequenceMatcher(None, section, head).ratio()
        if score > best_score:
            best, best_score = candidate, score
    others = {_plain(name): key for name, key in OTHER_NAMES.items() if key in schema_keys(root)}
    if best_score < 1 and (other := others.get(wanted)):
        return other
    indices = iter([part for part in parts if part.isdigit()])
    return best and ".".join(next(indices, "0") if part == "N" else part for part in best.split("."))


def _plain(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "")


def _likeness(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()
