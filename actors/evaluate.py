"""`rlft eval`: a checkpoint's accuracy with its run's own generator and rewards, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from actors import inline, launch
from actors.inline import InlineRewarder
from actors.process import prepare
from rewards.combine import RewardSet
from rlft.config import Config
from rlft.config.derived import environment_weight
from rlft.config.load import load_config
from rlft.data.tokenizer import load_tokenizer
from rlft.engines.weights import pack_weights
from rlft.environments.build import configured_environment
from rlft.errors import UserError
from rlft.evaluation.text_metrics import check_installed
from rlft.models.load import load_checkpoint, trainable_names
from rlft.runs.checkpoints import Checkpoints, read_state, verify

_HERE = [  # whatever shared the work of the run: here it is one process
    "--cluster.mode=inline", "--generator.num_actors=1", "--rewards.num_actors=1", "--scorer.num_actors=1",
    "--learner.num_ranks=1", "--critic.num_ranks=1", "--teacher.num_actors=1", "--cluster.weight_transport=memory",
]  # fmt: skip


def evaluate(target: str, overrides: Sequence[str] = ()) -> dict[str, float | str]:
    """Metrics of the newest checkpoint of a run folder, or of one checkpoint.

    `overrides` change the run's configuration (`--evaluation.path FILE`). Raises UserError when there is nothing to
    evaluate or nothing to evaluate with.
    """
    run, checkpoint = find_checkpoint(Path(target))
    config = load_config(run / "config.yaml", [*_HERE, *overrides], purpose="evaluate")
    if config.cluster.mode != "inline":
        raise UserError(f"--cluster.mode {config.cluster.mode}: rlft eval runs in this process; leave the key out")
    if config.evaluation.path is None:
        raise UserError(f"{run} was configured without held-out data (evaluation.path). Give some with --data FILE.")
    if not config.rewards.functions and config.environment is None and not config.evaluation.metrics:
        raise UserError(
            f"{run} got its reward functions from a Python script, so they are not in its config.yaml. Name them: "
            "--rewards.functions '[{function: my_rewards.py:my_reward}]'"
        )
    check_installed(config.evaluation.metrics)
    prepare(config, config.generator.gpus)
    config = launch.with_model(config, run)
    return {"checkpoint": str(checkpoint)} | _measure(config, checkpoint, int(read_state(checkpoint)["step"]))


def _measure(config: Config, checkpoint: Path, version: int) -> dict[str, float | str]:
    environment = configured_environment(config)
    tokenizer = load_tokenizer(str(checkpoint), config.model.chat_template)
    rewards = RewardSet(config.rewards, environment_weight=environment_weight(config), may_be_empty=True)
    evaluation = launch.load_evaluation(config, tokenizer, environment, has_rewards=not rewards.is_empty)
    assert evaluation is not None
    rewards.check_columns(evaluation.prompts[0].columns)
    with inline.generator(config, environment) as generator:
        model = load_checkpoint(config.model, checkpoint)
        generator.load(pack_weights(model.named_parameters(), version, True, trainable_names(model)))
        metrics = evaluation(generator, InlineRewarder(rewards), version=version)
    return metrics | ({"rewards": "none in the configuration, so no accuracy"} if rewards.is_empty else {})


def find_checkpoint(target: Path) -> tuple[Path, Path]:
    """(run folder, checkpoint) that `target` names."""
    if (target / "config.yaml").is_file():
        latest = Checkpoints(target / "checkpoints", keep=1).latest()
        if latest is None:
            raise UserError(f"{target} has no checkpoint yet: nothing to evaluate")
        return target, latest[0]
    run = target.resolve().parent.parent
    if not (run / "config.yaml").is_file():
        what = "does not exist" if not target.exists() else "is neither a run folder nor a checkpoint in one"
        raise UserError(f"{target} {what}: expected a folder such as runs/x or runs/x/checkpoints/step-000100")
    problems = verify(target)
    if problems:
        raise UserError(f"{target}: the checkpoint is corrupt: {'; '.join(problems[:3])}")
    return run, target
