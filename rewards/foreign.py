"""Reward functions written for other projects, unchanged: told apart by their parameters, and called as they expect.

    TRL         f(completions, ...), f(prompts, completions, **kwargs)            as rlft itself calls them
    verl        compute_score(data_source, solution_str, ground_truth, extra_info=None)      one completion at a time
    verl batch  compute_score(data_sources, solution_strs, ground_truths, extra_infos)
    OpenRLHF    reward_func(queries, prompts, labels)

Knows nothing about who calls. What comes out is a function as rewards/load.py wants it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rewards.texts import completion_text
from rlft.errors import UserError
from rlft.samples import RewardResult

KNOWN = (
    "f(completions, ...) as in TRL, compute_score(data_source, solution_str, ground_truth, extra_info) as in verl, "
    "reward_func(queries, prompts, labels) as in OpenRLHF"
)
LABELS = ("label", "labels")  # where OpenRLHF's labels are looked for unless args.label_key names a column
_GIVEN = {"prompts", "prompt_texts", "completions", "completion_ids", "finish_reasons", "earlier_rewards"}
_SEEN = {"completions", "completion_ids", "finish_reasons"}  # what makes a function one about completions


class Foreign:
    """A function of another project, called with what rlft provides. `required`: columns that the data must have."""

    own_args: tuple[str, ...] = ()  # that args may set besides what the function itself takes

    def __init__(self, function: Callable[..., Any], name: str, args: Mapping[str, Any]) -> None:
        self.function, self.name, self.args = function, name, args
        self.required: tuple[str, ...] = ()

    def __call__(self, **provided: Any) -> Any:
        """One entry for each completion, or an awaitable of them."""
        raise NotImplementedError

    def check_columns(self, names: Iterable[str], **args: Any) -> None:
        """Raise UserError where the data's columns do not do, besides what `required` says."""

    def _column(self, name: str, provided: Mapping[str, Any], count: int) -> list[Any]:
        """A column of the data; what args sets is the same for all."""
        if name in self.args:
            return [self.args[name]] * count
        return provided.get(name) or [None] * count


class VerlScore(Foreign):
    """verl's naive reward manager: a number, or a dict with `score` and more."""

    own_args = ("data_source", "ground_truth", "extra_info")

    def __init__(self, function: Callable[..., Any], name: str, args: Mapping[str, Any]) -> None:
        super().__init__(function, name, args)
        self.required = tuple(n for n in ("data_source", "ground_truth") if n not in args and n in _required(function))
        self._extra = {name: value for name, value in args.items() if name not in self.own_args}
        self._taken = [name for name in self.own_args if _takes(function, name)]

    def __call__(self, **provided: Any) -> Any:
        texts = [completion_text(completion) for completion in provided["completions"]]
        columns = {name: self._column(name, provided, len(texts)) for name in self._taken}
        if "extra_info" in columns:
            columns["extra_info"] = [dict(info or {}) for info in self._column("extra_info", provided, len(texts))]
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(texts))]
        said = [_said(self.function, solution_str=text, **row, **self._extra) for text, row in zip(texts, rows)]
        if any(inspect.isawaitable(one) for one in said):
            return _gathered(self.name, said)
        return [_scored(self.name, one) for one in said]


class VerlBatch(Foreign):
    """verl's batch reward manager: all completions at once."""

    own_args = VerlScore.own_args

    def __init__(self, function: Callable[..., Any], name: str, args: Mapping[str, Any]) -> None:
        super().__init__(function, name, args)
        self.required = tuple(name for name in ("data_source", "ground_truth") if name not in args)
        self._extra = {name: value for name, value in args.items() if name not in self.own_args}

    def __call__(self, **provided: Any) -> Any:
        texts = [completion_text(completion) for completion in provided["completions"]]
        given = {f"{name}s": self._column(name, provided, len(texts)) for name in ("data_source", "ground_truth")}
        infos = [dict(info or {}) for info in self._column("extra_info", provided, len(texts))]
        said = self.function(solution_strs=texts, extra_infos=infos, **given, **self._extra)
        return _finished(said, lambda values: [_scored(self.name, value) for value in values])


class OpenRLHF(Foreign):
    """OpenRLHF's function: a tensor, or a dict with `rewards` and perhaps `scores` and `extra_logs`. Queries are prompt
    and completion as text; unlike there without special tokens behind the prompt."""

    own_args = ("label_key",)

    def __init__(self, function: Callable[..., Any], name: str, args: Mapping[str, Any]) -> None:
        super().__init__(function, name, args)
        key = args.get("label_key")
        self.required = (str(key),) if key is not None else ()
        self._extra = {name: value for name, value in args.items() if name != "label_key"}

    def __call__(self, **provided: Any) -> Any:
        said = self.function(**query(provided, self.args.get("label_key"), "queries"), **self._extra)
        return _finished(said, lambda found: rewards_in(self.name, found))

    def check_columns(self, names: Iterable[str], **args: Any) -> None:
        """Whether it is clear which column has the labels."""
        label_column(names, self.args.get("label_key"))


