"""The shape of a completion: its length, its script, whether it says the same again and again. These are added to a
reward that judges the content, and know nothing about right or wrong answers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.texts import Completion, completion_text
from rlft.errors import UserError

UNITS = ("tokens", "words", "characters")
SCRIPTS = (
    "latin", "han", "hiragana", "katakana", "hangul", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "bengali",
    "tamil", "telugu", "thai", "georgian", "armenian",
)  # fmt: skip
_NAMES = {"cjk": "han"}  # how names of characters in Unicode begin, where it is not the script's
_FORMULAS = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\[A-Za-z]+|<[^<>\n]{1,40}>", re.DOTALL
)


def overlong(completion_ids: Sequence[Sequence[int]], max_length: int, buffer: int, **columns: Any) -> list[float]:
    """0 up to max_length - buffer tokens, from there down in a straight line to -1 at max_length, -1 beyond (DAPO's
    soft overlong punishment, Yu et al. 2025, arXiv:2503.14476, eq. 13). With generator.max_new_tokens above max_length
    a completion can be punished before it is cut off."""
    check_overlong(max_length, buffer)
    return [-min(1.0, max(0.0, (len(ids) - (max_length - buffer)) / buffer)) for ids in completion_ids]


def repetition(completion_ids: Sequence[Sequence[int]], size: int = 20, **columns: Any) -> list[float]:
    """Minus the share of runs of `size` tokens that occurred before (the n-gram penalty of Yeo et al. 2025,
    "Demystifying long chain-of-thought reasoning", arXiv:2502.03373): 0 when nothing is said twice, close to -1 for a
    loop."""
    check_repetition(size)
    penalties = []
    for ids in completion_ids:
        runs = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
        penalties.append(len(set(runs)) / len(runs) - 1.0 if runs else 0.0)
    return penalties


def check_overlong(max_length: Any = None, buffer: Any = None) -> None:
    """For before a run starts: raise UserError for args that mean nothing."""
    if not _is_whole(max_length) or max_length < 1:
        raise UserError(f"reward 'overlong': max_length is {max_length!r}; expected a number of tokens")
    if not _is_whole(buffer) or not 0 < buffer <= max_length:
        raise UserError(
            f"reward 'overlong': buffer is {buffer!r}; expected above 0 and at most max_length, {max_length}"
        )


def check_repetition(size: Any = 20) -> None:
    """For before a run starts: raise UserError for args that mean nothing."""
    if not _is_whole(size) or size < 1:
        raise UserError(f"reward 'repetition': size is {size!r}; expected at least 1")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def length(
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    target: float | Sequence[float],
    tolerance: float = 0.0,
    unit: str = "tokens",
    **columns: Any,
) -> list[float]:
    """1 for a length within `tolerance` of `target`, from there down in a straight line to 0 at `target` further away:
    max(0, 1 - max(0, |length - target| - tolerance) / target). L1 (Aggarwal and Welleck 2025, arXiv:2503.04697, eq. 1)
    takes the distance without bound, and adds it to a reward for the right answer.

    Args:
        target: a number in args, or a column `target` of the data with one for each prompt.
        unit: tokens, words (between white space) or characters.
    """
    targets = [target] * len(completions) if isinstance(target, int | float) else target
    scores = []
    for completion, ids, wanted in zip(completions, completion_ids, targets, strict=True):
        if not isinstance(wanted, int | float) or not wanted > 0:
            raise UserError(f"reward 'length': target is {wanted!r}; expected a number above 0")
        text = completion_text(completion)
        found = {"tokens": len(ids), "words": len(text.split()), "characters": len(text)}[unit]
        scores.append(max(0.0, 1.0 - max(0.0, abs(found - wanted) - tolerance) / wanted))
    return scores


def check_length(target: Any = 1, tolerance: Any = 0, unit: Any = "tokens", **other: Any) -> None:
    """For before a run starts: raise UserError for args that mean nothing."""
    if not isinstance(target, int | float) or not target > 0:
        raise UserError(
            f"rewards: length has target {target!r}; expected a number above 0, or none where it is a column"
        )
    if not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise UserError(f"rewards: length has tolerance {tolerance!r}; expected 0 or more")
    if unit not in UNITS:
        raise UserError(f"rewards: length has unit {unit!r}; expected {', '.join(UNITS)}")


def language(completions: Sequence[Completion], scripts: Sequence[str], **columns: Any) -> list[float]:
    """The share of letters that are of these scripts: 1 for a completion that stays in its language (after the language
    consistency reward of DeepSeek-R1, Guo et al. 2025, arXiv:2501.12948, section 2.3.2, which takes words).
    Formulas, code and tags are left out, and a completion without letters gets 1.

    It tells scripts apart, not languages of one script: English and French are both latin, Japanese is
    [han, hiragana, katakana].
    """
    wanted = set(scripts)
    shares = []
    for completion in completions:
        found = [_script(letter) in wanted for letter in _letters(completion_text(completion))]
        shares.append(sum(found) / len(found) if found else 1.0)
    return shares


def check_language(scripts: Any = None, **other: Any) -> None:
    """For before a run starts: raise UserError for args that mean nothing."""
    if not isinstance(scripts, list | tuple) or not scripts or not set(map(str, scripts)) <= set(SCRIPTS):
        raise UserError(f"rewards: language has scripts {scripts!r}; expected a list of {', '.join(SCRIPTS)}")


def group_length(
    completion_ids: Sequence[Sequence[int]],
    earlier_rewards: Mapping[str, Sequence[float | None]],
    right: str,
    right_value: float = 1.0,
    **columns: Any,
) -> list[float]:
    """Short answers of a group before long ones (Kimi k1.5, Kimi Team 2025, arXiv:2501.12599, section 2.3.3):

        share = 0.5 - (length - shortest) / (longest - shortest)
        reward = share for a right answer, min(0, share) for a wrong one; 0 where all are equally long

    Lengths in tokens, of all answers of the group that the function is asked about. Right is an answer to which the
    function named `right`, which stands before this one, gave at least `right_value`.
    """
    lengths = [len(ids) for ids in completion_ids]
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    shares = [0.5 - (own - shortest) / (longest - shortest) for own in lengths]
    values = earlier_rewards[right]
    return [
        share if value is not None and value >= right_value else min(0.0, share)
        for share, value in zip(shares, values, strict=True)
    ]


def check_group_length(right: Any = None, right_value: Any = 1.0, **other: Any) -> None:
    """For before a run starts: raise UserError for args that mean nothing."""
    if not isinstance(right, str):
        raise UserError("rewards: group_length needs args.right, the name of the function that says what is right")
    if not isinstance(right_value, int | float):
        raise UserError(f"rewards: group_length has right_value {right_value!r}; expected a number")


def _check_order(earlier: Sequence[str], right: str, **other: Any) -> None:
    if right not in earlier:
        raise UserError(
            f"rewards: group_length has right {right!r}, and no function of that name stands before it; there "
            f"{'are' if len(earlier) > 1 else 'is'} {', '.join(earlier) or 'none'}. Name one of them, or move it up."
        )


def _letters(text: str) -> str:
    shown = unicodedata.normalize("NFKC", _FORMULAS.sub(" ", text))
    return "".join(letter for letter in shown if letter.isalpha())


def _script(letter: str) -> str:
    first = unicodedata.name(letter, "").partition(" ")[0].lower()
    return _NAMES.get(first, first)


overlong.check_args = check_overlong  # type: ignore[attr-defined]  # called when a run looks at its functions
repetition.check_args = check_repetition  # type: ignore[attr-defined]
length.check_args = check_length  # type: ignore[attr-defined]
language.check_args = check_language  # type: ignore[attr-defined]
group_length.check_args = check_group_length  # type: ignore[attr-defined]
group_length.check_order = _check_order  # type: ignore[attr-defined]  # called with the names of functions before it
