"""What `rlft rewards` shows: a table of samples, and what each function said over all of them. Knows no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlft.samples import Group, RewardResult, Sample


def sample_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One for each sample, for a file: where it is from, what was said, the reward and every part of it."""
    return [_row(group, i, sample) for group in groups for i, sample in enumerate(group.samples)]


def _row(group: Group, index: int, sample: Sample) -> dict[str, Any]:
    parts = {
        name: {"value": p.value, "status": p.status, "detail": p.detail, "seconds": round(p.seconds, 6)}
        for name, p in sample.reward_parts.items()
    }
    place = {"prompt_id": group.prompt.id, "sample": index}
    return place | {"completion": sample.text, "reward": sample.reward, "parts": parts}


def samples_table(groups: Sequence[Group], limit: int) -> Any:
    """The first `limit` samples as a rich table: the end of what was said, the reward, and a column for each part."""
    from rich.table import Table
    from rich.text import Text

    names = _names(groups)
    table = Table(box=None, pad_edge=False)
    for name, style in (("sample", "dim"), ("completion", None), ("reward", "bold"), *((name, None) for name in names)):
        table.add_column(name, style=style, overflow="fold", justify="left")
    for place, sample in [(f"{g.prompt.id} {i}", s) for g in groups for i, s in enumerate(g.samples)][:limit]:
        cells = [_end(sample.text), _number(sample.reward), *(_said(sample.reward_parts.get(name)) for name in names)]
        table.add_row(place, *(Text(cell) for cell in cells))
    return table


def summary(groups: Sequence[Group]) -> list[str]:
    """A line for the reward and one for each function: mean, range, statuses and seconds a sample."""
    samples = [sample for group in groups for sample in group.samples]
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    lines = [f"{len(samples)} samples of {len(groups)} prompts, {len(samples) - len(rewards)} without a reward"]
    lines.append(f"reward: {_spread(rewards)}")
    for name in _names(groups):
        parts = [sample.reward_parts[name] for sample in samples if name in sample.reward_parts]
        statuses = ", ".join(f"{status} {n}" for status, n in Counter(part.status for part in parts).most_common())
        seconds = [part.seconds for part in parts]
        spread = _spread([part.value for part in parts if part.value is not None])
        lines.append(f"{name}: {spread}; {statuses}; {1000 * float(np.median(seconds)):.3g} ms a sample (median)")
    return lines


def changes(groups: Sequence[Group], before: Sequence[float | None], limit: int) -> list[str]:
    """How the rewards of `groups` differ from those of `before` (one a sample, in order): how many, how the means and
    the order within groups change, and the samples that changed most."""
    now = [sample.reward for group in groups for sample in group.samples]
    names = [f"{group.prompt.id} {i}" for group in groups for i in range(len(group.samples))]
    both = [(a, b) for a, b in zip(before, now, strict=True) if a is not None and b is not None]
    lost = sum(a is not None and b is None for a, b in zip(before, now, strict=True))
    found = sum(a is None and b is not None for a, b in zip(before, now, strict=True))
    differ = [(abs(b - a), name, a, b) for name, a, b in _with_both(names, before, now) if a != b]
    lines = [f"{len(differ)} of {len(both)} rewards differ; {lost} had one and have none now, {found} have one now"]
    lines.append(f"before: {_spread([a for a, _ in both])}")
    lines.append(f"now:    {_spread([b for _, b in both])}")
    first, second = np.array([a for a, _ in both]), np.array([b for _, b in both])
    if len(both) > 1 and first.std() > 0 and second.std() > 0:
        lines.append(f"correlation: {float(np.corrcoef(first, second)[0, 1]):.3f}")
    for _, name, a, b in sorted(differ, reverse=True)[:limit]:
        lines.append(f"  {name}: {_number(a)} -> {_number(b)}")
    return lines


def _with_both(
    names: Sequence[str], before: Sequence[float | None], now: Sequence[float | None]
) -> list[tuple[str, float, float]]:
    rows = zip(names, before, now, strict=True)
    return [(name, a, b) for name, a, b in rows if a is not None and b is not None]


def _names(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for sample in group.samples for name in sample.reward_parts))


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "no values"
    return f"mean {np.mean(values):.4g}, std {np.std(values):.4g}, from {min(values):.4g} to {max(values):.4g}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _said(part: RewardResult | None) -> str:
    if part is None:
        return ""
    why = f" {part.detail[:60]}" if part.detail else ""
    return _number(part.value) + ("" if part.status == "ok" else f" {part.status}") + why


def _end(text: str, room: int = 60) -> str:
    """The end of a text in one line: final answers come last."""
    shown = text.replace("\n", "\\n")
    return shown if len(shown) <= room else "…" + shown[-room:]
