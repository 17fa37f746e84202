"""Whether two answers are the same: as text after normalisation, or as exact numbers.

Numbers are fractions of integers, so 1/3 is not 0.3333 and 50 is not 50%, but 0.5, 1/2 and 50% are one. Nothing is ever
evaluated as code, and long answers are compared as text only. Knows nothing about where answers come from.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.math.extract import MAX_ANSWER, NUMBER, last_boxed

MAX_NUMBER = 100  # characters of a number; keeps int() and Fraction cheap

_NUMBER = re.compile(NUMBER)
_SIGNED = rf"[+-]?(?:{NUMBER})"
_PLAIN = re.compile(rf"(?P<value>{_SIGNED})(?P<percent>%?)")
_SLASH = re.compile(rf"(?P<sign>[+-]?)(?:(?P<whole>\d+) )?(?P<top>{_SIGNED})/(?P<bottom>{_SIGNED})")
_FRAC = re.compile(rf"(?P<sign>[+-]?)(?P<whole>\d+)?\\frac\{{(?P<top>{_SIGNED})\}}\{{(?P<bottom>{_SIGNED})\}}")
_WRAPPERS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textnormal|mbox)\{([^{}]{0,200})\}")
_REPLACED = (
    (re.compile(r",\\!\s{0,4}"), ","),  # 11,\! 111
    (re.compile(r"\\[!,;: ]|\\q?quad(?![a-zA-Z])|~"), " "),
    (re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s{0,4}(\d)\s{0,4}(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\(?=[%#&])"), ""),
    (re.compile(r"\\\$|\$|\\[()\[\]]"), ""),
    (re.compile("[\u2212\u2013]"), "-"),
    (re.compile(r"\^\\circ|\^\{\\circ\}|\u00b0"), ""),
)
_NUMBER_LIST = re.compile(r"[\d.,\s]*,\s[\d.,\s]*")
_SPACES = re.compile(r"\s+")
_LOOSE_SPACES = re.compile(r"(?<![^\W_]) | (?![^\W_])")  # spaces that do not part two words or numbers
_ASSIGNMENT = re.compile(r"[A-Za-z]\w{0,3}=([^=<>]+)")
_WORDS = re.compile(r"[A-Za-z' :,.]*")
# Words that change a number's meaning, so that "5 million" is not 5 and "not 5" is not 5
_TELLING_WORDS = frozenset(
    [
        *("not", "no", "never", "neither", "minus", "negative", "about", "over", "under", "than", "and", "or", "point"),
        *("half", "third", "quarter", "dozen", "hundred", "thousand", "million", "billion", "trillion", "percent"),
    ]
)


def same_answer(gold: str, answer: str) -> bool:
    """Whether `answer` is `gold`. Symmetric in numbers; words around a number are forgiven in `answer` only."""
    gold, answer = normalise(gold), normalise(answer)
    if not gold or not answer:
        return False
    if gold == answer:
        return gold != "nan"
    gold_part, answer_part = _after_equals(gold), _after_equals(answer)
    if gold_part is None or answer_part is None:  # "x = 5" is 5, but not "y = 5"
        gold, answer = gold_part or gold, answer_part or answer
    if gold == answer:
        return True
    expected = parse_number(gold)
    if expected is None:
        return False
    found = parse_number(answer)
    return expected == (found if found is not None else only_number(answer))


def normalise(text: str) -> str:
    """The answer without dollar signs, TeX spacing, text wrappers, loose spaces and a last full stop."""
    text = text.strip()
    if len(text) > MAX_ANSWER:
        return text
    boxed = last_boxed(text)
    text = boxed if boxed is not None else text
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = _WRAPPERS.sub(r" \1 ", text)
    if _NUMBER_LIST.fullmatch(text):  # "32, 349" is two numbers, "32,349" is one
        text = re.sub(r",\s+", ";", text.strip())
    text = _LOOSE_SPACES.sub("", _SPACES.sub(" ", text).strip()).strip()
    text = text.rstrip(".").strip()
    if re.fullmatch(r"\([A-Za-z]\)", text):  # a choice
        text = text[1:-1]
    return text.lower() if len(text) > 1 and text.isalpha() else text


def parse_number(text: str) -> Fraction | None:
    """The exact value of a normalised text that is one number: 3, 0.5, 1,234, a/b, \\frac{a}{b}, 2 1/2, 50%."""
    if len(text) > MAX_NUMBER:
        return None
    plain = _PLAIN.fullmatch(text)
    if plain:
        return _value(plain["value"]) / (100 if plain["percent"] else 1)
    match = _SLASH.fullmatch(text) or _FRAC.fullmatch(text)
    if match is None or _value(match["bottom"]) == 0:
        return None
    part = _value(match["top"]) / _value(match["bottom"])
    if match["whole"] is not None:
        if not 0 <= part < 1:
            return None
        part += int(match["whole"])
    return -part if match["sign"] == "-" else part


def only_number(text: str) -> Fraction | None:
    """The value of the one number in a text whose rest is harmless words ("18 dollars", "the sum is 7"), else None."""
    match = _NUMBER.search(text)
    if match is None or _NUMBER.search(text, match.end()):
        return None
    before, after = text[: match.start()], text[match.end() :]
    negative = before.endswith("-") and not before[:-1].strip().endswith(tuple("0123456789)"))
    before = before[:-1] if negative else before
    percent, after = after.startswith("%"), after.removeprefix("%")
    if not _WORDS.fullmatch(before) or not _WORDS.fullmatch(after) or before[-1:].isalpha() or after[:1].isalpha():
        return None
    if _TELLING_WORDS & set(re.findall(r"[a-z]+", f"{before} {after}".lower())):
        return None
    value = parse_number(match[0])
    if value is None:
        return None
    return (-value if negative else value) / (100 if percent else 1)


def _after_equals(text: str) -> str | None:
    match = _ASSIGNMENT.fullmatch(text)
    return match[1] if match else None


def _value(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
