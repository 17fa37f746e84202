"""Reward from a learned model: a checkpoint of a run with algorithm.type reward, or any sequence classification model,
also of several outputs that are weighed against each other.

Knows nothing about who asks. Texts are tokenised as they were when such a model was trained, with its own tokenizer and
chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewards.ensemble import COMBINED, check_ensemble, each, normalised
from rewards.scoring_model import ScoringModel, check_scoring_model, load_scoring_model, output_names
from rewards.texts import Completion
from rlft.errors import UserError
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
    weights: Mapping[str, float] | None = None,
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
        weights: of a model of several outputs (helpful, verbose ...): what each counts, by its name in the model's
            id2label; those without a name here count 0. The score is the sum.
    """
    paths = [path] if isinstance(path, str) else list(path)
    factors = [_factors(one, weights) for one in paths]
    said = [
        _outputs(load_scoring_model(one, dtype, device, len(own)), prompts, completions, finish_reasons)
        for one, own in zip(paths, factors, strict=True)
    ]
    scores_MN = np.array([outputs @ own for outputs, own in zip(said, factors, strict=True)])
    if mean is not None:
        scores_MN = normalised(scores_MN, each("mean", mean, len(paths)), each("std", std, len(paths)))
    values_N = COMBINED[combine or "mean"](scores_MN, 1.0 if doubt is None else doubt)
    details = [" ".join(f"{score:.4g}" for score in own) if len(paths) > 1 else "" for own in scores_MN.T]
    if weights is not None and len(paths) == 1:
        named = output_names(paths[0])
        details = [", ".join(f"{n} {o:.4g}" for n, o in zip(named, own, strict=True)) for own in said[0]]
    return [RewardResult(float(value), "ok", why) for value, why in zip(values_N, details, strict=True)]


def _factors(path: str, weights: Mapping[str, float] | None) -> np.ndarray:
    """What each output of the model counts, [K]."""
    if weights is None:
        return np.ones(1)
    return np.array([weights.get(name, 0.0) for name in output_names(path)])


def _outputs(
    judge: ScoringModel, prompts: Sequence[Any], completions: Sequence[Completion], finish_reasons: Sequence[str] | None
) -> np.ndarray:
    """Of the N completions, float64 [N, K]."""
    reasons = finish_reasons if finish_reasons is not None else ["stop"] * len(completions)
    groups = [
        _read(judge, prompt, completion, reason == "stop")
        for prompt, completion, reason in zip(prompts, completions, reasons, strict=True)
    ]
    return np.array([score for (score,) in judge.scores(groups)], dtype=np.float64).reshape(len(groups), -1)


def check_reward_model(
    path: str | list[str] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    combine: str | None = None,
    doubt: float | None = None,
    mean: Any = None,
    std: Any = None,
    weights: Any = None,
) -> None:
    """For before a run starts: raise UserError when there is no model at `path`, or for args that mean nothing."""
    for one in path if isinstance(path, list) else [path]:
        check_scoring_model("reward_model", "reward", one, dtype, several=weights is not None)
        if weights is not None:
            assert one is not None  # looked at above
            _check_weights(one, weights)
    check_ensemble([path] if isinstance(path, str) else path or [], combine, doubt, mean, std)


def _check_weights(path: str, weights: Any) -> None:
    named = output_names(path)
    problem = None
    if not isinstance(weights, Mapping) or not weights:
        problem = f"is {weights!r}; expected a number for each output that counts, such as {{{named[0]}: 1.0}}"
    elif len(named) == 1:
        problem = f"has no effect: {path} has one output; take it out, and set the function's weight"
    elif unknown := [name for name in weights if name not in named]:
        problem = f"names {', '.join(map(repr, unknown))}; {path} has the outputs {', '.join(named)}"
    elif not all(type(value) in (int, float) and np.isfinite(value) for value in weights.values()):
        problem = f"is {dict(weights)}; expected numbers"
    elif not any(weights.values()):
        problem = "are all 0, so every score would be 0"
    if problem is not None:
        raise UserError(f"rewards: reward_model's weights {problem}")


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
