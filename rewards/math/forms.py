"""What an answer is made of: several answers, coordinates, intervals, sets, unions, matrices, x = 5, and in them pieces
that are numbers, words or formulas.

Reads normalised text. Nothing is calculated, and what is not understood stays one piece. Brackets are read with a
counter, and nesting has a limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rewards.math.normalise import normalise
from rewards.math.quantity import read_quantity

MAX_DEPTH = 8

_LETTER = r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|rho|sigma|tau|ell|angle [A-Z]{1,3}))"
_PLAIN_NAME = rf"{_LETTER}{{1,3}}(?:_(?:\{{\w{{1,9}}\}}|\w))?'{{0,3}}"
_FUNCTION = rf"{_LETTER}(?:_(?:\{{\w{{1,9}}\}}|\w))?(?:\^\{{-1\}})?'{{0,3}}\([\w,]{{1,20}}\)"
_NAME = re.compile(rf"{_FUNCTION}|{_PLAIN_NAME}(?::{_PLAIN_NAME}){{0,3}}|\({_PLAIN_NAME}(?:,{_PLAIN_NAME}){{0,9}}\)")
_AND = re.compile(r"(?<![A-Za-z\\])(?:and|or)(?![a-z])")
_WORDS = re.compile(r"[A-Za-z' -]+")
_COMPARED = re.compile(r"\\(?:le|ge|ne)(?![a-zA-Z])|[<>]")
_APPROX = re.compile(r"\\(?:approx|simeq|sim)(?![a-zA-Z])")
_IN = re.compile(r"\\in(?![a-zA-Z])")
_SIGN = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])")
_MATRIX = re.compile(r"[\[(]?\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|]{0,20}\})?(.*)\\end\{\1\}[\])]?", re.DOTALL)
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_CONDITION = re.compile(r"\\mid(?![a-zA-Z])|\||:")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A piece that is no list of others."""

    text: str


@dataclass(frozen=True, slots=True)
class Named:
    """x = 5, or x in a set: a name and what it is."""

    text: str
    name: str
    value: Form


@dataclass(frozen=True, slots=True)
class Several:
    """Answers beside each other: 1, 2 and 3, or a set."""

    text: str
    items: tuple[Form, ...]
    kind: Literal["list", "set"] = "list"


