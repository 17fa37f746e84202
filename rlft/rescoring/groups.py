"""Groups to score that no generator drew just now: completions of a data file, and the rollouts that a run has kept.

Knows nothing about rewards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from rlft.errors import UserError
from rlft.samples import Group, Prompt, RewardResult, Sample

COMPLETION_COLUMNS = ("completions", "completion", "response", "answer_text", "output")
"""Where a row's completions are looked for, in this order."""


def completion_column(names: Sequence[str], wanted: str | None, source: str) -> str:
    """The column that has the completions. Raises UserError when there is none."""
    tried = (wanted,) if wanted is not None else COMPLETION_COLUMNS
    found = next((name for name in tried if name in names), None)
    if found is None:
        raise UserError(
            f"{source}: no column {' or '.join(repr(name) for name in tried)} with the completions to score. Columns "
            f"there: {', '.join(names)}. Name the right one with --completions COLUMN: a text or a list of texts a row."
        )
    return found


def given_groups(prompts: Sequence[Prompt], column: str, tokenizer: Any) -> list[Group]:
    """A group for each prompt, of the texts in its column. Its other columns stay, for the reward functions."""
    groups = []
    for prompt in prompts:
        texts = prompt.columns[column]
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list | tuple) or not texts or not all(map(_is_text, texts)):
            raise UserError(
                f"{prompt.id}: column {column!r} is {str(texts)[:80]!r}. Expected a text, or a list of texts that is "
                "not empty, without halves of surrogate pairs."
            )
        others = {name: value for name, value in prompt.columns.items() if name != column}
        kept = replace(prompt, columns=others)
        groups.append(Group(kept, tuple(_given(prompt, text, tokenizer) for text in texts)))
    return groups


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _given(prompt: Prompt, text: str, tokenizer: Any) -> Sample:
    own = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    start = len(prompt.token_ids)
    token_ids = np.concatenate([prompt.token_ids, own])
    return Sample.given(token_ids, np.arange(len(token_ids)) >= start, text)


def stored_groups(rows: Sequence[dict[str, Any]], keep_parts: Sequence[str] = ()) -> list[Group]:
    """The groups whose rows these are, in their order, with what they were given; see rlft.runs.rollouts. `token_ids`
    of prompts are not stored, so the samples begin behind them. `keep_parts`: parts of the reward that stay."""
    made = groupby(_in_groups(rows), key=lambda numbered: numbered[0])
    return [_group([row for _, row in members], keep_parts) for _, members in made]


def _in_groups(rows: Sequence[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Each row with the number of its group: one begins with each sample 0."""
    number, numbered = 0, []
    for row in rows:
        number += row["sample"] == 0
        numbered.append((number, row))
    return numbered


def _group(rows: Sequence[dict[str, Any]], keep_parts: Sequence[str]) -> Group:
    first = rows[0]
    messages = json.loads(first["messages"]) if first.get("messages") else None
    prompt = Prompt(
        id=first["prompt_id"],
        token_ids=np.zeros(0, dtype=np.int32),
        text=first["prompt"],
        messages=tuple(messages) if messages is not None else None,
        columns=first["columns"],
        source=first["source"],
    )
    return Group(prompt, tuple(_sample(row, keep_parts) for row in rows))


def _sample(row: dict[str, Any], keep_parts: Sequence[str]) -> Sample:
    sample = Sample.given(
        np.array(row["token_ids"], dtype=np.int32), np.array(row["loss_mask"], dtype=bool), row["completion"]
    )
    turns = tuple(json.loads(row["turns"])) if row.get("turns") else ()
    parts = {name: part_of(row, name) for name in keep_parts if row.get(f"status/{name}") is not None}
    return replace(
        sample,
        finish_reason=row["finish_reason"],
        seed=row["seed"],
        turns=turns,
        reward=row["reward"],
        reward_parts=parts,
    )


def part_of(row: dict[str, Any], name: str) -> RewardResult:
    """What the function `name` said, as the row of rollouts has it."""
    value, counted = row[f"reward/{name}"], row.get(f"counted/{name}")  # not in the files of older runs
    used = counted if counted != value else None
    return RewardResult(value, row[f"status/{name}"], row[f"detail/{name}"] or "", used=used)


def part_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The functions that the rows of rollouts have results of."""
    return [name.removeprefix("status/") for name in (rows[0] if rows else {}) if name.startswith("status/")]
