"""What came of a golden set with two models: a table for people, and the reasons why it is not all fine.

Knows nothing about models or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlft.evaluation.golden import Case, GoldenSet, Outcome, change

_SHOWN = 60  # characters of a completion
_NAMED = 5  # cases that a reason names


def reasons(golden: GoldenSet, base: Sequence[Outcome], now: Sequence[Outcome]) -> list[str]:
    """Why it is not all fine: cases that got worse than with the base, cases that must pass and do not, thresholds that
    were missed. Empty when all is fine."""
    worse = [c.name for c, b, n in zip(golden.cases, base, now, strict=True) if change(b, n) == "worse"]
    failed = [c.name for c, n in zip(golden.cases, now, strict=True) if c.must_pass and not n.passed]
    found = [f"worse than the base: {_names(worse)}"] if worse else []
    found += [f"must pass and does not: {_names(failed)}"] if failed else []
    for what, threshold, cases in _thresholds(golden):
        num_passed = sum(now[i].passed for i in cases)
        if num_passed / len(cases) < threshold:
            found.append(
                f"{what}: {num_passed} of {len(cases)} cases pass ({num_passed / len(cases):.3g}), threshold "
                f"{threshold:g}"
            )
    return found


def _thresholds(golden: GoldenSet) -> Iterator[tuple[str, float, list[int]]]:
    """What a threshold is of, the threshold, and which cases it counts."""
    if golden.file.threshold is not None:
        yield "all", golden.file.threshold, list(range(len(golden.cases)))
    for name, group in golden.file.groups.items():
        if group.threshold is not None:
            yield f"group {name}", group.threshold, _of_group(golden, name)


def _of_group(golden: GoldenSet, name: str) -> list[int]:
    return [i for i, case in enumerate(golden.cases) if case.given.group == name]


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def table(golden: GoldenSet, base: Sequence[Outcome], now: Sequence[Outcome]) -> str:
    """A line for each case: its name, pass or fail with both models, the change, and why it fails; then the counts, of
    all and of each group."""
    rows = [("case", "base", "now", "change", "")]
    for case, before, after in zip(golden.cases, base, now, strict=True):
        rows.append((_label(case), _status(before), _status(after), change(before, after), _why(after)))
    rows.append(("passed", _count(base), _count(now), "", ""))
    for name in golden.file.groups:
        places = _of_group(golden, name)
        rows.append((f"  {name}", _count([base[i] for i in places]), _count([now[i] for i in places]), "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*map(str.ljust, row[:4], widths), row[4]]).rstrip() for row in rows)


def _label(case: Case) -> str:
    return f"{case.name} (must pass)" if case.must_pass else case.name


def _status(outcome: Outcome) -> str:
    if outcome.passed:
        return "pass"
    num_held, num_all = sum(not fails for fails in outcome.fails), len(outcome.fails)
    return f"fail {num_held}/{num_all}" if num_all > 1 else "fail"


def _why(outcome: Outcome) -> str:
    if outcome.passed:
        return ""
    text = outcome.text if len(outcome.text) <= _SHOWN else outcome.text[: _SHOWN - 3] + "..."
    return f"{'; '.join(filter(None, outcome.fails))}; said {text!r}"


def _count(outcomes: Sequence[Outcome]) -> str:
    return f"{sum(outcome.passed for outcome in outcomes)}/{len(outcomes)}"
