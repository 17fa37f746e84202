"""Answers that are one number, with what may stand around it: a percent sign, a unit, words.

Numbers are fractions of integers, so 1/3 is not 0.3333 and 50 is not 50%, but 0.5, 1/2 and 50% are one. Reads
normalised text (rewards/math/normalise.py). Nothing is evaluated as code, and long numbers are not read.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from rewards.math.extract import NUMBER

MAX_NUMBER = 100  # characters of a number; keeps int() and Fraction cheap

_NUMBER = re.compile(NUMBER)
_SIGNED = rf"[+-]?(?:{NUMBER})"
_PLAIN = re.compile(_SIGNED)
_SLASH = re.compile(rf"(?P<sign>[+-]?)(?:(?P<whole>[0-9]+) )?(?P<top>{_SIGNED})/(?P<bottom>{_SIGNED})")
_FRAC = re.compile(rf"(?P<sign>[+-]?)(?P<whole>[0-9]+)?\\frac\{{(?P<top>{_SIGNED})\}}\{{(?P<bottom>{_SIGNED})\}}")
_RATIO = re.compile(r"(?P<top>[0-9]{1,9}):(?P<bottom>[0-9]{1,9})")
_REPEATING = re.compile(r"(?P<sign>[+-]?)(?P<whole>[0-9]*)\.(?P<fixed>[0-9]*)\\(?:overline|bar)\{?(?P<cycle>[0-9]+)\}?")
_CLOCK = re.compile(r"[0-9]{1,2}:[0-5][0-9]")
_ANY = re.compile(rf"-?[0-9]*\\frac\{{{_SIGNED}\}}\{{{_SIGNED}\}}|(?:{NUMBER})(?:/(?:{NUMBER}))?")
_WORDS = re.compile(r"[A-Za-z' :,.]*")
_BEHIND = re.compile(r"(.{1,480}?) ((?:square |cubic )?[A-Za-z]+(?:\^\{?[23]\}?)?(?:(?:/| per )[A-Za-z]+)?)")
_POWER = re.compile(r"([A-Za-z]+)\^\{?([23])\}?")
# Words that change a number's meaning, so that "5 million" is not 5 and "not 5" is not 5
_TELLING_WORDS = frozenset(
    [
        *("not", "no", "never", "neither", "minus", "negative", "about", "over", "under", "than", "and", "or", "point"),
        *("half", "third", "quarter", "dozen", "hundred", "thousand", "million", "billion", "trillion", "percent"),
    ]
)
_UNITS = {  # canonical name: other spellings, without the plural's s
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "mg": "milligram", "g": "gram", "kg": "kilogram", "lb": "pound", "oz": "ounce", "t": "ton tonne",
    "s": "sec second", "min": "minute", "h": "hr hour", "d": "day", "wk": "week", "mo": "month", "yr": "year",
    "ml": "milliliter millilitre", "l": "liter litre", "gal": "gallon",
    "rad": "radian", "deg": "degree", "usd": "dollar", "cent": "cents", "eur": "euro", "yuan": "",
    "n": "newton", "j": "joule", "w": "watt", "v": "volt", "pa": "pascal", "hz": "hertz", "mol": "mole",
}  # fmt: skip
_CANONICAL = {spelling: name for name, others in _UNITS.items() for spelling in (name, *others.split())}
_NO_UNITS = frozenset(["unit", "units"])


class Quantity(NamedTuple):
    """A number and what it is of. `value` has the percent sign in it: 50% is 1/2."""

    value: Fraction
    is_percent: bool = False
    unit: str = ""  # what stands behind it, canonical where it is known: "cm^2", "apple"


def is_known(unit: str) -> bool:
    """Whether a unit is one of the table's, not just some word."""
    return all(word.split("^")[0] in _UNITS for word in unit.split("/"))


def split_unit(text: str) -> tuple[str, str]:
    """A formula, and the unit behind it or nothing: 6\\pi cm^2 is 6\\pi and cm^2."""
    match = _BEHIND.fullmatch(text)
    unit = _unit(" " + match[2]) if match else None
    return (match[1], unit) if match and unit else (text, "")


