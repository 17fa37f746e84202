"""`rlft eval`: accuracy with the run's own generator and rewards, or perplexity, in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from actors import launch
from actors.held_out import measure_held_out
from actors.inline import InlineRewarder
from actors.process import prepare
from actors.targets import Target, check_overrides, find_target, serving
from rewards.combine import RewardSet
from rlft.config.derived import environment_weight, learns_from, makes_reward_model
from rlft.data.examples import load_examples
from rlft.data.tokenizer import end_tokens
from rlft.engines.scoring import FrozenScorer
from rlft.environments.build import configured_environment
from rlft.errors import UserError
from rlft.evaluation.perplexity import perplexity
from rlft.evaluation.text_metrics import check_installed
from rlft.models.load import window

_PERPLEXITY_KEYS = (
    "model.path", "model.dtype", "model.chat_template", "data.split", "data.*_column", "data.system_prompt",
    "data.apply_chat_template", "data.train_on", "data.too_long", "evaluation.path", "evaluation.max_rows",
    "generator.gpus", "learner.tokens_per_*", "cluster.threads",
)  # fmt: skip


def evaluate(target: str, overrides: Sequence[str] = ()) -> dict[str, float | str]:
    """Metrics of the newest checkpoint of a run folder, or of one checkpoint: of completions that it draws, or where
    the run learns from data and no reward is named, of held-out rows.

    `overrides` change the run's configuration (`--evaluation.path FILE`). Raises UserError when there is nothing to
    evaluate or nothing to evaluate with.
    """
    found = find_target(Path(target), overrides, "evaluate")
    config = found.config
    if config.evaluation.path is None:
        raise UserError(
            f"{found.run} was configured without held-out data (evaluation.path). Give some with --data FILE."
        )
    if learns_from(config.algorithm) and not config.rewards.functions and not config.evaluation.metrics:
        prepare(config, config.generator.gpus)
        return {"checkpoint": str(found.folder)} | measure_held_out(found)
    if makes_reward_model(config):
        raise UserError(f"{found.run} made a reward model, which draws nothing: leave rewards and metrics out.")
    if not config.rewards.functions and config.environment is None and not config.evaluation.metrics:
        raise UserError(
            f"{found.run} got its reward functions from a Python script, so they are not in its config.yaml. Name "
            "them: --rewards.functions '[{function: my_rewards.py:my_reward}]'"
        )
    check_installed(config.evaluation.metrics)
    prepare(config, config.generator.gpus)
    return {"checkpoint": str(found.folder)} | _measure(found)


def _measure(target: Target) -> dict[str, float | str]:
    config = target.config
    environment = configured_environment(config)
    rewards = RewardSet(config.rewards, environment_weight=environment_weight(config), may_be_empty=True)
    evaluation = launch.load_evaluation(config, target.tokenizer(), environment, has_rewards=not rewards.is_empty)
    assert evaluation is not None
    rewards.check_columns(evaluation.prompts[0].columns)
    told = rewards.facts()
    for fact in told.values():
        if "warning" in fact:
            print(f"warning: {fact['warning']}", file=sys.stderr)
    with serving(target, environment) as generator:
        metrics = evaluation(generator, InlineRewarder(rewards), version=target.version)
    return metrics | ({"rewards": "none in the configuration, so no accuracy"} if rewards.is_empty else {})


def measure_perplexity(target: str, overrides: Sequence[str] = ()) -> dict[str, float | str]:
    """Log-likelihood and perplexity of worked examples or documents (evaluation.path, rows and masks as for SFT) under
    a run's newest checkpoint, one checkpoint, or the model in a Hugging Face folder. See rlft.evaluation.perplexity.

    Raises UserError when there is nothing to measure, and for keys in `overrides` that do nothing here.
    """
    check_overrides(overrides, _PERPLEXITY_KEYS, "perplexity")
    found = find_target(Path(target), overrides, "score")
    if found.config.model.adapter is None:
        check_overrides(overrides, [key for key in _PERPLEXITY_KEYS if key != "model.path"], "a model's own weights")
    config, tokenizer = found.config, found.tokenizer()
    settings, learner = config.evaluation, config.learner
    if settings.path is None:
        raise UserError("--perplexity needs texts: give them with --data FILE, rows as for SFT.")
    prepare(config, config.generator.gpus)
    data = config.data.model_copy(update={"path": settings.path, "max_rows": settings.max_rows, "shuffle": False})
    examples = load_examples(
        data,
        tokenizer,
        window=window(found.whole, config.model.adapter),
        seed=config.run.seed,
        end=end_tokens(found.whole, tokenizer),
    )
    budget, chunk = learner.tokens_per_micro_batch, learner.tokens_per_logit_chunk
    scorer = FrozenScorer(found.model(found.device), 1.0, budget, chunk, found.device)
    metrics = perplexity(scorer, examples.examples, tokenizer)
    limit = f"; at most the first {settings.max_rows} rows (evaluation.max_rows)" if settings.max_rows else ""
    return {"model": str(found.folder), "data": examples.description + limit} | metrics