def query(provided: Mapping[str, Any], label_key: str | None, queries: str) -> dict[str, list[Any]]:
    """OpenRLHF's lists, of what rlft provides; `queries` is what the first is called there."""
    prompts = provided["prompt_texts"]
    texts = [completion_text(completion) for completion in provided["completions"]]
    return {
        queries: [prompt + text for prompt, text in zip(prompts, texts, strict=True)],
        "prompts": list(prompts),
        "labels": list(provided[label_column(provided, label_key)]),
    }


def label_column(columns: Iterable[str], label_key: str | None) -> str:
    """The column with OpenRLHF's labels. Raises UserError when it is not clear which."""
    columns = list(columns)
    if label_key is not None and label_key in columns:
        return label_key
    there = [name for name in LABELS if name in columns]
    if label_key is None and len(there) == 1:
        return there[0]
    found = f"there is no {label_key!r}" if label_key else f"there is {'both' if there else 'neither'} of {LABELS}"
    raise UserError(
        f"rewards: an OpenRLHF reward needs the column of the data with its labels, and {found}. Name it: args: "
        "{label_key: answer}. Columns there: " + (", ".join(name for name in columns if name not in _GIVEN) or "none")
    )


def rewards_in(name: str, said: Any) -> Any:
    """The rewards in what an OpenRLHF function or server answers; the rest is kept as the results' detail."""
    if not isinstance(said, Mapping):
        return said
    if "rewards" not in said:
        raise UserError(f"reward {name!r} returned a dict with {_keys(said)}; expected `rewards` in it")
    rewards = _list(said["rewards"])
    logs = {"scores": said.get("scores"), **(said.get("extra_logs") or {})}
    each = {name: _list(values) for name, values in logs.items() if values is not None}
    each = {name: values for name, values in each.items() if isinstance(values, list) and len(values) == len(rewards)}
    return [
        _result(value, {name: values[i] for name, values in each.items()}) for i, value in enumerate(rewards)
    ]  # fmt: skip


_FORMS: tuple[type[Foreign], ...] = (VerlScore, VerlBatch, OpenRLHF)
_MARKS = ({"solution_str"}, {"solution_strs"}, {"queries"})  # a parameter that no other form has


def adapted(function: Callable[..., Any], name: str, args: Mapping[str, Any]) -> Callable[..., Any]:
    """`function` itself where rlft (or TRL) would call it so, else as a Foreign. Raises UserError for a function that
    could not look at completions at all."""
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):  # written in C without a signature
        return function
    for form, marks in zip(_FORMS, _MARKS, strict=True):
        if marks <= parameters.keys():
            found = form(function, name, args)
            _check_args(found, parameters, marks)
            return found
    if _SEEN & parameters.keys() or any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return function
    raise UserError(
        f"rewards: {name}({', '.join(map(str, parameters.values()))}) takes no completions. Expected "
        f"{KNOWN}. Name its parameters as one of these does."
    )


def _check_args(foreign: Foreign, parameters: Mapping[str, inspect.Parameter], marks: set[str]) -> None:
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    known = sorted({*parameters, *foreign.own_args} - marks - _GIVEN - {"labels"})
    for key in foreign.args:
        if key in marks or (key not in known and not takes_all):
            raise UserError(
                f"rewards: args of {foreign.name!r} sets {key!r}. Expected {', '.join(known) or 'nothing'}: the rest "
                "is given by rlft."
            )


def _keys(tree: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, tree)) or "nothing in it"


def _required(function: Callable[..., Any]) -> set[str]:
    return {name for name, one in inspect.signature(function).parameters.items() if one.default is one.empty}


def _takes(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _said(function: Callable[..., Any], **given: Any) -> Any:
    """What it says of one completion, or what it raised: one that it cannot take says nothing of the others."""
    try:
        return function(**given)
    except UserError:
        raise
    except Exception as error:
        return error


async def _gathered(name: str, said: Sequence[Any]) -> list[Any]:
    waiting = [one if inspect.isawaitable(one) else _as_it_is(one) for one in said]
    return [_scored(name, one) for one in await asyncio.gather(*waiting, return_exceptions=True)]


async def _as_it_is(value: Any) -> Any:
    return value


def _finished(said: Any, read: Callable[[Any], Any]) -> Any:
    """`read` of what was said, also when it must be waited for first."""

    async def later() -> Any:
        return read(await said)

    return later() if inspect.isawaitable(said) else read(said)


def _scored(name: str, said: Any) -> Any:
    """verl's answer for one completion: a number, a dict with a `score`, or a list that begins with one."""
    if isinstance(said, Mapping):
        if "score" not in said:
            raise UserError(f"reward {name!r} returned a dict with {_keys(said)}; expected a `score` in it")
        return _result(said["score"], {name: value for name, value in said.items() if name != "score"})
    return said[0] if isinstance(said, list | tuple) and said else said


def _result(value: Any, more: Mapping[str, Any]) -> Any:
    """The value, with the rest for people. What is no number is left to the caller to complain of."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool | int | float) and number == number:
        return RewardResult(float(number), "ok", ", ".join(f"{name}={_plain(found)}" for name, found in more.items()))
    return value


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _list(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values
