"""From the configuration to engines. The table of generator engines is here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol

from rlft.config import Config
from rlft.config.derived import generator_engine
from rlft.data.tokenizer import load_tokenizer
from rlft.engines.scoring import FrozenScorer
from rlft.engines.transport import ChannelSeat
from rlft.errors import UserError
from rlft.roles import Generator


class Engine(Generator, Protocol):
    """A generator that may have processes of its own."""

    def num_receivers(self) -> int:
        """How many processes take over weights."""
        ...

    def join(self, seat: ChannelSeat) -> None:
        """Take part in the broadcast of weights: `seat` is the first receiver's, others have the ranks behind it."""
        ...

    def close(self) -> None:
        """Stop them."""
        ...


def _transformers(config: Config, device: str, name: str, num_gpus: float) -> Engine:
    from rlft.engines.transformers import TransformersGenerator

    assert config.model.path is not None
    tokenizer = load_tokenizer(config.model.path, config.model.chat_template)
    return TransformersGenerator(config.model, tokenizer, config.generator.max_concurrent, device, name)


def _vllm(config: Config, device: str, name: str, num_gpus: float) -> Engine:
    from rlft.engines.vllm.engine import VllmGenerator

    return VllmGenerator(config, device, num_gpus, name)


ENGINES: dict[str, Callable[[Config, str, str, float], Engine]] = {"transformers": _transformers, "vllm": _vllm}


def check_engine(config: Config) -> None:
    """For before a run starts: raise UserError when the generator engine is not installed here."""
    if generator_engine(config) == "vllm" and find_spec("vllm") is None:
        raise UserError(
            "generator.engine: vllm is not installed here. With a GPU: pip install 'rlft[vllm]'; without one: see "
            "`make vllm` in the README. Or use --generator.engine transformers."
        )


def make_generator(config: Config, device: str, name: str = "generator", num_gpus: float = 0.0) -> Engine:
    """The generator that the configuration asks for. `name` stands in its error messages."""
    check_engine(config)
    return ENGINES[generator_engine(config)](config, device, name, num_gpus)


def make_scorer(config: Config, device: str, role: str = "scorer") -> FrozenScorer:
    """The reference policy, or the `teacher`. Raises UserError for a teacher with another vocabulary."""
    model, learner = config.model, config.learner
    if role == "teacher":
        model = model.model_copy(update={"path": config.teacher.path, "adapter": None})
        _check_vocabulary(config)
    budget, chunk = learner.tokens_per_micro_batch, learner.tokens_per_logit_chunk
    return FrozenScorer(model, config.generator.temperature, budget, chunk, device)


def _check_vocabulary(config: Config) -> None:
    """The same tokens under the same numbers: a teacher scores the student's token ids as they are."""
    student, teacher = (
        load_tokenizer(str(path), None).get_vocab() for path in (config.model.path, config.teacher.path)
    )
    odd = [token for token, number in student.items() if teacher.get(token) != number]
    if odd:
        raise UserError(
            f"teacher.path: {config.teacher.path} has another vocabulary than model.path: {len(odd)} of "
            f"{len(student)} tokens differ (the first: {odd[0]!r}). Distillation by tokens needs the same one."
        )
