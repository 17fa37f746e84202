"""Finds the final answer in a text: the last \\boxed{}, "#### N", "the answer is ...", the last formula or number.

Knows nothing about what is right. Linear in the length of the text, and looks only at its end.
"""

from __future__ import annotations

import re
from collections import deque
from itertools import pairwise
from typing import NamedTuple

MAX_TEXT = 20_000  # characters from the end that are looked at: final answers come last
MAX_ANSWER = 500  # characters of an answer; longer ones are no final answers
MAX_BETWEEN = 80  # characters between two boxes that belong together

NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_BRACES = re.compile(r"\\{1,2}(?:boxed|fbox)\s{0,8}\{|\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(r"\banswer\s{0,8}(?:is|are|:|=)\s{0,8}:?\s{0,8}", re.IGNORECASE)
_FINAL_PHRASE = re.compile(r"\bfinal answer\s{0,8}(?:is|are|:|=)\s{0,8}:?\s{0,8}", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?;](?=\s|$)")
_IS = re.compile(r"(?:^|\s)(?:is|are|equals)(?=[\s:])\s*:?\s*", re.IGNORECASE)
_LAST_NUMBER = re.compile(rf"(?<![\w.)\]])-?\s?\$?(?:{NUMBER})(?:\s?/\s?(?:{NUMBER})|\s?\\?%)?|(?:{NUMBER})")
_PERCENT = re.compile(r"\s{0,4}(?:\$|\\\)|\\\])?\s{0,4}(?:\\?%|(?:percentage|percent|pct)(?![a-z]))", re.IGNORECASE)
_MATH = re.compile(  # TeX's ways to say that something is mathematics; a lone $ may be money
    r"(?<!\\)\$\$(?P<display>[^$]{1,500})\$\$"
    r"|\\\[(?P<square>(?:[^\\]|\\(?!\])){1,500})\\\]"
    r"|\\\((?P<round>(?:[^\\]|\\(?!\))){1,500})\\\)"
    r"|(?<![\\$\d])\$(?P<inline>(?! )[^$\n]{1,400}(?<![ \\])|[^$\n\\]{0,200}\\[a-zA-Z][^$\n]{1,400})\$(?!\d)"
)
_JOINING = re.compile(
    r"\\[()\[\]]|\\q?quad|\\text\s{0,4}\{\s{0,4}(?:and|or)\s{0,4}\}|\b(?:and|or)\b|[\s$,;&+]", re.IGNORECASE
)
_ASSIGNED = re.compile(r"[A-Za-z](?:_(?:\{\w{1,9}\}|\w))?=")
_FUNCTIONS = "and|or|sin|cos|tan|cot|sec|csc|ln|log|exp|max|min|gcd|mod"  # words that may stand in a formula
_PROSE = re.compile(rf"(?<![\\A-Za-z])(?!(?:{_FUNCTIONS})(?![a-z]))[A-Za-z]{{2,}}")
_UNIT = r"\s?[A-Za-z]+(?:\^?\{?[0-9\u00b2\u00b3]\}?)?"
_MEASURED = re.compile(rf"\\?\$?\s?-?\s?(?:{NUMBER})(?:/[0-9]+)?(?:{_UNIT}){{1,3}}\.?")
_BOLD = re.compile(r"\*\*(?=\S)([^*\n]{1,300})\*\*")  # Markdown's
_TEX_TEXT = re.compile(
    r"\\(?:text|textbf|mathrm|textnormal|mbox|operatorname)\s{0,4}\{[^{}]{0,200}\}"
    r"|\\(?:begin|end)\{[a-z]+\}|\\[a-zA-Z]+"
)


class _Box(NamedTuple):
    """Where a box begins and ends in a text, and where its content does."""

    begin: int
    content_begin: int
    content_end: int
    end: int


def final_answer(text: str) -> str | None:
    """The answer that a completion ends with, or None when it has none. Several boxes or formulas that belong together
    ("\\boxed{1} and \\boxed{2}") are one answer, joined by semicolons. What stands before the last </think> does not
    count, and beside an <answer>...</answer> nothing else does."""
    text = _BOLD.sub(r"\1", _answering(text[-MAX_TEXT:]))
    marked = marked_answer(text)
    if marked is not None or _is_marked(text):
        return marked
    found = bare_answer(text) or _last_of(text)
    return found if found is not None and len(found) <= MAX_ANSWER else None


def marked_answer(text: str) -> str | None:
    """The answer that the text itself marks as one: in a box, behind "####" or behind "answer is". A "final answer is"
    behind the last box counts more than the box."""
    text = text[-MAX_TEXT:]
    boxed = last_boxes(text)
    final = deque(_FINAL_PHRASE.finditer(text), maxlen=1)
    if boxed is not None and final and final[0].start() > text.rfind("boxed"):
        said = after_phrase(text)
        boxed = said if said is not None and re.search(r"\d|\\", said) else boxed
    for found in (boxed, after_hashes(text), after_phrase(text)):
        if found is not None and found.strip():
            return found.strip() if len(found) <= MAX_ANSWER else None
    return None


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} (or \\fbox) that is closed. One pass, braces counted."""
    text = text[-MAX_TEXT:]
    boxes = _boxes(text) if "box" in text else []
    return text[boxes[-1].content_begin : boxes[-1].content_end] if boxes else None


def last_boxes(text: str) -> str | None:
    """The last box, and those before it that belong to it, joined by semicolons: with nothing between but commas, "and"
    and names like "y_2 =". The same said twice counts once."""
    text = text[-MAX_TEXT:]
    boxes = _boxes(text) if "box" in text else []
    if not boxes:
        return None
    first = len(boxes) - 1
    while first > 0 and _belong(text[boxes[first - 1].end : boxes[first].begin]):
        first -= 1
    contents = dict.fromkeys(text[box.content_begin : box.content_end].strip() for box in boxes[first:])
    found = ";".join(contents)
    return f"{found}\\%" if len(contents) == 1 and _PERCENT.match(text, boxes[-1].end) else found


def open_box(text: str) -> str | None:
    """What stands in a last box that nobody closed, up to the end."""
    place = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    return text[place:].split("{", 1)[1].strip(" $.") if place >= 0 and last_boxed(text[place:]) is None else None


def after_hashes(text: str) -> str | None:
    """What follows the last "####" on its line, as GSM8K marks answers."""
    place = text.rfind("####")
    return text[place:].lstrip("#").split("\n", 1)[0].strip() if place >= 0 else None


def after_phrase(text: str) -> str | None:
    """What follows the last "answer is" (or "answer:"), up to the end of the sentence: its last formula if there is
    one, or what it says that something is."""
    match = deque(_PHRASE.finditer(text), maxlen=1)
    if not match:
        return None
    begin = match[0].end()
    rest = text[begin : begin + MAX_ANSWER]
    if _MATH.match(rest):
        return _formulas(rest, forward=True)
    end = _SENTENCE_END.search(rest)
    rest = rest[: end.start()] if end else rest
    said = deque(_IS.finditer(rest), maxlen=1)
    said_so = rest[said[0].end() :] if said else ""
    rest = said_so if said_so.strip() else rest
    return _formulas(rest) if _MATH.search(rest) and _PROSE.search(_MATH.sub("", rest)) else rest


def bare_answer(text: str) -> str | None:
    """The text itself where it is nothing but an answer: a formula, a word, a number with its unit."""
    text = text.strip()
    if not 0 < len(text) <= MAX_ANSWER:
        return None
    whole = _MATH.fullmatch(text)
    if whole or _MEASURED.fullmatch(text) or re.fullmatch(r"[A-Za-z]+\.?", text):
        return text
    plain = _TEX_TEXT.sub(" ", re.sub(r"(?<=[\d)])(?:or|and)(?=[A-Z])", " ", text))
    plain = re.sub(r"(?<=[\d$])\s{0,4}(?:percentage|percent|pct)\b", "", plain)
    if _PROSE.search(plain) or "\n" in plain or re.search(r"[A-Za-z]\d|['\"]|\*\*", plain):
        return None
    return text if re.search(r"\w|\\[{}]", text) else None


def last_number(text: str) -> str | None:
    """The last number of the text, with its sign, its fraction or its percent sign. None when it is glued to a letter
    or an operator in front ("x2", "1+1"): then it is a part of something else."""
    last = deque(_LAST_NUMBER.finditer(text), maxlen=1)
    if not last or len(last[0][0]) > MAX_ANSWER:
        return None
    before = text[: last[0].start()][-1:]
    return None if before.isalpha() or before in {*"_+*/^\\"} else last[0][0].strip()


def _answering(text: str) -> str:
    """Without thoughts, and of what is left the last that is tagged as the answer."""
    text = text.rpartition("</think>")[2]
    before, closed, _ = text.rpartition("</answer>")
    opened = before.rfind("<answer>")
    return before[opened + len("<answer>") :] if closed and opened >= 0 else text


def _is_marked(text: str) -> bool:
    """Whether the text marks something as its answer, be it unusable: then nothing else of it counts."""
    return any(found is not None and found.strip() for found in (last_boxes(text), after_hashes(text)))


def _last_of(text: str) -> str | None:
    """The last formula, or the last number when that comes later."""
    maths = deque(_MATH.finditer(text), maxlen=1)
    numbers = deque(_LAST_NUMBER.finditer(text), maxlen=1)
    if maths and (not numbers or numbers[0].end() <= maths[0].end()):
        return _formulas(text)
    return last_number(text)


def _formulas(text: str, forward: bool = False) -> str:
    """The last formula, with those before it that belong to it, joined by semicolons; `forward`: the first, with those
    behind it."""
    found = list(_MATH.finditer(text))
    joined = [_belong(text[one.end() : other.start()]) for one, other in pairwise(found)]
    if forward:
        found = found[: joined.index(False) + 1] if False in joined else found
    else:
        found = found[len(joined) - joined[::-1].index(False) :] if False in joined else found
    contents = [next(group for group in match.groups() if group is not None).strip() for match in found]
    answer = ";".join(contents)
    percent = len(contents) == 1 and not answer.endswith("%") and _PERCENT.match(text, found[-1].end())
    return f"{answer}\\%" if percent else answer


def _boxes(text: str) -> list[_Box]:
    """The closed boxes that stand in no other, in order."""
    open_braces: list[tuple[int, int]] = []  # where a box and its content begin; -1 for other braces
    boxes: list[_Box] = []
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "{":
            open_braces.append((-1, -1))
        elif token.endswith("{") and len(token) > 2:
            open_braces.append((match.start(), match.end()))
        elif token == "}" and open_braces:
            begin, content = open_braces.pop()
            if begin >= 0:
                while boxes and boxes[-1].begin > begin:
                    boxes.pop()
                boxes.append(_Box(begin, content, match.start(), match.end()))
    return boxes


def _belong(between: str) -> bool:
    """Whether what stands between two boxes or formulas says that they are one answer."""
    if len(between) > MAX_BETWEEN or ("\n" in between.strip(" ") and not re.search(r"\b(?:and|or)\b", between)):
        return False
    rest = _JOINING.sub("", between)
    return not rest or bool(_ASSIGNED.fullmatch(rest))
