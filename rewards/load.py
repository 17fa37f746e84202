"""From what a config or a driver script names to a reward function that can be called.

Knows nothing about samples or threads. Functions from files and modules travel to other processes by name and are
loaded again there.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rewards.builtin import BUILTIN
from rewards.foreign import Foreign, adapted
from rewards.remote import RemoteReward, is_url
from rlft.config.roles import RewardFunction
from rlft.errors import UserError
from rlft.lookup import Kind, find

PROVIDED = ("prompts", "prompt_texts", "completions", "completion_ids", "finish_reasons", "earlier_rewards")
"""What every reward function may ask for besides the columns of the data. `prompt_texts`: as the model sees them,
template included. `earlier_rewards`: by name, what the functions before it in the list have said; not one entry per
completion but one list per function."""
ON_REQUEST = frozenset({"prompt_texts", "earlier_rewards"})
"""Of these, what a function gets only where it names it: whoever takes everything (**kwargs) expects columns."""


REWARD = Kind("rewards", "reward", "function", {name: reward.function for name, reward in BUILTIN.items()})


@dataclass(frozen=True)
class BoundReward:
    """A reward function with its name, weight, limit and extra arguments."""

    name: str
    function: Callable[..., Any]
    weight: float
    timeout_s: float
    args: Mapping[str, Any]
    accepts: frozenset[str] | None  # parameters that the function names; None: it takes everything (**kwargs)
    not_asked: frozenset[str]  # of what only those get who name it, what this function does not name
    required: tuple[str, ...]  # of these, the ones without a default
    file: str | None  # where the function is written, to find its lines in tracebacks
    spec: RewardFunction | None  # how to load it again elsewhere; None for a callable
    folder: str  # that relative file names in `spec` start from
    floor: float | None = None
    cap: float | None = None
    gate: float | None = None
    beside: Callable[[int], AbstractContextManager[None]] | None = None
    """The function's attribute, where it has one: calls for several groups may be under way, each inside what it gives
    for so many samples. Time that is spent there is not the call's."""

    def __reduce__(self) -> tuple[Any, ...]:
        if self.spec is None:
            return _rebuild, (self.function, None, self.name, self.folder)
        return _rebuild, (None, self.spec, self.name, self.folder)

    def arguments(self, provided: Mapping[str, Any]) -> dict[str, Any]:
        """Of what there is, what the function takes; `args` from the config win. Raises UserError when something that
        the function needs is not there."""
        self.check_columns(provided)
        everything = {**provided, **self.args}
        if self.accepts is None:
            return {name: value for name, value in everything.items() if name not in self.not_asked}
        return {name: value for name, value in everything.items() if name in self.accepts}

    def check_columns(self, names: Iterable[str]) -> None:
        """Raise UserError when a required parameter is neither in `names` nor in `args` nor always provided."""
        names = list(names)
        if hasattr(self.function, "check_columns"):
            self.function.check_columns(names, **self.args)  # type: ignore[attr-defined]
        known = {*names, *self.args, *PROVIDED}
        missing = [name for name in self.required if name not in known]
        if missing:
            columns = sorted({*names} - {*PROVIDED})
            near = difflib.get_close_matches(missing[0], columns, n=1, cutoff=0.5)
            raise UserError(
                f"reward {self.name!r} needs the parameter {missing[0]!r}, and the data has no such column."
                f"{f' Did you mean {near[0]!r}?' if near else ''} Columns there: {', '.join(columns) or 'none'}. "
                "Rename the column or the parameter, give it a default, or set it in the reward's args."
            )


def resolve(spec: RewardFunction | Callable[..., Any]) -> BoundReward:
    """The function that `spec` means: a built-in name, `file.py:function`, `package.module:function`,
    the address of a reward server, or a callable. Functions of other projects: see rewards/foreign.py.

    Raises UserError when it is not there, cannot be imported, cannot be called, or does not take what `args` gives it,
    and whatever its own `check_args` raises, an attribute that is called with `args`.
    """
    return _resolve(spec, str(Path.cwd()))


def _resolve(spec: RewardFunction | Callable[..., Any], folder: str) -> BoundReward:
    if not isinstance(spec, RewardFunction):
        if not callable(spec):
            raise UserError(f"rewards: {spec!r} is a {type(spec).__name__}. Expected a function.")
        named = RewardFunction.model_validate({"function": getattr(spec, "__name__", type(spec).__name__)})
        return _bind(spec, named, named.function, None, folder)
    if is_url(spec.function):
        short = urlsplit(spec.function).path.rstrip("/").rpartition("/")[2] or "remote"
        return _bind(RemoteReward(spec.function), spec, spec.name or short, spec, folder)
    function = find(spec.function, folder, REWARD)
    if not callable(function):
        raise UserError(f"rewards: {spec.function} is a {type(function).__name__}, not a function.")
    short = spec.function.rpartition(":")[2]
    if inspect.isclass(function):
        function = _instance(function, spec.function)
    return _bind(function, spec, spec.name or short, spec, folder)


