"""Multiple choice: an answer as the letter of an option, whether it says the letter or the option's text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.math.normalise import normalise

_LETTER = re.compile(r"\(?([A-Za-z])(?:[).:](?:\s.*)?)?", re.DOTALL)


def chosen(answer: str, options: Sequence[Any] | Mapping[str, Any]) -> str:
    """The letter of the option that `answer` names; the answer itself when it names none, or more than one. `options`
    are texts, of which A is the first, or letters with their texts."""
    texts = (
        {str(letter).upper(): str(text) for letter, text in options.items()}
        if isinstance(options, Mapping)
        else {chr(ord("A") + place): str(text) for place, text in enumerate(options)}
    )
    plain = normalise(answer)
    named = [letter for letter, text in texts.items() if normalise(text).casefold() == plain.casefold()]
    if len(named) == 1:
        return named[0]
    match = _LETTER.fullmatch(plain) or _LETTER.match(answer.strip())
    said = match[1].upper() if match and (len(plain) == 1 or match.end() > 1) else ""
    return said if said in texts else answer
