"""Reward from a learned model: a checkpoint of a run with algorithm.type reward, or any sequence classification model
of one output.

Knows nothing about who asks. Texts are tokenised as they were when such a model was trained, with its own tokenizer and
chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.scoring_model import ScoringModel, check_scoring_model, load_scoring_model
from rewards.texts import Completion


def reward_model(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    path: str,
    finish_reasons: Sequence[str] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    **columns: Any,
) -> list[float]:
    """The model's score of each completion behind its prompt.

    Args:
        path: the model's folder, or a name on the Hub. A PEFT adapter's folder works too.
        dtype: of its weights.
        device: where it runs; without one on the GPU, if this process has one.
    """
    judge = load_scoring_model(path, dtype, device)
    reasons = finish_reasons if finish_reasons is not None else ["stop"] * len(completions)
    groups = [
        _read(judge, prompt, completion, reason == "stop")
        for prompt, completion, reason in zip(prompts, completions, reasons, strict=True)
    ]
    return [score for (score,) in judge.scores(groups)]


def check_reward_model(
    path: str | None = None, dtype: str = "float32", device: str | None = None, **other: Any
) -> None:
    """For before a run starts: raise UserError when there is no model at `path`, or for args that mean nothing."""
    check_scoring_model("reward_model", "reward", path, dtype, other, "path, dtype and device")


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
