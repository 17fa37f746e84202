"""Whether a program printed what was expected."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_MAX_NUMBER = 40  # characters; longer ones are compared as text


def same_output(said: str, expected: str, tolerance: float = 0.0) -> bool:
    """Line by line without the white space at their ends and empty lines at the end. With a `tolerance`, word by word,
    where two numbers may differ by so much, absolutely or relatively."""
    if _lines(said) == _lines(expected):
        return True
    if not tolerance:
        return False
    ours, theirs = said.split(), expected.split()
    return len(ours) == len(theirs) and all(_near(one, other, tolerance) for one, other in zip(ours, theirs))


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _near(one: str, other: str, tolerance: float) -> bool:
    if one == other:
        return True
    if max(len(one), len(other)) > _MAX_NUMBER or not (_NUMBER.fullmatch(one) and _NUMBER.fullmatch(other)):
        return False
    first, second = float(one), float(other)
    return abs(first - second) <= tolerance * max(1.0, abs(second))
