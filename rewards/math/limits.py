"""What is too large to be given to sympy at all. Looks at the text only; linear in its length.

What passes here can still take for ever: rewards/math/symbolic.py has a deadline and a limit on memory. This makes the
plain bombs cost nothing.
"""

from __future__ import annotations

import re

from rewards.math.extract import MAX_ANSWER

MAX_NESTING = 30  # brackets in brackets; sympy and the grammar recurse
MAX_DIGITS = 100  # of one number
MAX_EXPONENT = 10_000  # 2^{10000} has 3011 digits, which is no work
MAX_FACTORIAL = 1_000
MAX_BOUND = 1_000_000  # of a sum or product

_POWER = re.compile(r"(?:\^|\*\*)\s{0,4}\{?\s{0,4}-?\s{0,4}([0-9]+)")
_TOWER = re.compile(r"[0-9)}]\s{0,4}(?:\^|\*\*)\s{0,4}[({]{0,2}\s{0,4}-?[0-9]+\s{0,4}[)}]{0,2}\s{0,4}(?:\^|\*\*)")
_FACTORIAL = re.compile(r"([0-9]+)\s{0,4}!|[)}\]!]\s{0,4}!")
_BOUND = re.compile(r"\\(?:sum|prod|int)(?![a-zA-Z])")
_LOWER_BOUND = re.compile(r"\\(?:sum|prod|int)\s{0,4}_\s{0,4}(?:\{[^{}]{0,60}\}|\w)\s{0,4}\^")  # no power follows
_SCIENTIFIC = re.compile(r"[0-9][eE][+-]?[0-9]{3,}")
_DIGITS = re.compile(r"[0-9]+")
_CODE = re.compile(r"__|[\"`@#$~]|\x00|[\x01-\x08\x0e-\x1f]")


def too_large(text: str) -> str | None:
    """Why a text is not to be given to sympy, in words; None when it may."""
    if len(text) > MAX_ANSWER:
        return f"it has {len(text)} characters, more than {MAX_ANSWER}"
    if _CODE.search(text):
        return "it has signs that are no mathematics"
    depth = deepest = 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        return f"it is nested {deepest} deep, more than {MAX_NESTING}"
    if max(map(len, _DIGITS.findall(text)), default=0) > MAX_DIGITS:
        return f"it has a number of more than {MAX_DIGITS} digits"
    powers = _LOWER_BOUND.sub(" ", text)
    if _TOWER.search(powers) or _SCIENTIFIC.search(text) or any(int(n) > MAX_EXPONENT for n in _POWER.findall(powers)):
        return "it has a tower of powers, or a power that is too high"
    factorials = _FACTORIAL.findall(text)
    if len(factorials) > 4 or any(not n or int(n) > MAX_FACTORIAL for n in factorials):
        return "it has a factorial that is too large"
    if _BOUND.search(text) and any(int(n) > MAX_BOUND for n in _DIGITS.findall(text)):
        return "it has a sum or product over too many terms"
    return None