def parse_number(text: str) -> Fraction | None:
    """The exact value of a normalised text that is one number: 3, 0.5, 1,234, a/b, \\frac{a}{b}, 2 1/2, 50%, 3:4,
    0.1\\overline{6}."""
    if len(text) > MAX_NUMBER:
        return None
    percent, text = text.endswith("%"), text.removesuffix("%").rstrip()
    value = _parse_plain(text)
    return value / 100 if percent and value is not None else value


def read_quantity(text: str, words_before: bool = True) -> Quantity | None:
    """The one number in a text whose rest is its unit or harmless words ("18 dollars", "the sum is 7"), else None.
    Without `words_before` only what stands behind the number may be words."""
    value = parse_number(text)
    if value is not None:
        return Quantity(value, text.endswith("%"))
    match = _ANY.search(text) if len(text) <= 3 * MAX_NUMBER else None
    if match is None:
        return None
    before, after = text[: match.start()], text[match.end() :]
    negative = before.endswith("-") and not before[:-1].strip().endswith((*"0123456789)}",))
    before = before[:-1] if negative else before
    percent, after = after.startswith("%"), after.removeprefix("%")
    unit = _unit(after)
    words = "" if unit is not None else after
    if not _WORDS.fullmatch(before) or not _WORDS.fullmatch(words) or before[-1:].isalpha() or words[:1].isalpha():
        return None
    if (before.strip() and not words_before) or not _harmless(f"{before} {words}"):
        return None
    value = parse_number(match[0])
    if value is None:
        return None
    value = -value if negative else value
    return Quantity(value / 100 if percent else value, percent, unit if unit is not None else _noun(words))


def _parse_plain(text: str) -> Fraction | None:
    if _PLAIN.fullmatch(text):
        return _value(text)
    repeating = _REPEATING.fullmatch(text)
    if repeating:
        return _repeating(**repeating.groupdict())
    match = _SLASH.fullmatch(text) or _FRAC.fullmatch(text)
    ratio = None if match else _RATIO.fullmatch(text)
    if ratio and not _CLOCK.fullmatch(text):
        return Fraction(int(ratio["top"]), int(ratio["bottom"])) if int(ratio["bottom"]) else None
    if match is None or _value(match["bottom"]) == 0:
        return None
    part = _value(match["top"]) / _value(match["bottom"])
    if match["whole"] is not None:
        if not 0 <= part < 1:
            return None
        part += int(match["whole"])
    return -part if match["sign"] == "-" else part


def _repeating(sign: str, whole: str, fixed: str, cycle: str) -> Fraction:
    """0.1666... of 0.1 and the cycle 6: 0.1 + 6/90."""
    scale = 10 ** len(fixed)
    value = Fraction(int(f"{whole or 0}{fixed}"), scale) + Fraction(int(cycle), (10 ** len(cycle) - 1) * scale)
    return -value if sign == "-" else value


def _unit(text: str) -> str | None:
    """The unit that a text is, like cm^2 or km/h; None when it is none. One letter glued to a number is a variable."""
    stripped = text.strip().lower()
    if stripped in _NO_UNITS:
        return ""
    glued = bool(text) and not text[0].isspace()
    stripped = "mi/h" if stripped == "mph" else stripped
    stripped = re.sub(r"^(?:square|sq\.?) (\w+)$", r"\1^2", stripped)
    stripped = re.sub(r"^cubic (\w+)$", r"\1^3", stripped)
    stripped = re.sub(r"^(\w+) squared$", r"\1^2", re.sub(r" per ", "/", stripped))
    names = []
    for word in stripped.split("/"):
        power = _POWER.fullmatch(word)
        word, exponent = (power[1], f"^{power[2]}") if power else (word, "")
        name = _CANONICAL.get(word) or _CANONICAL.get(word.removesuffix("s"))
        if name is None or (glued and len(word) == 1 and not exponent):
            return None
        names.append(name + exponent)
    return "/".join(names)


def _noun(words: str) -> str:
    """The first word behind a number, without the plural's s."""
    found = re.findall(r"[a-z]+", words.lower())
    return (_CANONICAL.get(found[0]) or found[0].removesuffix("s")) if found else ""


def _harmless(text: str) -> bool:
    words = re.findall(r"[A-Za-z]+", text)
    return not any(word.lower() in _TELLING_WORDS or (len(word) == 1 and word not in ("a", "A", "I")) for word in words)


def _value(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
