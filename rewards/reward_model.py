"""Reward from a learned model: a checkpoint of a run with algorithm.type reward, or any sequence classification model
of one output.

Knows nothing about who asks. Texts are tokenised as they were when such a model was trained, with its own tokenizer and
chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.ensemble import COMBINED, check_ensemble, each, normalised
from rewards.scoring_model import ScoringModel, check_scoring_model, load_scoring_model
from rewards.texts import Completion
from rlft.samples import RewardResult


def reward_model(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    path: str | Sequence[str],
    finish_reasons: Sequence[str] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    combine: str | None = None,
    doubt: float | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    **columns: Any,
) -> list[RewardResult]:
    """The model's score of each completion behind its prompt, or what several models come to.

    Args:
        path: the model's folder, or a name on the Hub. A PEFT adapter's folder works too. A list: an ensemble.
        dtype: of its weights.
        device: where it runs; without one on the GPU, if this process has one.
        combine: of an ensemble: `mean` (the default), `min` or `conservative`, see rewards.ensemble.
        doubt: for conservative, how much the variance between models takes away (1).
        mean, std: of each model's scores on some data, which are taken out of them; a number for all, or a list.
    """
    paths = [path] if isinstance(path, str) else list(path)
    said = [_scores(load_scoring_model(one, dtype, device), prompts, completions, finish_reasons) for one in paths]
    scores_MN = np.array(said, dtype=np.float64)
    if mean is not None:
        scores_MN = normalised(scores_MN, each("mean", mean, len(paths)), each("std", std, len(paths)))
    values_N = COMBINED[combine or "mean"](scores_MN, 1.0 if doubt is None else doubt)
    details = [" ".join(f"{score:.4g}" for score in own) if len(paths) > 1 else "" for own in scores_MN.T]
    return [RewardResult(float(value), "ok", why) for value, why in zip(values_N, details, strict=True)]


def _scores(
    judge: ScoringModel, prompts: Sequence[Any], completions: Sequence[Completion], finish_reasons: Sequence[str] | None
) -> list[float]:
    reasons = finish_reasons if finish_reasons is not None else ["stop"] * len(completions)
    groups = [
        _read(judge, prompt, completion, reason == "stop")
        for prompt, completion, reason in zip(prompts, completions, reasons, strict=True)
    ]
    return [score for (score,) in judge.scores(groups)]


def check_reward_model(
    path: str | list[str] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    combine: str | None = None,
    doubt: float | None = None,
    mean: Any = None,
    std: Any = None,
) -> None:
    """For before a run starts: raise UserError when there is no model at `path`, or for args that mean nothing."""
    for one in path if isinstance(path, list) else [path]:
        check_scoring_model("reward_model", "reward", one, dtype)
    check_ensemble([path] if isinstance(path, str) else path or [], combine, doubt, mean, std)


def _read(judge: ScoringModel, prompt: Any, completion: Completion, ended: bool) -> Any:
    """The sample as the model reads it, tokenised as pairs are for its training. What did not end has no end token, but
    an empty completion, of which nothing else is there to be judged."""
    from rlft.config.data import DataConfig
    from rlft.data.examples import worked_examples
    from rlft.data.reading import Rows
    from rlft.data.scores import scored_at_end
    from rlft.data.shapes import DataShape

    chat = not isinstance(prompt, str)
    answer = completion if isinstance(completion, str) else [dict(turn) for turn in completion]
    row = {"prompt": list(prompt) if chat else prompt, "completion": answer}
    shape = DataShape("messages" if chat else "text", "prompt", "completion", None, 1, ())
    read = Rows([row], ["completion"], "completions")
    (group,) = worked_examples(read, shape, DataConfig(train_on="last"), judge.tokenizer, judge.end, refuse_empty=False)
    sample = group.samples[0]
    return group.with_samples([scored_at_end(sample if ended or sample.num_trained < 2 else _unended(sample))])


def _unended(sample: Any) -> Any:
    from rlft.samples import Sample

    return Sample.given(sample.token_ids[:-1], sample.loss_mask[:-1], sample.text)


reward_model.check_args = check_reward_model  # type: ignore[attr-defined]  # called when a run looks at its functions
