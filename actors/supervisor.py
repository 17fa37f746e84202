"""Waiting for actors: bounded, prompt about deaths, and always able to say who was doing what.

Every wait on a Ray object in this project goes through here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rlft.errors import RunError, UserError

_DEATH_KNOWN_S = 5.0  # Ray names a dead process within one or two


class DeathError(RunError):
    """The process of an actor is gone."""


def get_each(waiting: Mapping[Any, str], stage: str, timeout_s: float) -> Iterator[tuple[Any, Any]]:
    """Yield (ref, value) in the order of completion. The first failure is raised at once, whatever else is pending:
    with learner ranks, the others of a dead rank would wait for it until their own time-out.

    Args:
        waiting: object refs, and for each the name of the actor that works on it.
        stage: what they are doing, for messages.
        timeout_s: bound on the whole wait.
    """
    pending, deadline = dict(waiting), time.monotonic() + timeout_s
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            names = ", ".join(sorted(set(pending.values())))
            raise RunError(
                f"{stage}: no answer from {names} within {timeout_s:.0f} s ({len(pending)} of {len(waiting)} answers "
                "outstanding). cluster.stage_timeout_s and cluster.start_timeout_s set the limits; "
                f"the actors' own output is in {log_folder()}"
            )
        yield ready[0], value_of(ready[0], pending.pop(ready[0]), stage)


def get_all(refs: Sequence[Any], names: Sequence[str], stage: str, timeout_s: float) -> list[Any]:
    """Values of all refs, in their order. See get_each."""
    values = dict(get_each(dict(zip(refs, names, strict=True)), stage, timeout_s))
    return [values[ref] for ref in refs]


def value_of(ref: Any, name: str, stage: str) -> Any:
    """The value of a finished ref; failures become errors that name the actor and the stage."""
    try:
        return ray.get(ref, timeout=60)  # finished already: only the transfer of its bytes is waited for
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError | RunError):
            raise cause from None
        raise RunError(f"{stage}: {name} failed\n{error}") from error
    except RayActorError as error:
        if getattr(error, "actor_init_failed", False):
            for kind in (UserError, RunError):  # Ray keeps only the text of what was raised
                _, mark, text = str(error).rpartition(f"rlft.errors.{kind.__name__}: ")
                if mark:
                    raise kind(text.strip()) from None
            raise RunError(
                f"{stage}: {name} could not start: {str(error).strip().splitlines()[-1]}\n{error}"
            ) from error
        text = " ".join(str(error).split())  # of Ray's many lines the one that says how
        why = text.partition("The actor is dead ")[2].partition(" Some common causes")[0].rstrip(".") or text
        raise DeathError(
            f"{stage}: {name} died ({why}). Its output is in {log_folder()}. Common causes: out of "
            "memory (dmesg tells), a killed node. Go on from the last checkpoint with --resume auto."
        ) from error
    except GetTimeoutError as error:
        raise RunError(f"{stage}: the answer of {name} could not be fetched within 60 s") from error
    except RayError as error:
        raise RunError(f"{stage}: the answer of {name} was lost ({error})") from error


@contextmanager
def deaths_named(actors: Mapping[str, Any]) -> Iterator[None]:
    """An error within this block that may come of the death of one of these actors is raised as that death: whoever
    exchanges tensors with a process that dies often fails before Ray knows of the death."""
    try:
        yield
    except DeathError:
        raise
    except RunError as error:
        asked = {actor.__ray_ready__.remote(): name for name, actor in actors.items()}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_DEATH_KNOWN_S)  # busy ones stay silent
        for ref in answered:
            try:
                value_of(ref, asked[ref], "looking for what caused an error")
            except DeathError as death:
                raise DeathError(f"{death}\nThe error: {error}") from error
        raise


def merge_streams(streams: Mapping[Any, str], stage: str, timeout_s: float) -> Iterator[tuple[str, Any]]:
    """(actor's name, value) of several streaming calls as they come. `timeout_s` bounds the wait for each next one."""
    pending = dict(streams)
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=timeout_s, fetch_local=False)
        if not ready:
            names = ", ".join(sorted(set(pending.values())))
            raise RunError(f"{stage}: nothing from {names} for {timeout_s:.0f} s; their output is in {log_folder()}")
        stream: Any = ready[0]
        try:
            ref = next(stream)
        except StopIteration:
            del pending[stream]
            continue
        yield pending[stream], value_of(ref, pending[stream], stage)


def log_folder() -> str:
    """Folder with the logs of all actors on this node."""
    context = ray.get_runtime_context()
    return f"{context.get_temp_dir()}/{context.get_session_name()}/logs"
