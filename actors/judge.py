"""`rlft eval --judge`: held-out prompts, answered by a model and by what it is compared with, in this process; a judge
behind an endpoint says which answers are better."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from actors.process import prepare
from actors.targets import Target, check_overrides, compared_with, find_target, serving
from rlft.config import derived
from rlft.config.data import DataConfig
from rlft.data.prompts import PromptSet, load_prompts
from rlft.errors import UserError
from rlft.evaluation.answers import Answer, Answers
from rlft.evaluation.judge_file import JudgeJob, load_judge
from rlft.evaluation.judging import Comparison, Judged, judge_answers
from rlft.evaluation.win_rate import ANSWER, OTHER
from rlft.loops.rollouts import sampling_params
from rlft.models.load import window
from rlft.runs.checkpoints import MANIFEST
from rlft.samples import Prompt, SamplingParams, sample_seed
from rlft.synthesis.config import content_settings
from rlft.synthesis.rows import SourceRow

_KEYS = (
    "model.path", "model.dtype", "model.chat_template", "data.split", "data.prompt_column", "data.system_prompt",
    "data.apply_chat_template", "data.too_long", "evaluation.path", "evaluation.max_rows", "evaluation.temperature",
    "generator.engine*", "generator.max_*", "generator.min_new_tokens", "generator.stop*", "generator.gpus",
    "cluster.threads",
)  # fmt: skip
_JUDGES = ("endpoint", "judge", "run")  # sections of JUDGE.yaml, also on the command line
_STEP = -1  # stands for the step in sampling seeds


class _Side(NamedTuple):
    """Who answers."""

    whose: str  # "model" or "base"
    target: Target
    prompts: PromptSet


def compare(
    target: str,
    file: str,
    against: str | None = None,
    overrides: Sequence[str] = (),
    out: str | None = None,
    stream: TextIO | None = None,
) -> Judged:
    """Let a model and its base answer the prompts of evaluation.path, and a judge (`file`) compare the answers. The
    base is `against` (a run, a checkpoint or a Hugging Face folder), or the texts of the judge's reference_column, by
    default what the run's training started from. Both answer as the run's generator is configured, in one turn, at
    evaluation.temperature. `out`: where verdicts go; by default into the run's folder `judge`.

    Raises UserError for bad input and RunError when the judging cannot go on; the same call then goes on.
    """
    for_judge, for_run = _parted(overrides)
    job = load_judge(file, [*for_judge, *([f"--run.out={out}"] if out is not None else [])])
    check_overrides(for_run, _KEYS, "a comparison by a judge")
    now = find_target(Path(target), for_run, "score")
    if now.config.evaluation.path is None:
        raise UserError("--judge needs prompts: give them with --data FILE.")
    column = job.judge.reference_column
    if column is not None and against is not None:
        raise UserError(f"--against {against}: judge.reference_column ({column}) is compared with already; keep one")
    prepare(now.config, now.config.generator.gpus)
    sides = [_side("model", now)]
    if column is None:
        sides.append(_side("base", compared_with(now, against)))
    tell: TextIO = stream or sys.stderr
    print(f"data: {sides[0].prompts.description}", file=tell, flush=True)
    if now.config.environment is not None:
        print("the run's environment takes no part: each prompt is one turn", file=tell)
    prompts = _shared(sides)
    others = None if column is None else [_reference(prompt, column) for prompt in prompts]
    settings = _settings(sides)
    path = Path(job.run.out).expanduser() if job.run.out is not None else _default_out(now, file, job, settings)
    answers = Answers(path.with_name(path.name + ".answers.jsonl"), settings)
    for side in sides:
        _draw(side, _of(side, prompts), answers, tell)
    first = [answers.of("model", prompt) for prompt in prompts]
    second = [answers.of("base", prompt) for prompt in _of(sides[1], prompts)] if others is None else others
    rows = [_row(p, a.text, b.text) for p, a, b in zip(prompts, first, second, strict=True)]
    told = Comparison(
        judge=job.endpoint.model,
        model=str(now.folder),
        base=str(sides[1].target.folder) if column is None else f"column {column}",
        cut_off=(sum(a.cut_off for a in first), sum(b.cut_off for b in second)),
    )
    return judge_answers(job, path, rows, told, {**content_settings(job), **settings}, tell)


def _parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of JUDGE.yaml, and of the run's configuration. A key and its value may be one word or two."""
    parts, at = (list[str](), list[str]()), 0
    while at < len(words):
        has_value = "=" not in words[at] and at + 1 < len(words) and not words[at + 1].startswith("--")
        is_judges = words[at].removeprefix("--").partition(".")[0] in _JUDGES
        parts[0 if is_judges else 1].extend(words[at : at + 1 + has_value])
        at += 1 + has_value
    return parts


