"""Reward from a model that scores each step of a completion: a checkpoint of a run with algorithm.type process_reward.

Knows nothing about who asks. Completions are split into steps and tokenised as they were when such a model was trained,
with its own tokenizer and chat template.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rewards.scoring_model import ScoringModel, check_scoring_model, load_scoring_model
from rewards.texts import Completion, completion_text
from rlft.errors import UserError

REDUCE: dict[str, Callable[[list[float]], float]] = {
    "min": min,
    "mean": lambda chances: sum(chances) / len(chances),
    "last": lambda chances: chances[-1],
    "product": math.prod,
}


def process_reward_model(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    path: str,
    separator: str = "\n",
    reduce: str = "min",
    dtype: str = "float32",
    device: str | None = None,
    **columns: Any,
) -> list[float | None]:
    """The chance that each step is good (sigmoid of its score), reduced to one number for each completion; None for a
    completion that has no step. The least is taken by Wang et al. 2023 (arXiv:2312.08935), the product by Lightman et
    al. 2023 (arXiv:2305.20050).

    Args:
        path: the model's folder, or a name on the Hub. A PEFT adapter's folder works too.
        separator: what stands between two steps: the data.step_separator that the model was trained with.
        reduce: min, mean, last or product.
        dtype: of its weights.
        device: where it runs; without one on the GPU, if this process has one.
    """
    from rlft.data.steps import split_steps

    steps = [split_steps(completion_text(completion), separator) for completion in completions]
    asked = [(prompt, found) for prompt, found in zip(prompts, steps, strict=True) if found]
    if not asked:
        return [None] * len(steps)
    judge = load_scoring_model(path, dtype, device)
    scores = iter(judge.scores(_read(judge, asked, separator)))
    return [REDUCE[reduce]([_sigmoid(score) for score in next(scores)]) if found else None for found in steps]


def check_process_reward_model(
    path: str | None = None,
    separator: str = "\n",
    reduce: str = "min",
    dtype: str = "float32",
    device: str | None = None,
) -> None:
    """For before a run starts: raise UserError when there is no model at `path`, or for args that mean nothing."""
    if not isinstance(reduce, str) or reduce not in REDUCE:
        raise UserError(f"rewards: process_reward_model's reduce is {reduce!r}; expected {', '.join(REDUCE)}")
    if not isinstance(separator, str) or not separator:
        raise UserError(
            f"rewards: process_reward_model's separator is {separator!r}; expected a text that is not empty"
        )
    check_scoring_model("process_reward_model", "process_reward", path, dtype)


def _read(judge: ScoringModel, asked: Sequence[tuple[Any, list[str]]], separator: str) -> list[Any]:
    """The samples as the model reads them, tokenised as rows of steps are for its training."""
    from rlft.config.data import DataConfig
    from rlft.data.reading import Rows
    from rlft.data.scores import scored_steps
    from rlft.data.steps import step_examples

    rows = [
        {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "completions": found,
            "labels": [True] * len(found),  # nobody asks for them
        }
        for prompt, found in asked
    ]
    data = DataConfig(step_separator=separator, prompt_column="prompt")
    read = Rows(rows, [f"completion {number}" for number in range(1, len(rows) + 1)], "completions")
    return [scored_steps(group) for group in step_examples(read, data, judge.tokenizer)]


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


process_reward_model.check_args = check_process_reward_model  # type: ignore[attr-defined]  # called when a run looks at its functions
