"""Whether two answers are the same, in stages: as text, as numbers with units, piece by piece in lists, intervals and
matrices, and what is left as formulas by sympy in a process that may be killed.

Knows nothing about where answers come from.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rewards.math import symbolic
from rewards.math.forms import Brackets, Form, Leaf, Matrix, Named, Several, Union, read_form
from rewards.math.limits import too_large
from rewards.math.normalise import normalise
from rewards.math.policy import Policy
from rewards.math.quantity import Quantity, is_known, parse_number, read_quantity, split_unit

SHOWN = 60  # characters of an answer in a message

_WORDS = re.compile(r"[A-Za-z][A-Za-z' ,-]*")
_CHOICE = re.compile(r"\(?([A-Ja-j])(?:[).:]|\s*$)")
_NO_NUMBERS = frozenset(["nan", "undefined nan", "inf", "+inf", "-inf"])
_RELATION = re.compile(r"\\(?:le|ge|ne|in)(?![a-zA-Z])|[<>=]")
_IN = re.compile(r"\\in(?![a-zA-Z])")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_BASE = re.compile(r"[0-9A-Fa-f]+_\{?[0-9]+\}?")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison came to. `word`: right, wrong, unparsed (the answer is no mathematics) or timeout (unknown)."""

    word: Literal["right", "wrong", "unparsed", "timeout"]
    detail: str = ""


def same_answer(gold: str, answer: str, policy: Policy | None = None) -> bool:
    """Whether `answer` is `gold`."""
    return compare(gold, answer, policy or Policy()).word == "right"


def compare(gold: str, answer: str, policy: Policy) -> Verdict:
    """Whether `answer` is `gold`, and if not, why. Takes at most the policy's deadline beyond milliseconds."""
    right, found = normalise(gold), normalise(answer)
    if not right or not found:
        return Verdict("unparsed" if right else "wrong", f"the {'answer' if right else 'right answer'} is empty")
    comparison = _Comparison(policy, time.monotonic() + policy.deadline_s)
    if comparison.same(read_form(right), read_form(found)):
        return Verdict("right")
    told = f"expected {_short(gold)}, found {_short(answer)}"
    if comparison.timed_out:
        return Verdict("timeout", f"{told}: {comparison.timed_out}")
    if comparison.unread:
        return Verdict("unparsed", f"{told}, which cannot be read: {comparison.unread}")
    return Verdict("wrong", f"{told} ({comparison.how})")


