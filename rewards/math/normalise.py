"""One way of writing for an answer: TeX's many spellings, Unicode's signs and loose spaces are made the same.

What comes out is still text, and nothing in it has been understood. Linear in the length of the text.
"""

from __future__ import annotations

import re
from functools import lru_cache

from rewards.math.extract import MAX_ANSWER, NUMBER, last_boxed

_SIGNS = str.maketrans(
    {
        **{"\u2212": "-", "\u2013": "-", "\u00d7": "\\times ", "\u00f7": "\\div ", "\u00b7": "\\cdot "},
        **{"\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ", "\u2248": "\\approx ", "\u00b1": "\\pm "},
        **{"\u03c0": "\\pi ", "\u221e": "\\infty ", "\u222a": "\\cup ", "\u2208": "\\in ", "\u00b0": "^\\circ "},
        **{"\u00b2": "^2", "\u00b3": "^3", "\u221a": "\\sqrt", "\u00a0": " ", "\u202f": " "},
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},  # full width
        **{"\u00bd": "\\frac{1}{2}", "\u2153": "\\frac{1}{3}", "\u2154": "\\frac{2}{3}"},
        **{"\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}"},
        **dict.fromkeys("\u20ac\u00a3\u00a5", ""),
    }
)
_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s{0,4}\{([^{}]{0,200})\}"
)
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z{}%$,;! ])")
_GROUP = r"(\{[^{}]{0,200}\}|\d|[a-z])"
_ANGLE = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc))\s{0,4}\(?\{?\s{0,4}(\d{1,9})\s{0,4}\^\s{0,4}\{?\s{0,4}\\circ\s{0,4}\}?\}?\)?"
)
_REPLACED = (
    (re.compile(r"(?<=\d)\s{0,4}\{\s{0,4},\s{0,4}\}\s{0,4}(?=\d)"), ","),  # 14{,}916
    (re.compile(r",\s{0,4}\\!\s{0,4}"), ","),  # 11,\! 111
    (re.compile(r"(?<=\d)(?:\\[,!;: ]|~)(?=\d{3}(?!\d))"), ","),  # 11\,111
    (re.compile(r"(?<!\\)\\[!,;: ]|\\q?quad|\\enspace|~"), " "),
    (re.compile(r"\\(?:left|right|displaystyle|textstyle|[bB]igg?[lrm]?)(?![a-zA-Z])"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(rf"\\frac\s{{0,4}}{_GROUP}\s{{0,4}}{_GROUP}"), lambda m: rf"\frac{_braced(m[1])}{_braced(m[2])}"),
    (re.compile(r"\\sqrt\s{0,4}([0-9]|[a-z](?![a-z]))"), r"\\sqrt{\1}"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])|<=|=<"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\(?:neq|not\s?=)(?![a-zA-Z])|!="), r"\\ne "),
    (re.compile(r"\\(?:lor|vee)(?![a-zA-Z])"), " or "),
    (re.compile(r"\\(?:land|wedge)(?![a-zA-Z])"), " and "),
    (re.compile(r"\\mathbb\s{0,4}\{?R\}?(?![a-zA-Z^_])"), r"(-\\infty,\\infty)"),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\langle(?![a-zA-Z])"), "("),
    (re.compile(r"\\rangle(?![a-zA-Z])"), ")"),
    (re.compile(r"\\varnothing(?![a-zA-Z])|\\\{\s{0,4}\\\}"), r"\\emptyset"),
    (re.compile(r"(?<![a-zA-Z\\])infinity(?![a-zA-Z])"), r"\\infty"),
    (re.compile(r"\\(?=[%#&])"), ""),
    (re.compile(r"\\\$|\$|(?<!\\)\\[()\[\]]"), ""),
    (_ANGLE, r"\1(\\frac{\2\\pi}{180})"),  # elsewhere degrees are a unit, which the number does without
    (re.compile(r"\^\s{0,4}\\circ|\^\s{0,4}\{\s{0,4}\\circ\s{0,4}\}"), ""),
    (re.compile(r"(?<=[\d}])\s{0,4}(?:percentage|percent|pct)(?![a-zA-Z])\.?", re.IGNORECASE), "%"),
)
_NUMBER = re.compile(rf"-?(?:{NUMBER})")
_SPACED = re.compile(r"-?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")  # thousands
_NUMBER_LIST = re.compile(r"[\d.,\s]*,\s[\d.,\s]*")
_SPACES = re.compile(r"\s+")
_LOOSE_SPACES = re.compile(r"(?<![^\W_]) | (?![^\W_])")  # spaces that do not part two words or numbers
_LETTER = re.compile(r"\([A-Za-z]\)")  # a choice


@lru_cache(maxsize=1024)  # a group asks for the same right answer again and again
def normalise(text: str) -> str:
    """The answer without dollar signs, TeX spacing, text wrappers, loose spaces and a last full stop. A longer one than
    MAX_ANSWER is left as it is."""
    text = text.strip()
    if len(text) > MAX_ANSWER or _NUMBER.fullmatch(text):
        return text
    text = text.translate(_SIGNS)
    if "\\begin" not in text or "\\\\begin" in text:  # else a doubled backslash ends a row
        text = _DOUBLED.sub(r"\\", text)
    boxed = last_boxed(text)
    text = boxed if boxed is not None else text
    for _ in range(3):  # text in text
        text = _WRAPPERS.sub(r" \1 ", text)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = _without_group(text.strip())
    if _NUMBER_LIST.fullmatch(text):  # "32, 349" is two numbers, "32,349" is one
        text = re.sub(r",\s+", ";", text.strip())
    text = text.replace(" ", "") if _SPACED.fullmatch(text) else text
    text = _LOOSE_SPACES.sub("", _SPACES.sub(" ", text).strip()).strip()
    text = text.rstrip(".,;").strip()
    if _LETTER.fullmatch(text):
        text = text[1:-1]
    return text.lower() if len(text) > 1 and text.isalpha() else text


def _braced(piece: str) -> str:
    return piece if piece.startswith("{") else f"{{{piece}}}"


def _without_group(text: str) -> str:
    """The text without braces that group all of it, which TeX does not show: {1,3} is 1,3."""
    while text.startswith("{") and text.endswith("}") and not text.endswith("\\}"):
        depth = 0
        for place, letter in enumerate(text):
            escaped = place > 0 and text[place - 1] == "\\"
            depth += 0 if escaped else (letter == "{") - (letter == "}")
            if depth == 0 and place < len(text) - 1:
                return text
        text = text[1:-1].strip()
    return text