def _side(whose: str, target: Target) -> _Side:
    config = target.config
    data = config.data.model_copy(update={"max_rows": config.evaluation.max_rows, "shuffle": False})
    prompts = load_prompts(
        data, target.tokenizer(), window=derived.window(config, window(target.whole, config.model.adapter)),
        max_new_tokens=config.generator.max_new_tokens, seed=config.run.seed, path=config.evaluation.path,
    )  # fmt: skip
    return _Side(whose, target, prompts)


def _shared(sides: Sequence[_Side]) -> list[Prompt]:
    """The model's prompts that the others have too: with data.too_long drop, each drops what does not fit its window.
    Prompts are known by their place in the data."""
    everywhere = set.intersection(*({prompt.id for prompt in side.prompts.prompts} for side in sides))
    shared = [prompt for prompt in sides[0].prompts.prompts if prompt.id in everywhere]
    if not shared:
        raise UserError("no prompt fits the windows of both models (data.too_long is drop): nothing to compare")
    return shared


def _of(side: _Side, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts as this side's tokenizer and template have them."""
    by_id = {prompt.id: prompt for prompt in side.prompts.prompts}
    return [by_id[prompt.id] for prompt in prompts]


def _params(target: Target) -> SamplingParams:
    temperature = target.config.evaluation.temperature
    return replace(sampling_params(target.config), num_samples=1, temperature=temperature)


def _draw(side: _Side, prompts: Sequence[Prompt], answers: Answers, stream: TextIO) -> None:
    """Draw what is missing and write each answer down. Seeds go by the place among all prompts."""
    missing = answers.missing(side.whose, prompts)
    if not missing:
        return
    print(f"{side.whose} {side.target.folder}: {len(missing)} answers to draw", file=stream, flush=True)
    seeds = [[sample_seed(side.target.config.run.seed, _STEP, place, 0)] for place in missing]
    asked = [prompts[place] for place in missing]
    with serving(side.target) as generator:
        for place, group in generator.generate(asked, seeds, _params(side.target), side.target.version):
            (sample,) = group.samples
            answers.add(side.whose, asked[place], Answer(sample.text, sample.finish_reason == "length"))


def _reference(prompt: Prompt, column: str) -> Answer:
    value = prompt.columns.get(column)
    if not isinstance(value, str) or not value.strip():
        found = "is not there" if column not in prompt.columns else f"is {value!r:.60}"
        raise UserError(
            f"{prompt.id}: column {column!r} (judge.reference_column) {found}. Expected an answer as text. Columns "
            f"there: {', '.join(prompt.columns) or 'none'}."
        )
    return Answer(value, cut_off=False)


def _row(prompt: Prompt, answer: str, other: str) -> SourceRow:
    talk = [dict(turn) for turn in prompt.messages] if prompt.messages is not None else None
    asked = talk or [{"role": "user", "content": prompt.text}]
    return SourceRow(
        id=prompt.id,
        fingerprint=_digest([asked, answer, other]),
        prompt=talk or prompt.text,
        messages=asked,
        columns={ANSWER: answer, OTHER: other},
    )


def _settings(sides: Sequence[_Side]) -> dict[str, Any]:
    """Everything that shapes the answers besides the prompts."""
    config = sides[0].target.config
    params, data = _params(sides[0].target), config.data
    settings: dict[str, Any] = {f"the {side.whose}": _identity(side.target) for side in sides}
    settings |= {f"sampling, {name}": value for name, value in asdict(params).items() if name != "num_samples"}
    settings |= {"run.seed of the run": config.run.seed, "generator.engine": derived.generator_engine(config)}
    for key in ("prompt_column", "system_prompt", "apply_chat_template"):
        if getattr(data, key) != DataConfig.model_fields[key].default:
            settings[f"data.{key}"] = getattr(data, key)
    return settings


def _identity(target: Target) -> str:
    """The folder's name and a digest of what is in it: a checkpoint's hashes, otherwise names, sizes and times."""
    folder, model = target.folder, target.config.model
    if (folder / MANIFEST).is_file():
        content: Any = (folder / MANIFEST).read_text(encoding="utf-8")
    elif folder.is_dir():
        stats = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
        content = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    else:
        content = str(folder)  # a name on the Hub
    more = [model.dtype, model.chat_template, str(model.path) if model.adapter is not None else None]
    more += [] if model.quantization is None else [model.quantization.model_dump()]
    return f"{folder.name} {_digest([content, more])}"


def _default_out(now: Target, file: str, job: JudgeJob, settings: Mapping[str, Any]) -> Path:
    """In the run's folder, a name for each comparison: by whatever shapes it, and by the data."""
    if now.run is None:
        raise UserError(f"run.out: {now.folder} is a model without a run, so give --out FILE for the verdicts.")
    data = str(Path(str(now.config.evaluation.path)).expanduser().absolute())
    digest = _digest([content_settings(job), dict(settings), data])[:8]
    return now.run / "judge" / f"{now.folder.name}-{Path(file).stem}-{digest}.jsonl"


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
