"""What crosses between a solution and its tests, and how tests are cut into pieces."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import math
from typing import Any

import pytest

from rewards.code.box.calls import NO_VERDICT, outcome, outcome_of_tests
from rewards.code.box.compare import same_output
from rewards.code.box.plain import MAX_DEPTH, NotPlain, read, write
from rewards.code.box.references import Kept, read_reference
from rewards.code.box.scratch import empty_folder, used
from rewards.code.box.seccomp import ALLOWED, make_filter
from rewards.code.box.solution import exception_of, raised
from rewards.code.box.units import plan_tests


def across(value: Any) -> Any:
    def nothing(data: Any) -> Any:
        raise NotPlain(f"not expected here: {data}")

    return read(write(value, Kept().refer), nothing)


VALUES = [
    None, True, 0, -(2**53), 2**60, 7**5000, 1.5, -0.0, math.inf, "", "\ud800", b"\xff", bytearray(b"a"), 1j,
    [1, [2, (3,)]], (), {1, 2}, frozenset({(1, 2)}), {(1,): {None: [1]}}, range(2, 9, 3), collections.deque([1], 3),
    collections.Counter("aab"), collections.OrderedDict([(2, 1), (1, 2)]), decimal.Decimal("1.10"),
    fractions.Fraction(-1, 3), datetime.date(2024, 2, 29), datetime.datetime(2024, 1, 2, 3, 4, 5, 6),
    datetime.time(1, 2), datetime.timedelta(days=-1, microseconds=5),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_stay_what_they_are(value: Any) -> None:
    found = across(value)
    assert found == value and type(found) is type(value)
    assert not isinstance(value, float) or math.copysign(1, found) == math.copysign(1, value)


def test_not_a_number_and_views() -> None:
    assert math.isnan(across(math.nan))
    assert across({1: 2}.keys()) == {1} and list(across({1: 2}.values())) == [2] and (1, 2) in across({1: 2}.items())


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __pos__(self) -> int:
        return 3

    __hash__ = int.__hash__


class Words(str):
    def __str__(self) -> str:
        return "right"


def test_subclasses_arrive_as_what_they_are_below() -> None:
    assert type(across(Liar(7))) is int and across(Liar(7)) == 7
    assert across([Words("wrong")]) == ["wrong"]
    pair = collections.namedtuple("pair", "a b")
    assert across(pair(1, 2)) == (1, 2) and type(across(pair(1, 2))) is tuple
    assert type(across(collections.defaultdict(list, {1: [2]}))) is dict


def test_objects_cross_as_references_only() -> None:
    kept = Kept()
    data = write([object(), len, iter("ab"), (x for x in "ab")], kept.refer)
    kinds = [read_reference(item)[1] for item in data[1:]]
    assert kinds == ["object", "callable", "object", "iterator"]
    assert kept[1] is len
    for number in (-1, 4, True, "0"):
        with pytest.raises(NotPlain):
            kept[number]


def test_cycles_and_depth_are_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(NotPlain, match="deeper"):
        write(cycle, Kept().refer)
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert across(deep) == deep


@pytest.mark.parametrize(
    "data",
    [
        [], {}, {"a": 1}, [1], [["l"]], ["x", 1], ["i", "zz"], ["i", 5], ["r", 1, 2, 0], ["d", [1]], ["d", [["l"], 1]],
        ["s", ["l", 1]], ["F", "0x1", "0x0"], ["D", "one"], ["T", "tzinfo"], ["T", "date", 1], ["b", "x"], ["q", -1],
    ],
)  # fmt: skip
def test_data_that_nobody_wrote_is_refused(data: Any) -> None:
    def nothing(found: Any) -> Any:
        return read_reference(found)

    with pytest.raises(NotPlain):
        read(data, nothing)


def test_exceptions_cross_by_name() -> None:
    class Mine(KeyError):
        pass

    kind, name, text = raised(Mine("k"))
    assert (kind, name) == ("raise", "KeyError") and "Mine" in text
    assert type(exception_of("ValueError", "ValueError: no")) is ValueError
    assert str(exception_of("ValueError", "ValueError: no")) == "no"
    for name in ("StopIteration", "SystemExit", "KeyboardInterrupt", "print", "Nothing", 3, None):
        assert type(exception_of(name, "x")) is RuntimeError


def planned(*sources: str, entry: str | None = "f") -> list[tuple[str, bool]]:
    return [(unit.source, unit.counts) for unit in plan_tests(sources, {}, entry, len, lambda name: len)]


def test_tests_are_counted_one_by_one() -> None:
    assert planned("x = 1\nassert f(x) == 1\nassert f(2)") == [
        ("x = 1", False),
        ("assert f(x) == 1", True),
        ("assert f(2)", True),
    ]
    assert planned("assert f(1)", "x = f(2)\nassert x") == [("assert f(1)", True), ("x = f(2) assert x", True)]
    assert planned("def check(candidate):\n    assert candidate")[-1] == ("check(candidate)", True)
    assert planned("def check(candidate):\n    ...\ncheck(f)") == [("the tests", True)]
    case = "import unittest\nclass A(unittest.TestCase):\n    def test(self): ...\n"
    for runner in ("", "unittest.main()\n", "if __name__ == '__main__':\n    unittest.main()\n"):
        assert [name for name, counts in planned(case + runner) if counts] == ["A"]
    assert [name for name, counts in planned("def test_a(): ...\ndef test_b(): ...\ndef helper(): ...") if counts] == [
        "test_a()", "test_b()",
    ]  # fmt: skip


def test_tests_that_were_killed_are_no_wrong_answer() -> None:
    wrong = outcome("wrong", detail=NO_VERDICT)
    assert outcome_of_tests(wrong, {"code": -9, "cpu_s": 0.1}, 7)["status"] == "error"
    assert outcome_of_tests(wrong, {"code": -9, "cpu_s": 6.5}, 7) is wrong, "it had used up its time"
    assert outcome_of_tests(wrong, {"code": -11, "cpu_s": 0.1}, 7) is wrong, "by what the program gave it"
    late = outcome("timeout", detail="took longer than 5 s")
    assert outcome_of_tests(late, {"code": -9, "cpu_s": 0.1}, 7) is late, "killed by us"


def test_names_that_nobody_defines_are_the_solutions_but_not_modules() -> None:
    asked: list[str] = []
    names: dict[str, Any] = {}
    plan_tests(
        ["assert math.isclose(g(List), h) and [k for k in x]\nh = 1"], names, None, None, lambda n: asked.append(n) or n
    )
    assert sorted(asked) == ["g", "x"]
    assert names["math"] is math


@pytest.mark.parametrize(
    ("said", "expected", "tolerance", "same"),
    [
        ("3\n", "3", 0, True),
        ("3  \r\n4\n\n", "3\n4\n", 0, True),
        (" 3", "3", 0, False),
        ("3\n\n4", "3\n4", 0, False),
        ("0.3333333", "0.33333331", 0, False),
        ("0.3333333 x", "0.33333331  x", 1e-6, True),
        ("nan", "0", 1.0, False),
        ("1e400", "1e401", 0.5, False),
        ("", "", 0, True),
    ],
)
def test_output_is_compared(said: str, expected: str, tolerance: float, same: bool) -> None:
    assert same_output(said, expected, tolerance) is same


def test_a_scratch_folder_is_measured_and_emptied(tmp_path: Any) -> None:
    outside = tmp_path / "outside"
    outside.write_text("stays")
    top = tmp_path / "top"
    place = top
    for _ in range(40):
        place = place / "d"
    place.mkdir(parents=True)
    (place / "f").write_bytes(b"x" * 5000)
    (top / "link").symlink_to(outside)
    (top / "closed").mkdir(mode=0)
    size, count = used(str(top), 100)
    assert size >= 5000 and count == 43
    assert used(str(top), 10)[1] == 11
    empty_folder(str(top))
    assert list(top.iterdir()) == [] and outside.read_text() == "stays"


def test_the_filter_names_what_is_allowed() -> None:
    for name in ("fork", "execve", "socket", "connect", "ptrace", "open", "openat", "chmod", "kill", "mount", "bpf"):
        assert name not in ALLOWED
    one, other = make_filter("python", 1234), make_filter("python", 70000)
    assert len(one) == len(other) and one != other and len(one) % 8 == 0
    assert (1234).to_bytes(4, "little") in one and (1234).to_bytes(4, "little") not in other
