"""`rlft rewards`: the reward functions of a configuration on completions that are there already, in this process."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.launch import with_model
from actors.process import prepare
from rewards.combine import RewardSet
from rlft.config import Config
from rlft.config.derived import environment_weight
from rlft.config.load import load_config
from rlft.data.prompts import load_prompts
from rlft.data.reading import read_rows
from rlft.data.tokenizer import load_tokenizer
from rlft.errors import UserError
from rlft.rescoring.groups import completion_column, given_groups, part_names, stored_groups
from rlft.rescoring.report import changes, sample_rows, samples_table, summary
from rlft.runs.files import atomic_write
from rlft.runs.rollouts import read_rollouts, stored_steps
from rlft.samples import ENVIRONMENT, Group

# A run is scored again without its data, which may be gone since
_NO_DATA = ("--data.path=null", "--data.mixture=[]", "--evaluation={}")
_NO_LIMIT = 2**31  # tokens: nothing is drawn, so nothing has to fit


@dataclass(frozen=True)
class Scored:
    """What the functions said."""

    groups: list[Group]
    lines: list[str]  # for people, below the table

    def table(self, limit: int) -> Any:
        """The first samples, for rich."""
        return samples_table(self.groups, limit)

    def write(self, path: str) -> None:
        """One JSON line a sample. Half of a surrogate pair, which UTF-8 cannot say, stays JSON's escape."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in sample_rows(self.groups))
        data = text.encode("utf-8", "backslashreplace")
        atomic_write(Path(path), lambda temporary: temporary.write_bytes(data))


def score_file(path: str, data: str, column: str | None = None, overrides: Sequence[str] = ()) -> Scored:
    """The completions in a column of `data`, scored by the rewards of the configuration `path`.

    Rows are read as the run would read them, so its prompts, conversations and columns are what the functions get.
    Raises UserError for a configuration, data or functions that cannot be used.
    """
    config = load_config(path, [f"--data.path={data}", *overrides])
    rewards = _rewards(config)
    prepare(config, 0)
    rows = read_rows(data, max_rows=config.data.max_rows)
    found = completion_column(rows.columns(), column, rows.source)
    with tempfile.TemporaryDirectory() as folder:
        model = with_model(config, Path(folder), anew=True).model
        tokenizer = load_tokenizer(str(model.path), model.chat_template)
    prompts = load_prompts(config.data, tokenizer, window=_NO_LIMIT, max_new_tokens=0, seed=0, rows=rows)
    rewards.check_columns([name for name in prompts.prompts[0].columns if name != found])
    groups = _scored(rewards, given_groups(prompts.prompts, found, tokenizer), config)
    return Scored(groups, [prompts.description, *summary(groups)])


def score_run(run: str, steps: str | None = None, overrides: Sequence[str] = (), shown: int = 10) -> Scored:
    """The samples in the rollouts of a run, scored again by the rewards of its configuration with `overrides`, beside
    what they were given then. `steps`: "12" or "10-20"; all that are there without. What an environment gave stays.

    Raises UserError for what is not a run, or has kept no rollouts of these steps.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{run}: expected a run's folder, with config.yaml and rollouts/.")
    config = load_config(folder / "config.yaml", [*_NO_DATA, *overrides])
    rewards = _rewards(config)
    prepare(config, 0)
    rows = [row for step in _chosen(folder, steps) for row in read_rollouts(step)]
    if not rows:
        raise UserError(f"{run}/rollouts: the files of these steps have no samples.")
    kept = [ENVIRONMENT] if ENVIRONMENT in part_names(rows) else []
    stored = stored_groups(rows, kept)
    rewards.check_columns(stored[0].prompt.columns)
    groups = _scored(rewards, stored, config)
    before = [sample.reward for group in stored for sample in group.samples]
    return Scored(groups, [*summary(groups), *changes(groups, before, shown)])


def _rewards(config: Config) -> RewardSet:
    return RewardSet(config.rewards, environment_weight=environment_weight(config))


def _chosen(run: Path, steps: str | None) -> list[Path]:
    there = stored_steps(run / "rollouts")
    first, _, last = (steps or "").partition("-")
    try:
        low, high = (int(first), int(last or first)) if steps else (0, _NO_LIMIT)
    except ValueError:
        raise UserError(f"--steps {steps}: expected a step (12) or a range (10-20).") from None
    chosen = [path for step, path in there.items() if low <= step <= high]
    if not chosen:
        have = f"there are those of steps {min(there)} to {max(there)}" if there else "there are none"
        raise UserError(
            f"{run}/rollouts: no rollouts{f' of steps {steps}' if steps else ''}; {have}. A run keeps them every "
            "tracking.rollouts_every steps."
        )
    return chosen


def _scored(rewards: RewardSet, groups: Sequence[Group], config: Config) -> list[Group]:
    """In the groups' order, by so many at a time as the configuration has reward workers."""
    with ThreadPoolExecutor(config.rewards.num_actors) as pool:
        return list(_counted(pool.map(rewards.score_group, groups), len(groups), sys.stderr.write))


def _counted(scored: Iterator[Group], total: int, write: Callable[[str], Any]) -> Iterator[Group]:
    """The same, told on a terminal as they come in."""
    for done, group in enumerate(scored, 1):
        if sys.stderr.isatty():
            write(f"\rscored {done} of {total} prompts" + ("\n" if done == total else ""))
        yield group
