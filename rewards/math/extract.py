"""Finds the final answer in a text: the last \\boxed{}, "#### N", "the answer is ...", or the last number.

Knows nothing about what is right. Linear in the length of the text, and looks only at its end.
"""

from __future__ import annotations

import re
from collections import deque

MAX_TEXT = 20_000  # characters from the end that are looked at: final answers come last
MAX_ANSWER = 500  # characters of an answer; longer ones are no final answers

NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,8}\{|\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(r"\banswer\s{0,8}(?:is|are|:|=)\s{0,8}:?\s{0,8}", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?;](?=\s|$)")
_LAST_NUMBER = re.compile(rf"(?<![\w.)\]])-?\s?\$?(?:{NUMBER})(?:\s?/\s?(?:{NUMBER})|\s?\\?%)?|(?:{NUMBER})")


def final_answer(text: str) -> str | None:
    """The answer that a completion ends with, or None when it has none."""
    text = text[-MAX_TEXT:]
    marked = marked_answer(text)
    return marked if marked is not None else last_number(text)


def marked_answer(text: str) -> str | None:
    """The answer that the text itself marks as one: in a box, behind "####" or behind "answer is"."""
    text = text[-MAX_TEXT:]
    for found in (last_boxed(text), after_hashes(text), after_phrase(text)):
        if found is not None and found.strip():
            return found.strip() if len(found) <= MAX_ANSWER else None
    return None


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} (or \\fbox) that is closed. One pass, braces counted."""
    open_braces: list[int] = []  # where a box's content begins; -1 for other braces
    last = None
    for match in _BRACES.finditer(text[-MAX_TEXT:]):
        token = match[0]
        if token == "{":
            open_braces.append(-1)
        elif token.endswith("{") and len(token) > 2:
            open_braces.append(match.end())
        elif token == "}" and open_braces:
            begin = open_braces.pop()
            if begin >= 0:
                last = (begin, match.start())
    return text[-MAX_TEXT:][last[0] : last[1]] if last else None


def after_hashes(text: str) -> str | None:
    """What follows the last "####" on its line, as GSM8K marks answers."""
    place = text.rfind("####")
    return text[place:].lstrip("#").split("\n", 1)[0].strip() if place >= 0 else None


def after_phrase(text: str) -> str | None:
    """What follows the last "answer is" (or "answer:"), up to the end of the sentence."""
    match = deque(_PHRASE.finditer(text), maxlen=1)
    if not match:
        return None
    begin = match[0].end()
    rest = text[begin : begin + MAX_ANSWER]
    end = _SENTENCE_END.search(rest)
    return rest[: end.start()] if end else rest


def last_number(text: str) -> str | None:
    """The last number of the text, with its sign, its fraction or its percent sign. None when it is glued to a letter
    or an operator in front ("x2", "1+1"): then it is a part of something else."""
    last = deque(_LAST_NUMBER.finditer(text), maxlen=1)
    if not last or len(last[0][0]) > MAX_ANSWER:
        return None
    before = text[: last[0].start()][-1:]
    return None if before.isalpha() or before in {*"_+*/^\\"} else last[0][0].strip()