@dataclass(frozen=True, slots=True)
class Brackets:
    """Coordinates or an interval: (1, 2], with its brackets."""

    text: str
    opening: str
    closing: str
    items: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Union:
    """A union of sets."""

    text: str
    items: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of pieces."""

    text: str
    rows: tuple[tuple[Form, ...], ...]


Form = Leaf | Named | Several | Brackets | Union | Matrix


def read_form(text: str, depth: int = 0) -> Form:
    """What a normalised answer is made of."""
    text = normalise(text) if depth else text
    if (
        depth >= MAX_DEPTH
        or read_quantity(text, False) is not None
        or (_WORDS.fullmatch(text) and not _AND.search(text))
    ):
        return Leaf(text)
    for reader in (_several, _both_signs, _union, _relation, _matrix, _bracketed):
        form = reader(text, depth + 1)
        if form is not None:
            return form
    return Leaf(text)


def _several(text: str, depth: int) -> Form | None:
    """Answers parted by semicolons, by words, or by commas."""
    parts = split(text, ";")
    if len(parts) == 1:
        parts = split(_AND.sub(";", text), ";") if _AND.search(text) else parts
        parts = [piece for part in parts for piece in _at_commas(part)]
    parts = [part for part in parts if part.strip()]
    if len(parts) == 1 and parts[0] != text:
        return read_form(parts[0], depth)
    return _listed(text, [read_form(part, depth) for part in parts]) if len(parts) > 1 else None


def _at_commas(text: str) -> list[str]:
    return [text] if read_quantity(normalise(text), False) is not None else split(text, ",")


def _listed(text: str, forms: Sequence[Form]) -> Form:
    """A list; what both signs of a piece made two of stands in it as two."""
    items: list[Form] = []
    for form in forms:
        two = isinstance(form, Several) and form.kind == "list" and _SIGN.search(form.text)
        items.extend(form.items if two and isinstance(form, Several) else [form])
    return Several(text, tuple(items))


def _both_signs(text: str, depth: int) -> Form | None:
    """a \\pm b as two answers."""
    if not _SIGN.search(text) or len(split(text, ",")) > 1:
        return None
    plus = text.replace("\\pm", "+").replace("\\mp", "-")
    minus = text.replace("\\pm", "-").replace("\\mp", "+")
    return Several(text, tuple(read_form(version.lstrip("+"), depth) for version in (plus, minus)))


def _union(text: str, depth: int) -> Form | None:
    parts = split(text, "\\cup")
    if len(parts) < 2 or _IN.search(text) or "=" in parts[0]:
        return None
    return Union(text, tuple(read_form(part, depth) for part in parts))


def _relation(text: str, depth: int) -> Form | None:
    """x = 5, a chain of equations, an inequality that an interval says, or that something is in a set."""
    inside = _IN.search(text)
    if inside and _NAME.fullmatch(text[: inside.start()].strip()):
        return Named(text, text[: inside.start()].strip(), read_form(text[inside.end() :], depth))
    about = _APPROX.search(text)
    if about and len(_APPROX.findall(text)) == 1:
        exact, rounded = text[: about.start()].strip(), text[about.end() :].strip()
        if exact and rounded:
            is_name = _NAME.fullmatch(exact)
            return Named(text, exact, read_form(rounded, depth)) if is_name else read_form(exact, depth)
    if _COMPARED.search(text):
        return _interval(text, depth) if "=" not in text else None
    parts = [part.strip() for part in split(text, "=")]
    if len(parts) < 2 or not all(parts):
        return None
    if _NAME.fullmatch(parts[0]):
        return Named(text, parts[0], read_form(parts[-1], depth))
    if _NAME.fullmatch(parts[-1]) and len(parts) == 2:
        return Named(text, parts[-1], read_form(parts[0], depth))
    is_sum = not re.search("[A-Za-z]", _COMMAND.sub("", text))  # 48 + 24 = 72, and not a + 3z = 0
    return read_form(parts[-1], depth) if is_sum or len(parts) > 2 else None


def _interval(text: str, depth: int) -> Form | None:
    """The interval that x < 3 or 1 \\le x < 2 means, named x."""
    signs = ["<" if "le" in sign or sign == "<" else ">" for sign in _COMPARED.findall(text)]
    if "\\ne" in _COMPARED.findall(text) or len(set(signs)) != 1 or len(signs) > 2:
        return None
    strict = ["(" if sign in "<>" else "[" for sign in _COMPARED.findall(text)]
    sides = [part.strip() for part in _COMPARED.split(text)]
    if signs[0] == ">":
        sides, strict = sides[::-1], strict[::-1]
    if len(sides) == 2 and _NAME.fullmatch(sides[0]):
        sides, strict = ["-\\infty", *sides], ["(", *strict]
    elif len(sides) == 2:
        sides, strict = [*sides, "\\infty"], [*strict, "("]
    low, name, high = sides
    if not low or not high or not _NAME.fullmatch(name):
        return None
    closing = {"(": ")", "[": "]"}[strict[1]]
    ends = (read_form(low, depth), read_form(high, depth))
    return Named(text, name, Brackets(text, strict[0], closing, ends))


def _matrix(text: str, depth: int) -> Form | None:
    match = _MATRIX.fullmatch(text)
    if match is None or "\\begin" in match[2]:
        return None
    rows = [row for row in match[2].split("\\\\") if row.strip()]
    cells = [row.split("&") for row in rows]
    if len({len(row) for row in cells}) != 1:
        return None
    return Matrix(text, tuple(tuple(read_form(cell, depth) for cell in row) for row in cells))


def _bracketed(text: str, depth: int) -> Form | None:
    """What one pair of brackets holds: a set in \\{ \\}, coordinates or an interval in others."""
    if text.startswith("\\{") and text.endswith("\\}") and _closes_at_end(text):
        inner = text[2:-2]
        condition = [part for part in _CONDITION.split(inner, maxsplit=1) if part.strip()]
        if len(condition) == 2 and _NAME.fullmatch(condition[0].strip()):
            return read_form(condition[1], depth)
        return Several(text, tuple(read_form(part, depth) for part in split(inner, ",")), "set")
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or not _closes_at_end(text):
        return None
    inner = text[1:-1]
    parts = split(inner, ";") if len(split(inner, ";")) > 1 else split(inner, ",")
    if len(parts) == 1:
        return read_form(inner, depth) if text[0] == "(" and text[-1] == ")" else None
    return Brackets(text, text[0], text[-1], tuple(read_form(part, depth) for part in parts))


def split(text: str, separator: str) -> list[str]:
    """The text at each separator that stands in no bracket; all of it where brackets do not fit."""
    parts, begin, depth, place = [], 0, 0, 0
    while place < len(text):
        if text.startswith("\\begin", place) or text.startswith("\\end", place):
            depth += 1 if text.startswith("\\begin", place) else -1
        if depth == 0 and text.startswith(separator, place):
            parts.append(text[begin:place])
            place = begin = place + len(separator)
            continue
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if depth < 0:
            return [text]
        place += 1
    return [*parts, text[begin:]] if depth == 0 else [text]


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens a text is closed by its last sign."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and place > 0:
            return place == len(text) - 1
    return False
