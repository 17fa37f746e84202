"""Asks a judge which of two answers is better, and reads what it says.

Knows nothing about where answers come from or what a verdict is for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlft.endpoint.client import Asker
from rlft.synthesis.rows import LeftOut

Verdict = Literal["A", "B"]
UNPARSED = "unparsed"  # why a row is left out
_VERDICT = re.compile(r"VERDICT: ([AB])")
_QUESTION = """\
Below are a conversation and two answers to its last message.

<conversation>
{conversation}
</conversation>

<answer_A>
{a}
</answer_A>

<answer_B>
{b}
</answer_B>

{principle}

Compare the two answers in a few sentences. Then end with a last line that is exactly "VERDICT: A" or "VERDICT: B"."""


def ask_verdict(
    ask: Asker,
    messages: Sequence[Mapping[str, Any]],
    principle: str,
    a: str,
    b: str,
    *,
    temperature: float,
    max_asks: int,
) -> tuple[Verdict, str]:
    """(which of two answers to a conversation is better by `principle`, the judge's words). A reply without a verdict
    is asked for again, `max_asks` times in all; then LeftOut is raised."""
    talk = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)
    question = _QUESTION.format(conversation=talk, a=a, b=b, principle=principle.strip())
    for _ in range(max_asks):
        reply = ask([{"role": "user", "content": question}], temperature=temperature)
        verdict = read_verdict(reply.text)
        if verdict is not None:
            return verdict, reply.text
    raise LeftOut(UNPARSED)


def read_verdict(text: str) -> Verdict | None:
    """A or B when the last line that is not empty is a verdict and nothing else; otherwise None."""
    lines = text.strip().splitlines()
    found = _VERDICT.fullmatch(lines[-1].strip()) if lines else None
    return None if found is None else ("A" if found[1] == "A" else "B")
