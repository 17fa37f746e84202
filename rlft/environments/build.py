"""From the configuration to a generator whose samples have several turns."""

from __future__ import annotations

from rlft.config import Config, derived
from rlft.data.tokenizer import end_tokens, load_tokenizer
from rlft.environments.episodes import EpisodeGenerator, Limits
from rlft.environments.load import BoundEnvironment, load_environment
from rlft.environments.turns import Turns
from rlft.environments.worker import Runner
from rlft.models.load import window
from rlft.roles import Generator


def configured_environment(config: Config) -> BoundEnvironment | None:
    """The environment that the configuration names, if it names one. Raises UserError when it is not usable."""
    return None if config.environment is None else load_environment(config.environment)


def make_turns(config: Config, environment: BoundEnvironment) -> Turns:
    """What makes token ids of the environment's words. The model must be there."""
    path = str(config.model.path)
    tokenizer = load_tokenizer(path, config.model.chat_template)
    role, tools = environment.kind.role, environment.tools
    return Turns(tokenizer, end_tokens(path, tokenizer), role, tools, config.data.system_prompt)


def make_episodes(
    config: Config, environment: BoundEnvironment, generator: Generator, runner: Runner
) -> EpisodeGenerator:
    """`generator` with the configured environment around it, whose instances live in `runner`."""
    room = derived.window(config, window(str(config.model.path), config.model.adapter))
    limits = Limits(environment.settings.max_turns, room, config.cluster.stage_timeout_s)
    return EpisodeGenerator(generator, runner, make_turns(config, environment), limits)
