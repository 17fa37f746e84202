"""The program in a completion. Knows nothing about tests or sandboxes; linear in the length of the text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

_FENCE = re.compile(r"[ ]{0,3}(`{3,}|~{3,})[ ]*([\w+#.-]*)")
_TAGS = {  # what models write behind a fence
    "python": ("python", "py", "python3", ""),
    "cpp": ("cpp", "c++", "cc", "cxx", ""),
    "c": ("c", ""),
    "javascript": ("javascript", "js", "node", ""),
    "java": ("java", ""),
    "go": ("go", "golang", ""),
    "rust": ("rust", "rs", ""),
    "bash": ("bash", "sh", "shell", ""),
    "perl": ("perl", "pl", ""),
    "ruby": ("ruby", "rb", ""),
}
_END_OF_THOUGHT = "</think>"
_BYTE_ORDER = "\ufeff"  # a mark in front of a program is no part of it
METHODS_CLASS = "Solution"  # of data of LeetCode's form, which names one of its methods


def find_program(text: str, language: str = "python", entry: str | None = None) -> tuple[str, bool] | None:
    """The program, and whether it stood in a fenced block; None when there is none.

    What is behind the last </think> counts. Of several blocks of the right language the last that defines `entry`, or
    what it begins with, or the class Solution, of which it may be a method; else the last. A block that is cut off ends
    with the text. Without any block the whole text, if there is something in it.
    """
    text = text.rpartition(_END_OF_THOUGHT)[2]
    blocks = [(tag, code.removeprefix(_BYTE_ORDER)) for tag, code in fenced_blocks(text)]
    if not blocks:
        return (text.removeprefix(_BYTE_ORDER), False) if text.strip() else None
    tags = _TAGS.get(language, (language, ""))
    right = [code for tag, code in blocks if tag.lower() in tags and code.strip()]
    if not right:
        return None
    for name in (re.split(r"\W", entry)[0], METHODS_CLASS) if entry else ():
        defining = [code for code in right if defines(code, name)]
        if defining:
            return defining[-1], True
    return right[-1], True


def fenced_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Tag and content of each fenced block (CommonMark: the closing fence is of the same kind, at least as long)."""
    tag, fence, lines = "", "", []
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        if not fence:
            if found and "`" not in line[found.end() :]:
                fence, tag, lines = found[1], found[2], []
        elif found and found[1][0] == fence[0] and len(found[1]) >= len(fence) and not line[found.end(1) :].strip():
            yield tag, "".join(lines)
            fence = ""
        else:
            lines.append(line)
    if fence:
        yield tag, "".join(lines)


def defines(code: str, name: str) -> bool:
    """Whether a function or class of that name is written at the top of `code`, which need not be right otherwise."""
    return re.search(rf"^(async[ ]+def|def|class)[ ]+{re.escape(name)}\b", code, re.MULTILINE) is not None


def parses(code: str) -> bool:
    """Whether it is Python. Too deep for the parser is not."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