@dataclass
class _Comparison:
    """One comparison: its rules, its end, and what was met on the way. In each pair the right answer comes first."""

    policy: Policy
    end: float
    how: str = "text"  # by what they differ, for people
    unread: str = ""
    timed_out: str = ""
    known: dict[tuple[str, str], bool] = field(default_factory=dict)  # formulas that were compared

    def same(self, gold: Form, answer: Form) -> bool:
        if gold.text == answer.text:
            return gold.text.lower() not in _NO_NUMBERS
        if isinstance(gold, Leaf) and isinstance(answer, Leaf):
            return self._same_leaves(gold.text, answer.text)
        if isinstance(gold, Named) or isinstance(answer, Named):
            return self._same_named(gold, answer)
        if isinstance(gold, Matrix) and isinstance(answer, Matrix):
            self.how = "matrices"
            fits = [len(row) for row in gold.rows] == [len(row) for row in answer.rows]
            return fits and all(map(self._in_order, gold.rows, answer.rows))
        if isinstance(gold, Matrix | Brackets) and isinstance(answer, Matrix | Brackets):
            sides = [_coordinates(one) for one in (gold, answer)]
            if sides[0] and sides[1] and isinstance(gold, Matrix) != isinstance(answer, Matrix):
                return self._in_order(sides[0], sides[1])
        if isinstance(gold, Union) or isinstance(answer, Union):
            return self._same_unions(gold, answer)
        if isinstance(gold, Brackets | Several) and isinstance(answer, Brackets | Several):
            return self._same_lists(gold, answer)
        return self._different_kinds(gold, answer)

    def _same_named(self, gold: Form, answer: Form) -> bool:
        """x = 5 is 5 and not y = 5. The letter in f(x) does not matter where the function's value has none."""
        if isinstance(gold, Named) and isinstance(answer, Named):
            names = [one.name.split("(")[0] if re.search(r"\w\(", one.name) else one.name for one in (gold, answer)]
            if names[0] == names[1]:
                return self.same(gold.value, answer.value)
            self.how = "names"
            values = [one.value for one in (gold, answer)]
            are_equations = any(isinstance(one, Brackets) or re.search("[a-zA-Z]", one.text) for one in values)
            return are_equations and self._same_formulas(gold.text, answer.text)
        one, other = (gold, answer) if isinstance(gold, Named) else (answer, gold)
        if isinstance(other, Leaf) and _RELATION.search(other.text):  # an equation or inequality of another form
            return self._same_formulas(_said_of(gold), _said_of(answer))
        if isinstance(one, Named):
            return self.same(one.value, other) if one is gold else self.same(other, one.value)
        return False

    def _same_unions(self, gold: Form, answer: Form) -> bool:
        self.how = "sets"
        sides = [list(one.items) if isinstance(one, Union | Several) else [one] for one in (gold, answer)]
        parts = [[item.value if isinstance(item, Named) else item for item in side] for side in sides]
        are_sets = all(isinstance(item, Brackets | Several) for side in parts for item in side)
        if are_sets and len(parts[0]) == len(parts[1]) and self._in_any_order(parts[0], parts[1]):
            return True
        return self._same_formulas(gold.text, answer.text)

    def _same_lists(self, gold: Brackets | Several, answer: Brackets | Several) -> bool:
        if isinstance(gold, Brackets) and isinstance(answer, Brackets):
            self.how = "brackets"
            if (gold.opening, gold.closing) != (answer.opening, answer.closing):
                return False
            return self._in_order(gold.items, answer.items)
        if isinstance(gold, Brackets) or isinstance(answer, Brackets):
            brackets, several = (gold, answer) if isinstance(gold, Brackets) else (answer, gold)
            self.how = "kinds"  # (1, 2) is 1, 2 without its brackets; no set, and no interval with closed ends
            round_ones = isinstance(brackets, Brackets) and (brackets.opening, brackets.closing) == ("(", ")")
            is_list = isinstance(several, Several) and several.kind == "list"
            return round_ones and is_list and self._in_order(gold.items, answer.items)
        self.how = "several answers"
        if len(gold.items) != len(answer.items):
            self.how = f"{len(gold.items)} answers, not {len(answer.items)}"
            return False
        if self.policy.order == "strict" and {gold.kind, answer.kind} == {"list"}:
            return self._in_order(gold.items, answer.items)
        names = [[item.name for item in one.items if isinstance(item, Named)] for one in (gold, answer)]
        if bool(names[0]) != bool(names[1]):  # "p = 5, q = 2" is "5, 2": in the names' order
            own = names[0] or names[1]
            if len(set(own)) == len(own):
                return self._in_order(gold.items, answer.items)
        return self._in_any_order(gold.items, answer.items)

    def _in_order(self, gold: Sequence[Form], answer: Sequence[Form]) -> bool:
        return len(gold) == len(answer) and all(map(self.same, gold, answer))

    def _in_any_order(self, gold: Sequence[Form], answer: Sequence[Form]) -> bool:
        """Each is matched with the first that it equals; texts first, which costs nothing."""
        left = list(answer)
        rest = []
        for one in gold:
            twin = next((other for other in left if other.text == one.text), None)
            if twin is None:
                rest.append(one)
            else:
                left.remove(twin)
        for one in rest:
            twin = next((other for other in left if self.same(one, other)), None)
            if twin is None:
                return False
            left.remove(twin)
        return True

    def _different_kinds(self, gold: Form, answer: Form) -> bool:
        """A piece and a list: one answer in a set is that answer, and a formula may say what a list says."""
        for one, other, swapped in ((gold, answer, False), (answer, gold, True)):
            if isinstance(one, Several) and len(one.items) == 1:
                return self.same(other, one.items[0]) if swapped else self.same(one.items[0], other)
        if {",", "."} <= {*gold.text, *answer.text} and self._decimal_comma(gold.text, answer.text):
            return True
        self.how = "kinds"
        leaf = gold if isinstance(gold, Leaf) else answer
        formula = isinstance(leaf, Leaf) and (_RELATION.search(leaf.text) or "\\begin" in leaf.text)
        return bool(formula) and self._same_formulas(gold.text, answer.text)

    def _decimal_comma(self, gold: str, answer: str) -> bool:
        """1,22 is 1.22 where the other is written with a point and the same digits."""
        texts = (gold, answer)
        if sum(bool(_DECIMAL_COMMA.fullmatch(text)) for text in texts) != 1:
            return False
        return gold.replace(",", ".") == answer.replace(",", ".")

    def _same_leaves(self, gold: str, answer: str) -> bool:
        if gold.lower() in _NO_NUMBERS or answer.lower() in _NO_NUMBERS:
            return False
        choice = _CHOICE.match(answer) if len(gold) == 1 and gold in "ABCDEFGHIJ" else None
        if choice and choice[1] == gold:
            return True
        expected = read_quantity(gold, words_before=False)
        found = read_quantity(answer)
        if expected is not None and found is not None:
            return self._same_quantities(expected, found)
        if _WORDS.fullmatch(gold) or _WORDS.fullmatch(answer):
            self.how = "text"
            long = min(len(gold), len(answer)) > 1
            return gold.casefold() == answer.casefold() if long else False
        if _BASE.fullmatch(answer) and parse_number(gold) is not None:  # 42_8 is not 42
            self.how = "numbers in another base"
            return re.sub(r"_\{?10\}?$", "", answer) == gold
        if _BASE.fullmatch(gold) and (_BASE.fullmatch(answer) or parse_number(answer) is not None):
            self.how = "numbers in another base"
            return gold.replace("{", "").replace("}", "") == answer.replace("{", "").replace("}", "")
        (gold, gold_unit), (answer, answer_unit) = split_unit(gold), split_unit(answer)
        if not self._same_units(gold_unit, answer_unit):
            self.how = "units"
            return False
        return self._same_formulas(gold, answer)

    def _same_quantities(self, gold: Quantity, answer: Quantity) -> bool:
        self.how = "numbers"
        if not self._same_numbers(gold, answer):
            return False
        self.how = "units"
        return self._same_units(gold.unit, answer.unit)

    def _same_units(self, gold: str, answer: str) -> bool:
        """By the policy. Of two words that are no units of measure (apples, red apples) neither is held against it."""
        if self.policy.units == "ignore" or not gold:
            return True
        if not answer:
            return self.policy.units != "require"
        return gold == answer or not (is_known(gold) or is_known(answer) or self.policy.units == "require")

    def _same_numbers(self, gold: Quantity, answer: Quantity) -> bool:
        values = [(gold.value, answer.value)]
        if self.policy.percent == "either" and gold.is_percent != answer.is_percent:
            values.append((gold.value * 100, answer.value) if gold.is_percent else (gold.value, answer.value * 100))
        return any(
            one == other or (self.policy.tolerance > 0 and abs(one - other) <= self.policy.tolerance * abs(one))
            for one, other in values
        )

    def _same_formulas(self, gold: str, answer: str) -> bool:
        """By sympy, in its own process."""
        if (gold, answer) in self.known:
            return self.known[gold, answer]
        self.how = "formulas"
        reason = too_large(answer)
        if reason is not None:
            self.unread = reason
            return False
        if too_large(gold) is not None or not self.policy.symbolic:
            self.how = "text, as formulas are not compared" if not self.policy.symbolic else "text"
            return False
        comparer = symbolic.shared()
        self.end += comparer.start()  # loading sympy is nobody's fault
        left_s = self.end - time.monotonic()
        if left_s <= 0:
            self.timed_out = f"comparing its parts took longer than deadline_s {self.policy.deadline_s:g}"
            return False
        reply = comparer.compare(gold, answer, left_s, self.policy.tolerance)
        if reply.word == "unread":
            self.unread = reply.detail
        elif reply.word in ("timeout", "memory", "died", "raised"):
            self.timed_out = {
                "timeout": f"comparing took longer than deadline_s {self.policy.deadline_s:g}",
                "memory": f"comparing took more than {symbolic.MEMORY_MB} MB",
                "died": "the comparing process did not survive it",
                "raised": reply.detail,
            }[reply.word]
        self.known[gold, answer] = reply.word == "equal"
        return reply.word == "equal"


def _coordinates(form: Matrix | Brackets) -> tuple[Form, ...]:
    """Those of a column or of (1, 2); nothing for a larger matrix or an interval with a closed end."""
    if isinstance(form, Brackets):
        return form.items if (form.opening, form.closing) == ("(", ")") else ()
    return tuple(row[0] for row in form.rows) if all(len(row) == 1 for row in form.rows) else ()


def _said_of(form: Form) -> str:
    """The set that a name is in, or all of what is said."""
    return form.value.text if isinstance(form, Named) and _IN.search(form.text) else form.text


def _short(text: str) -> str:
    text = " ".join(text[: 4 * SHOWN].split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
