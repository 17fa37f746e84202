"""From what a configuration names to an environment class that can be made and called.

Everything that can be wrong before a run starts is found here. Knows nothing about tokens or threads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.config.environment import EnvironmentConfig
from rlft.environments.base import Environment
from rlft.environments.builtin import BUILTIN
from rlft.environments.tools import ToolEnvironment, tool_schemas
from rlft.errors import UserError
from rlft.lookup import Kind, find

_KIND = Kind("environment", "environment", "class", BUILTIN)


@dataclass(frozen=True)
class BoundEnvironment:
    """An environment class and how it is made. Sent to another process, the class is loaded there again."""

    settings: EnvironmentConfig
    folder: str  # that a relative file name starts from
    kind: type[Environment]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return load_environment, (self.settings, self.folder)

    @property
    def file(self) -> str | None:
        """Where the class is written, to find its lines in tracebacks."""
        return inspect.getsourcefile(self.kind)

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """JSON schemas of the tools, for the prompt; None when the environment has none."""
        return tool_schemas(self.kind) if issubclass(self.kind, ToolEnvironment) else None

    def make(self) -> Environment:
        """An instance, for one sample."""
        return self.kind(**self.settings.args)


def load_environment(settings: EnvironmentConfig, folder: str | None = None) -> BoundEnvironment:
    """The class that `settings.function` names; a relative file starts from `folder`, else from where this process
    works. Raises UserError when it is not there, is no environment, does not take the args, or has tools that cannot be
    described."""
    folder = str(Path.cwd()) if folder is None else folder
    name, kind = settings.function, find(settings.function, folder, _KIND)
    if not (isinstance(kind, type) and issubclass(kind, Environment)):
        what = f"the class {kind.__name__}" if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise UserError(
            f"environment: {name} is {what}. Expected a class that derives from rlft.Environment or "
            "rlft.ToolEnvironment."
        )
    if kind.step is Environment.step:
        raise UserError(f"environment: {name} does not define step(self, completion), so it could never answer.")
    try:
        signature = inspect.signature(kind)
        signature.bind(**settings.args)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"environment: {name} cannot be made with environment.args {settings.args or 'left empty'}: {error}. It "
            f"takes {inspect.signature(kind) if kind.__init__ is not object.__init__ else 'no arguments'}."
        ) from None
    bound = BoundEnvironment(settings, folder, kind)
    _ = bound.tools
    return bound
