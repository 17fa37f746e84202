"""The live panel, drawn with rich. Imported only where there is a terminal.

Knows nothing about where its numbers come from: it draws a View, whatever its width and whatever is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from rich.box import ROUNDED
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlft.runs.console import ENDED, View, readable_seconds

_MAX_WIDTH = 100  # wider lines are harder to read
_SPARKS = "▁▂▃▄▅▆▇█"
_NUMBERS = (  # label, metric, format
    ("KL to reference", "policy/kl", "{:.4f}"),
    ("entropy", "policy/entropy", "{:.3f}"),
    ("completion", "completion/length_mean", "{:.1f} tokens"),
    ("truncated", "completion/truncated", "{:.1%}"),
    ("loss", "policy/loss", "{:.4f}"),
    ("pairs right", "preference/accuracy", "{:.1%}"),
    ("clipped", "policy/clip_fraction", "{:.1%}"),
    ("staleness", "staleness/mean", "{:.2f} updates"),
    ("flat groups", "samples/flat_groups", "{:.0f}"),
    ("failed rewards", "samples/failed", "{:.0f}"),
    ("speed", "tokens_per_s", "{:,.0f} tokens/s"),
    ("eval accuracy", "eval/accuracy", "{:.3f}"),
    ("eval pass@k", "eval/pass@k", "{:.3f}"),
    ("eval perplexity", "eval/perplexity", "{:.3f}"),
    ("eval pairs right", "eval/pair_accuracy", "{:.1%}"),
)
_STAGES = (
    ("generate", "time/generate_s", "cyan"),
    ("score", "time/score_s", "yellow"),
    ("reference", "time/reference_s", "blue"),
    ("learn", "time/learn_s", "magenta"),
    ("sync", "time/sync_s", "green"),
    ("save", "time/save_s", "red"),
)


class LivePanel:
    """Draws what `view()` gives each time that rich asks."""

    def __init__(self, view: Callable[[], View]) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view = self._view()
        width = min(options.max_width, _MAX_WIDTH)
        inner = width - 4  # the border and its padding
        parts: list[RenderableType] = [_progress(view, inner)]
        if view.rewards:
            parts.append(_reward(view, inner))
        if numbers := _numbers(view, columns=2 if inner >= 60 else 1):
            parts.append(numbers)
        parts += _stages(view, inner)
        yield Panel(Group(*parts), title=Text(view.title), title_align="left", box=ROUNDED, width=width)


def sparkline(values: Sequence[float], width: int) -> str:
    """At most `width` characters, each the mean of its share of `values`, from the lowest ▁ to the highest █."""
    finite = [value for value in values if value - value == 0]  # neither nan nor infinite
    if not finite or width < 1:
        return ""
    width = min(width, len(finite))
    edges = [i * len(finite) // width for i in range(width + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _SPARKS[0] * width
    return "".join(_SPARKS[round((mean - low) / (high - low) * (len(_SPARKS) - 1))] for mean in means)


def _progress(view: View, width: int) -> Text:
    done = view.step or 0
    share = min(1.0, done / view.total_steps) if view.total_steps else 0.0
    head = f"step {done}/{view.total_steps} "
    left = "" if view.seconds_left is None or share == 1 else f", {readable_seconds(view.seconds_left)} left"
    tail = f" {share:.0%}{left}"
    now = f"  {view.stage}" + ("" if view.stage in ENDED else f" {readable_seconds(view.stage_s)}")
    room = max(4, width - len(head) - len(tail) - len(now))
    full = round(share * room)
    return Text.assemble(
        head, ("━" * full, "bold green"), ("━" * (room - full), "bright_black"), tail, (now, "bold"), no_wrap=True
    )


def _reward(view: View, width: int) -> Text:
    head = f"reward {view.rewards[-1]:.3f}  "
    return Text.assemble((head, "bold"), (sparkline(view.rewards, width - len(head)), "green"), no_wrap=True)


def _largest_k(values: Mapping[str, float]) -> dict[str, float]:
    """pass@k for the largest k that was measured, under the name that the panel has for it."""
    ks = [int(name.removeprefix("eval/pass@")) for name in values if name.startswith("eval/pass@")]
    return {"eval/pass@k": values[f"eval/pass@{max(ks)}"]} if ks else {}


def _numbers(view: View, columns: int) -> Table | None:
    values = {**view.values, **_largest_k(view.values)}
    cells = [
        (label, pattern.format(values[key]))
        for label, key, pattern in _NUMBERS
        if key in values and not (key == "samples/failed" and values[key] == 0)
    ]
    if not cells:
        return None
    table = Table.grid(expand=True, padding=(0, 2))
    for _ in range(columns):
        table.add_column(style="bright_black", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1)  # takes the room that is left, so that value and label stay together
    for i in range(0, len(cells), columns):
        table.add_row(*(text for label, value in cells[i : i + columns] for text in (label, value, "")))
    return table


def _stages(view: View, width: int) -> list[RenderableType]:
    """Where the time of the last step went: a bar, and its legend."""
    found = [(name, view.values[key], color) for name, key, color in _STAGES if view.values.get(key, 0) > 0]
    if not found:
        return []
    total = sum(seconds for _, seconds, _ in found)
    head = f"{view.values.get('time/step_s', total):.2f} s a step  "
    bar, legend = Text(head, no_wrap=True), Text()
    room = max(4, width - len(head))
    at = 0.0
    for name, seconds, color in found:
        start, at = round(at / total * room), at + seconds
        bar.append("█" * (round(at / total * room) - start), style=color)
        legend.append("■\N{NO-BREAK SPACE}", style=color).append(f"{name}\N{NO-BREAK SPACE}{seconds:.2f}s   ")
    return [bar, legend]
