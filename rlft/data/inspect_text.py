"""An Inspection for people. What is learned is green in a terminal and stands in brackets elsewhere.

Knows nothing about how data are read or understood.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.text import Text

from rlft.data.inspect import Inspection, Lengths, Repeated
from rlft.data.inspect_rows import Part, Problem

NUM_PLACES = 3  # shown of each kind of problem
MAX_SHOWN = 4000  # characters of one rendered sequence
FOR = {
    "sft": "supervised fine-tuning", "prompts": "drawing completions",
    "pairs": "preferences", "labels": "preferences with labels",
    "steps": "a process reward model",
}  # fmt: skip
VERBS = {"refused": "would stop a run", "dropped": "would be dropped", "cut": "would be cut"}


def print_inspection(inspection: Inspection, stream: TextIO) -> None:
    """Write it all."""
    unicode = "utf" in (getattr(stream, "encoding", None) or "").lower()
    console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
    color = console.is_terminal and console.color_system is not None
    show = console.print
    show(Text(f"{inspection.source}: {inspection.num_rows} rows", style="bold"))
    _print_columns(console, inspection)
    if inspection.purpose and inspection.layout:
        guess = " (guessed; --algorithm.type or a configuration as --model says it)" if inspection.guessed else ""
        show(f"\nUnderstood as {inspection.layout}, for {FOR[inspection.purpose]}{guess}.")
        show(f"  {inspection.understood}" if inspection.understood else "", end="\n" if inspection.understood else "")
    for example in inspection.examples:
        learned = "green is learned" if color else f"what is in {' '.join(_brackets(unicode))} is learned"
        learned = learned.replace("is learned", "has a label") if inspection.purpose == "steps" else learned
        learned = "what the model is given" if inspection.purpose == "prompts" else learned
        show(f"\nExample {example.place} ({learned}):")
        for part in example.parts:
            show(_rendered(part, color, unicode))
    for name, lengths in inspection.lengths.items():
        _print_lengths(console, name, lengths, inspection.unit, unicode)
    show("")
    _print_repeated(console, "Rows that repeat an earlier one", inspection.same_rows)
    _print_repeated(console, "Prompts that repeat an earlier one", inspection.same_prompts)
    for what in inspection.missing:
        show(f"Not looked at: {what}")
    _print_problems(console, inspection)


def _print_columns(console: Console, inspection: Inspection) -> None:
    rows = [("column", "type", "null", "understood as")]
    for name, types, share, role in inspection.columns:
        rows.append((name, _types(types), f"{share:.1%}", role))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        console.print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _types(types: Mapping[str, int]) -> str:
    if len(types) == 1:
        return next(iter(types))
    return ", ".join(f"{name} ({count})" for name, count in types.items()) or "nothing"


def _visible(text: str) -> str:
    """With control characters but line breaks written out: data must not steer a terminal."""
    hidden = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of controls, halves of pairs, and line separators
    return "".join(c if c == "\n" or unicodedata.category(c) not in hidden else ascii(c)[1:-1] for c in text)


def _brackets(unicode: bool) -> tuple[str, str]:
    return ("⟦", "⟧") if unicode else ("[[", "]]")


def _rendered(part: Part, color: bool, unicode: bool) -> Text:
    opening, closing = _brackets(unicode)
    text = Text()
    text.append(f"  {part.label}:\n" if part.label else "", style="bold")
    rendered, learned = Text(), False
    for segment in part.segments:
        if not color and segment.learned != learned:
            rendered.append(opening if segment.learned else closing)
        learned = segment.learned
        style = ("green" if learned else "") + (" bold" if segment.special else "")
        rendered.append(_visible(segment.text), style=style.strip() if color else "")
    if learned and not color:
        rendered.append(closing)
    if len(rendered) > MAX_SHOWN:
        left_out = len(rendered) - MAX_SHOWN
        half = MAX_SHOWN // 2
        rendered = rendered[:half] + Text(f"\n[... {left_out} characters left out ...]\n") + rendered[-half:]
    for line in rendered.split("\n", allow_blank=True):
        text.append("  | ", style="dim" if color else "").append_text(line).append("\n")
    text.right_crop(1)
    return text


def _print_lengths(console: Console, name: str, lengths: Lengths, unit: str, unicode: bool) -> None:
    median = f"{lengths.median:g}"
    numbers = f"min {lengths.least}, median {median}, p95 {lengths.p95}, max {lengths.most}"
    console.print(f"\n{name.capitalize()}, {unit}: {numbers}")
    highest = max(count for *_, count in lengths.bins)
    names = [f"{a}" if a == b else f"{a}-{b}" for a, b, _ in lengths.bins]
    width, digits = max(map(len, names)), len(str(highest))
    for label, (*_, count) in zip(names, lengths.bins, strict=True):
        bar = ("█" if unicode else "#") * -(-count * 40 // highest)
        console.print(f"  {label:>{width}}  {count:>{digits}}  {bar}".rstrip())


def _print_repeated(console: Console, what: str, repeated: Repeated) -> None:
    examples = ", ".join(f"{place} like {before}" for place, before in repeated.first)
    more = ", ..." if repeated.count > len(repeated.first) else ""
    console.print(f"{what}: {repeated.count}{f' ({examples}{more})' if examples else ''}")


def _print_problems(console: Console, inspection: Inspection) -> None:
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in inspection.problems:
        kinds.setdefault((problem.effect, problem.reason), []).append(problem)
    for (effect, reason), problems in sorted(kinds.items(), key=lambda item: (-list(VERBS).index(item[0][0]), 0)):
        style = "red" if effect == "refused" else "yellow"
        rows = "1 row" if len(problems) == 1 else f"{len(problems)} rows"
        what = f"\n{reason}, " if problems[0].place == inspection.source else f"\n{rows}, {reason}, "
        console.print(Text(f"{what}{VERBS[effect]}:", style=style))
        for problem in problems[:NUM_PLACES]:
            console.print(f"  {_visible(problem.place)}: {_visible(problem.text)}")
        if len(problems) > NUM_PLACES:
            console.print(f"  ... and {len(problems) - NUM_PLACES} more")
    if inspection.usable:
        console.print(Text(f"\nUsable: {inspection.num_usable} of {inspection.num_rows} rows.", style="bold"))
    else:
        refused = sum(problem.effect == "refused" for problem in inspection.problems)
        times = "1 problem" if refused == 1 else f"{refused} problems"
        console.print(Text(f"\nNot usable as it is: {times} would stop a run.", style="bold red"))
