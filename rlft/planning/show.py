"""A plan as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from rlft.planning.fitting import Advice, Device
from rlft.planning.plan import Planned
from rlft.planning.states import GIB


def show(planned: Planned, found: list[Device], advice: list[Advice]) -> None:
    """Print it."""
    console = Console(highlight=False, soft_wrap=True)
    lengths = planned.lengths
    console.print(f"For samples of {lengths.prompt} + {lengths.completion} tokens (--sequence-tokens). GiB:")
    names = list(dict.fromkeys(name for role in planned.roles for name in role.peak.parts))
    table = Table("", *(role.name + (f" x {role.count}" if role.count > 1 else "") for role in planned.roles))
    for name in names:
        table.add_row(name, *(_gib(role.peak.parts[name]) for role in planned.roles))
    table.add_section()
    table.add_row("at its worst", *(_gib(role.peak.total) for role in planned.roles))
    table.add_row("which is when", *(role.peak.moment for role in planned.roles))
    console.print(table)
    for role in planned.roles:
        if role.note:
            console.print(f"{role.name}: {role.note}")
    for device in found:
        room = "how much there is, nobody knows here: --gpu-memory GiB"
        if device.there is not None:
            room = f"{'fits' if device.fits else 'does NOT fit'} in {_gib(device.there)} GiB"
        console.print(f"{device.roles}: {_gib(device.need)} GiB, {room}")
    if advice:
        console.print("\nWhat to change, each on top of those before it:")
    for change in advice:
        console.print(f"  --{change.key} {_word(change.value)}   saves {_gib(change.saves)} GiB")
    if any(device.fits is False for device in found) and not (advice and advice[-1].fits):
        console.print("That is not enough: take a smaller model or larger devices, or shorter samples.")


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size else ""


def _word(value: object) -> str:
    if isinstance(value, dict):
        return "'{" + ", ".join(f"{name}: {item}" for name, item in value.items()) + "}'"
    return str(value).lower() if isinstance(value, bool) else str(value)
