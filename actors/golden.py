"""`rlft eval --golden`: the prompts of a golden set, answered by a model and by its base, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.process import prepare
from actors.targets import Target, check_overrides, compared_with, find_target, serving
from rlft.config import derived
from rlft.evaluation import golden_report
from rlft.evaluation.golden import GoldenSet, Outcome, golden_prompts, judge, load_golden
from rlft.loops.rollouts import sampling_params
from rlft.models.load import window
from rlft.rollout import draw

_KEYS = (
    "model.path", "model.dtype", "model.chat_template", "data.system_prompt", "data.apply_chat_template",
    "generator.engine*", "generator.max_*", "generator.min_new_tokens", "generator.stop*", "generator.gpus",
    "cluster.threads",
)  # fmt: skip


@dataclass(frozen=True)
class GoldenResult:
    """What `rlft eval --golden` found."""

    lines: str  # for people
    reasons: list[str]  # why it is not all fine


def compare(target: str, path: str, against: str | None = None, overrides: Sequence[str] = ()) -> GoldenResult:
    """Ask a model and what it is compared with: `against` (a run, a checkpoint or a Hugging Face folder), by default
    what the run's training started from. Both answer greedily, as the run's generator is configured, in one turn.

    Raises UserError when the file or a model cannot be used, and for keys in `overrides` that do nothing here.
    """
    check_overrides(overrides, _KEYS, "a golden set")
    now = find_target(Path(target), overrides, "score")
    golden = load_golden(path, now.config.generator.max_new_tokens)
    base = compared_with(now, against)
    prepare(now.config, now.config.generator.gpus)
    num = len(golden.cases)
    lines = [f"golden set {path}: {num} case{'' if num == 1 else 's'}, answered greedily", f"  base  {base.folder}"]
    lines.append(f"  now   {now.folder}")
    if now.config.environment is not None:
        lines.append("  the run's environment takes no part: each case is one turn")
    before, after = _outcomes(golden, base), _outcomes(golden, now)
    table = golden_report.table(golden, before, after)
    return GoldenResult("\n".join([*lines, "", table]), golden_report.reasons(golden, before, after))


def _outcomes(golden: GoldenSet, target: Target) -> list[Outcome]:
    config = target.config
    params = replace(sampling_params(config), num_samples=1, temperature=0.0)
    room = derived.window(config, window(target.whole, config.model.adapter))
    prompts = golden_prompts(
        golden, config.data, target.tokenizer(), window=room, max_new_tokens=params.max_new_tokens,
    )  # fmt: skip
    with serving(target) as generator:
        drawn = dict(draw(generator, prompts, params, config.run.seed, 0, target.version))
    return judge(golden, [drawn[i] for i in range(len(prompts))])