def _instance(made_of: type, text: str) -> Callable[..., Any]:
    try:
        made = made_of()
    except Exception as error:  # the user's code
        raise UserError(
            f"rewards: {text} is a class, and making one without arguments failed: {type(error).__name__}: {error}. "
            "Give it defaults, or name an instance in the file."
        ) from error
    if not callable(made):
        raise UserError(f"rewards: {text} is a class without __call__. Expected a function, or a class that has one.")
    return made


def _rebuild(function: Callable[..., Any] | None, spec: RewardFunction | None, name: str, folder: str) -> BoundReward:
    return replace(_resolve(spec if spec is not None else function, folder), name=name)  # type: ignore[arg-type]


def _bind(
    function: Callable[..., Any], values: RewardFunction, name: str, spec: RewardFunction | None, folder: str
) -> BoundReward:
    args = values.args
    if hasattr(function, "with_args"):
        function, args = function.with_args(**args), {}  # type: ignore[attr-defined]  # no column can pass for one
    function = adapted(function, name, args)
    accepts, required, not_asked = _parameters(function, name)
    clash = [key for key in values.args if key in PROVIDED]
    if clash:
        raise UserError(
            f"rewards: args of {name!r} sets {clash[0]!r}, which every reward function is given. Rename it."
        )
    unknown = [key for key in values.args if accepts is not None and key not in accepts]
    if unknown:
        near = difflib.get_close_matches(unknown[0], sorted(accepts or ()), n=1, cutoff=0.5)
        raise UserError(
            f"rewards: args of {name!r} sets {unknown[0]!r}, which the function does not take."
            f"{f' Did you mean {near[0]!r}?' if near else ''} Its parameters: {', '.join(sorted(accepts or ()))}."
        )
    if spec is not None and spec.function in BUILTIN:
        _refuse_ignored(function, name, args)
    if hasattr(function, "check_args"):
        function.check_args(**values.args)
    code = _code(function)
    return BoundReward(
        name=name,
        function=function,
        weight=values.weight,
        timeout_s=values.timeout_s,
        args=args,
        accepts=accepts,
        required=required,
        not_asked=not_asked,
        file=code.co_filename if code else None,
        spec=spec,
        folder=folder,
        floor=values.floor,
        cap=values.cap,
        gate=values.gate,
        beside=getattr(function, "beside", None),
    )


def _refuse_ignored(function: Callable[..., Any], name: str, args: Mapping[str, Any]) -> None:
    """Built-ins take every column (**columns), among which an arg that they do not know would be lost. An attribute
    `arg_names` has those that are not parameters."""
    named = [one.name for one in inspect.signature(function).parameters.values() if one.kind is not one.VAR_KEYWORD]
    known = getattr(function, "arg_names", None) or [one for one in named if one not in PROVIDED]
    for key in args:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise UserError(
                f"rewards: args of {name!r} sets {key!r}, which it does not take."
                f"{f' Did you mean {near[0]!r}?' if near else ''} It takes {', '.join(known) or 'none'}."
            )


def _code(function: Callable[..., Any]) -> Any:
    """Of a function, of a class's __call__, or of what an adapter calls; None where nothing is written in Python."""
    own = inspect.unwrap(function.function if isinstance(function, Foreign) else function)
    return getattr(own, "__code__", None) or getattr(vars(type(own)).get("__call__"), "__code__", None)


def _parameters(
    function: Callable[..., Any], name: str
) -> tuple[frozenset[str] | None, tuple[str, ...], frozenset[str]]:
    """The names that may be passed (None: any), those that must be, and of ON_REQUEST those that are not asked for."""
    if isinstance(function, Foreign):
        return None, function.required, frozenset()
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # written in C without a signature
        return None, (), ON_REQUEST
    if any(one.kind is one.POSITIONAL_ONLY for one in parameters):
        raise UserError(f"rewards: {name!r} has positional-only parameters. Rewards are called with keywords only.")
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    required = tuple(one.name for one in named if one.default is one.empty)
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    names = frozenset(one.name for one in named)
    return (None if takes_all else names), required, ON_REQUEST - names
