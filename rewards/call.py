"""Calls one reward function for one group, with a limit on its time, and turns what it says into results.

Code of users runs here: it may raise, hang or return nonsense, and none of these may pass as a reward of 0. Knows
nothing about other reward functions or weights. Environments call their users' code through `Caller` too.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import numbers
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from rewards.deadline import set_deadline
from rewards.load import BoundReward
from rlft.errors import RunError, UserError
from rlft.samples import Group, RewardResult, RewardStatus, Sample

MAX_ABANDONED = 8  # calls that ran out of time and still run; more would eat the machine's cores and memory
MAX_DETAIL = 300  # characters of an error that are kept with each sample
_ENTRIES = numbers.Real | RewardResult | Exception
_TYPES = {"detail": str, "seconds": numbers.Real, "counts": Mapping}
_WITH_VALUE, _WITHOUT_VALUE = ("ok", "wrong", "unparsed"), ("error", "none")


class Caller:
    """Runs calls, each in a daemon thread of its own, and counts those that it gave up waiting for.

    A thread cannot be killed: an abandoned call goes on until it returns. A call that never lets go of the interpreter
    (one long C call such as a catastrophic regular expression) cannot be given up at all.
    """

    def __init__(self, section: str = "rewards", max_abandoned: int = MAX_ABANDONED) -> None:
        """`section` of the configuration stands in messages."""
        self._section, self._max_abandoned = section, max_abandoned
        self._abandoned: list[tuple[str, threading.Thread]] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Caller, (self._section, self._max_abandoned)  # threads stay where they are

    def results(
        self, reward: BoundReward, group: Group, earlier: Mapping[str, Sequence[float | None]] | None = None
    ) -> list[RewardResult]:
        """What `reward` says of each sample of `group`; `earlier`: by name, what functions before it have said. Raises
        UserError when the function itself is wrong (its parameters, the number or type of its values), RunError when
        too many abandoned calls still run."""
        arguments = reward.arguments(_provided(group) | {"earlier_rewards": dict(earlier or {})})
        num_samples = len(group.samples)
        begin = time.perf_counter()
        outcome = self.run(reward.name, reward.function, arguments, reward.timeout_s)
        seconds = (time.perf_counter() - begin) / max(num_samples, 1)  # each sample's share: shares add up to the call
        if outcome is None:
            detail = f"took longer than timeout_s {reward.timeout_s:g}"
            return [RewardResult(None, "timeout", detail, seconds)] * num_samples
        if isinstance(outcome, UserError):
            raise outcome
        if isinstance(outcome, BaseException):
            return [RewardResult(None, "error", error_detail(outcome, reward.file), seconds)] * num_samples
        values = _values(reward.name, outcome[0], num_samples)
        return [_result(reward, value, seconds) for value in values]

    def run(
        self, name: str, function: Callable[..., Any], arguments: dict[str, Any], timeout_s: float
    ) -> tuple[Any] | BaseException | None:
        """(what the call returned,), what it raised, or None when it ran out of time. Raises RunError when too many
        abandoned calls still run. May be used by several threads at once."""
        call = _Call(function, arguments, timeout_s)
        thread = threading.Thread(target=call.run, name=f"{self._section} {name}", daemon=True)
        thread.start()
        if call.done.wait(timeout_s):
            return call.outcome
        call.cancel()
        with self._lock:
            self._abandoned = [(name, old) for name, old in self._abandoned if old.is_alive()]
            self._abandoned.append((name, thread))
            names, count = sorted({name for name, _ in self._abandoned}), len(self._abandoned)
        if count > self._max_abandoned:
            raise RunError(
                f"{self._section}: {count} calls that ran out of time are still running (functions: "
                f"{', '.join(names)}; at most {self._max_abandoned} may). Make the function give up by itself, or "
                f"raise its timeout_s (now {timeout_s:g})."
            )
        return None


class _Call:
    """One call in its thread. `outcome` is there when `done` is set."""

    def __init__(self, function: Callable[..., Any], arguments: dict[str, Any], timeout_s: float) -> None:
        self.done = threading.Event()
        self.outcome: tuple[Any] | BaseException | None = None
        self._function = function
        self._arguments = arguments
        self._deadline = time.monotonic() + timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(self) -> None:
        set_deadline(self._deadline)
        try:
            value = self._function(**self._arguments)
            if inspect.isawaitable(value):
                value = asyncio.run(self._awaited(value))
            self.outcome = (value,)
        except BaseException as error:  # the user's code; sys.exit() in it must not pass unseen either
            self.outcome = error
        self.done.set()

    async def _awaited(self, value: Any) -> Any:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        return await value

    def cancel(self) -> None:
        """Ask an async function to stop; a plain one cannot be asked."""
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed just now
                self._loop.call_soon_threadsafe(self._task.cancel)


def _provided(group: Group) -> dict[str, Any]:
    """What every function is given, by keyword, one entry per sample."""
    num_samples, prompt = len(group.samples), group.prompt
    chat = prompt.messages is not None
    texts = [sample.own_text for sample in group.samples]
    provided: dict[str, Any] = {name: [value] * num_samples for name, value in prompt.columns.items()}
    provided["prompts"] = [[dict(turn) for turn in prompt.messages or ()] if chat else prompt.text for _ in texts]
    provided["completions"] = [_talk(sample) for sample in group.samples] if chat else texts
    provided["completion_ids"] = [sample.token_ids[sample.loss_mask].tolist() for sample in group.samples]
    provided["prompt_texts"] = [prompt.text for _ in texts]
    provided["finish_reasons"] = [sample.finish_reason for sample in group.samples]
    return provided


def _talk(sample: Sample) -> list[dict[str, Any]]:
    """Everything behind the prompt as messages."""
    return [dict(turn) for turn in sample.turns] or [{"role": "assistant", "content": sample.text}]


def _values(name: str, returned: Any, num_samples: int) -> Sequence[Any]:
    """What the function returned, as a list of the right length; numpy arrays and tensors count as lists."""
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(values, list | tuple):
        raise UserError(
            f"reward {name!r} returned a {type(returned).__name__}. Expected a list with one number (or None) for "
            f"each of the {num_samples} completions."
        )
    if len(values) != num_samples:
        raise UserError(
            f"reward {name!r} returned {len(values)} values for {num_samples} completions. Expected one number (or "
            "None) for each, in the same order."
        )
    for place, value in enumerate(values):
        if value is not None and not isinstance(value, _ENTRIES) and not _is_scalar(value):
            raise UserError(
                f"reward {name!r} returned {str(value)[:80]!r} (a {type(value).__name__}) as value {place}. Expected a "
                "number, a RewardResult or None."
            )
    return values


def _is_scalar(value: Any) -> bool:
    return hasattr(value, "item") and getattr(value, "ndim", None) == 0 and not isinstance(value.item(), str)


def _result(reward: BoundReward, value: Any, seconds: float) -> RewardResult:
    if isinstance(value, RewardResult):
        return _checked(reward.name, value, seconds)
    if isinstance(value, Exception):  # of one completion, from a function that is called for each
        return RewardResult(None, "error", error_detail(value, reward.file), seconds)
    if value is None:
        return RewardResult(None, "none", "returned None", seconds)
    number = _float(value.item() if hasattr(value, "item") else value)
    if not math.isfinite(number):
        return RewardResult(None, "none", f"returned {number}", seconds)
    return RewardResult(number, "ok", "", seconds)


def _checked(name: str, result: RewardResult, seconds: float) -> RewardResult:
    """What a function says in full: its own seconds where it gives any. Raises UserError for a status without its
    value, or a value that its status cannot have."""
    _check_types(name, result)
    number = None if result.value is None else _float(result.value)
    if number is not None and not math.isfinite(number):
        return RewardResult(None, "none", f"returned {number}; {result.detail}"[:MAX_DETAIL], result.seconds or seconds)
    needs, has = result.status in _WITH_VALUE, number is not None
    known = result.status in get_args(RewardStatus) and result.status != "gated"
    if (needs and not has) or (has and result.status in _WITHOUT_VALUE) or not known:
        raise UserError(
            f"reward {name!r} returned a RewardResult with status {result.status!r} and value {result.value}. Expected "
            f"a number with {' or '.join(_WITH_VALUE)}, None with {' or '.join(_WITHOUT_VALUE)}, either with timeout "
            "or refused."
        )
    return replace(result, value=number, detail=result.detail[:MAX_DETAIL], seconds=result.seconds or seconds)


def _check_types(name: str, result: RewardResult) -> None:
    """Raise UserError for a RewardResult of other types than it says."""
    wrong = next((field for field, kind in _TYPES.items() if not isinstance(getattr(result, field), kind)), None)
    if result.value is not None and not isinstance(result.value, numbers.Real) and not _is_scalar(result.value):
        wrong = "value"
    if wrong is None and not all(isinstance(count, numbers.Real) for count in result.counts.values()):
        wrong = "counts"
    if wrong is not None:
        raise UserError(
            f"reward {name!r} returned a RewardResult whose {wrong} is {str(getattr(result, wrong))[:80]!r}. Expected "
            "value: a number or None, detail: a text, seconds: a number, counts: numbers by name."
        )


def _float(value: Any) -> float:
    """The number; infinite where a whole number is larger than floats go."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def error_detail(error: BaseException, file: str | None) -> str:
    """Type, message and the last line of the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without the frame of _Call.run
    own = [frame for frame in frames if frame.filename == file] or frames
    where = f", at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
    return f"{type(error).__name__}: {error}"[:MAX_DETAIL] + where[:MAX_DETAIL]
