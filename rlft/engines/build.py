"""From the configuration to engines. The table of generator engines is here."""

from __future__ import annotations

from collections.abc import Callable

from rlft.config import Config
from rlft.config.derived import generator_engine
from rlft.data.tokenizer import load_tokenizer
from rlft.engines.scoring import ReferenceScorer
from rlft.errors import UserError
from rlft.roles import Generator


def _transformers(config: Config, device: str, name: str) -> Generator:
    from rlft.engines.transformers import TransformersGenerator

    assert config.model.path is not None
    tokenizer = load_tokenizer(config.model.path, config.model.chat_template)
    return TransformersGenerator(config.model, tokenizer, config.generator.max_concurrent, device, name)


ENGINES: dict[str, Callable[[Config, str, str], Generator]] = {"transformers": _transformers}


def check_engine(config: Config) -> None:
    """For before a run starts: raise UserError when this version has no such generator engine."""
    engine = generator_engine(config)
    if engine not in ENGINES:
        raise UserError(
            f"generator.engine: {engine} is not part of this version; there is: {', '.join(ENGINES)}. "
            "Use --generator.engine transformers."
        )


def make_generator(config: Config, device: str, name: str = "generator") -> Generator:
    """The generator that the configuration asks for. `name` stands in its error messages."""
    check_engine(config)
    return ENGINES[generator_engine(config)](config, device, name)


def make_scorer(config: Config, device: str) -> ReferenceScorer:
    """The reference policy."""
    learner = config.learner
    budget, chunk = learner.tokens_per_micro_batch, learner.tokens_per_logit_chunk
    return ReferenceScorer(config.model, config.generator.temperature, budget, chunk, device)
