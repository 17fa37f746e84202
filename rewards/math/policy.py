"""How strict the comparison of answers is: what `args` of the reward `math` may say. Checked before a run starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlft.errors import UserError

Units = Literal["gold", "ignore", "require"]
Percent = Literal["strict", "either"]
Order = Literal["free", "strict"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What counts as the same answer."""

    units: Units = "gold"
    """gold: a unit may be missing, and any is forgiven where the right answer has none; where both have one they must
    agree (12 cm is not 12 m). require: a right answer's unit must be there. ignore: units do not count."""
    percent: Percent = "strict"
    """strict: 50% is 0.5 and not 50. either: it is both."""
    tolerance: float = 0.0
    """How much of the right answer a number may be off: 0.01 is one percent. 0: exact, and 0.3333 is not 1/3."""
    order: Order = "free"
    """Of several answers (1, 2 and 3). Coordinates in brackets and the ends of intervals are always in order."""
    deadline_s: float = 5.0
    """Seconds that comparing the formulas of one answer may take."""
    symbolic: bool = True
    """Whether formulas are compared by sympy; otherwise only numbers, lists, intervals and texts are."""

    def __post_init__(self) -> None:
        for name, kind in (("units", Units), ("percent", Percent), ("order", Order)):
            _expect(name, getattr(self, name), getattr(self, name) in get_args(kind), " or ".join(get_args(kind)))
        _expect("tolerance", self.tolerance, _is_number(self.tolerance) and 0 <= self.tolerance < 1, "0 up to below 1")
        _expect("deadline_s", self.deadline_s, _is_number(self.deadline_s) and 0 < self.deadline_s <= 60, "0 to 60")
        _expect("symbolic", self.symbolic, isinstance(self.symbolic, bool), "true or false")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expect(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"reward 'math': {name} is {value!r}; expected {expected}.")
