"""From the configuration to engines. The table of generator engines is here."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from rlft.config import Config
from rlft.config.derived import draws, generator_engine
from rlft.data.tokenizer import load_tokenizer
from rlft.engines.scoring import FrozenScorer
from rlft.engines.transport import ChannelSeat
from rlft.errors import UserError
from rlft.models.load import check_language_model, num_logits
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


_OLDEST, _TOO_NEW = (0, 26), (0, 33)  # of vLLM, as in pyproject.toml
ENGINES: dict[str, Callable[[Config, str, str, float], Engine]] = {"transformers": _transformers, "vllm": _vllm}


def check_engine(config: Config) -> None:
    """For before a run starts: raise UserError when the generator engine is not installed here."""
    if generator_engine(config) != "vllm":
        return
    if find_spec("vllm") is None:
        raise UserError(
            "generator.engine: vllm is not installed here. With a GPU: pip install 'rlft[vllm]'; without one: see "
            "`make vllm` in the README. Or use --generator.engine transformers."
        )
    found = _vllm_version()
    if found is not None and not _OLDEST <= found < _TOO_NEW:
        raise UserError(
            f"generator.engine: vLLM {'.'.join(map(str, found))} is installed; rlft drives "
            f"{'.'.join(map(str, _OLDEST))} to below {'.'.join(map(str, _TOO_NEW))}. Install one of these (pip install "
            "'rlft[vllm]'), or use --generator.engine transformers."
        )


def _vllm_version() -> tuple[int, ...] | None:
    """(0, 32) for 0.32.1, without importing it; None when it does not say."""
    spec = find_spec("vllm")
    files = (
        [Path(spec.origin).with_name(name) for name in ("_version.py", "__init__.py")] if spec and spec.origin else []
    )
    text = "".join(file.read_text() for file in files if file.is_file())
    found = re.search(r"version(?:__)? *= *['\"](\d+)\.(\d+)", text)
    return None if found is None else tuple(map(int, found.groups()))


def make_generator(config: Config, device: str, name: str = "generator", num_gpus: float = 0.0) -> Engine:
    """The generator that the configuration asks for. `name` stands in its error messages."""
    check_engine(config)
    return ENGINES[generator_engine(config)](config, device, name, num_gpus)


def make_scorer(config: Config, device: str, role: str = "scorer") -> FrozenScorer:
    """The reference policy, or the `teacher`. Raises UserError for a teacher with another vocabulary."""
    model, learner, width, from_data = config.model, config.learner, 1 << 30, 1.0
    if role == "teacher":
        check_language_model(str(config.teacher.path), "teacher.path")
        _check_vocabulary(config)
        width = num_logits(str(model.path))
        model = model.model_copy(update={"path": config.teacher.path, "adapter": None, "quantization": None})
        from_data = config.algorithm.teacher_temperature
    budget, chunk = learner.tokens_per_micro_batch, learner.tokens_per_logit_chunk
    temperature = config.generator.temperature if draws(config) else from_data
    return FrozenScorer(model, temperature, budget, chunk, device, width)


def _check_vocabulary(config: Config) -> None:
    """The same tokens under the same numbers: a teacher scores the student's token ids as they are."""
    student = load_tokenizer(str(config.model.path), None).get_vocab()
    try:
        teacher = load_tokenizer(str(config.teacher.path), None).get_vocab()
    except UserError as error:
        raise UserError(str(error).replace("model.path", "teacher.path")) from error
    odd = [token for token, number in student.items() if teacher.get(token) != number]
    if odd:
        raise UserError(
            f"teacher.path: {config.teacher.path} has another vocabulary than model.path: {len(odd)} of "
            f"{len(student)} tokens differ (the first: {odd[0]!r}). Distillation by tokens needs the same one."
        )
