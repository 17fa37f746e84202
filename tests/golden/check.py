"""Hold rlft's algorithms to recorded numbers.

    python -m tests.golden.check DIR [--strict] [--tolerance 1e-9]

DIR holds index.json and the .npz files that it names: inputs, and for each case what another implementation made of
them in float64 (losses and their gradients for each token's log-prob, advantages, ...). For each case a line: ok, FAIL
or unsupported with the reason. The error of an array is its largest difference from the recorded one, divided by the
largest recorded number (where all are 0, the difference itself).

Exit code 0 when nothing failed, 1 otherwise (with --strict also when a case is unsupported), 2 for a folder that cannot
be read.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.golden.cases import FILES, Arrays, Unsupported

TOLERANCE = 1e-9


class Outcome(NamedTuple):
    """What came of one case."""

    file: str
    case: str
    status: str  # ok, FAIL, unsupported
    error: float  # the largest of all its arrays; NaN when nothing was compared
    detail: str


def check_folder(folder: Path, tolerance: float = TOLERANCE) -> Iterator[Outcome]:
    """Every case of every file. Raises ValueError for a folder that is not one of goldens."""
    index = folder / "index.json"
    try:
        files = json.loads(index.read_text())["files"]
    except FileNotFoundError:
        raise ValueError(f"{index} is not there: expected a folder with index.json and .npz files") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{index} is not an index of goldens ({error!r}): expected {{"files": {{...}}}}') from None
    named = {*files, *(path.name for path in folder.glob("*.npz"))}
    for name in sorted(named):
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{index} names {name}, which is not there")
        with np.load(path) as opened:
            data = dict(opened)
        for case, settings in cases_of(name, files.get(name, {}), data).items():
            yield check_case(name, case, settings, files.get(name, {}), data, tolerance)


def cases_of(name: str, file: dict[str, Any], data: Arrays) -> dict[str, dict[str, Any]]:
    """The cases of a file and their parameters: those in the index, else those that its arrays name, else the file
    itself as one."""
    if file.get("cases"):
        return file["cases"]
    cases = {key.rpartition("/")[0]: {} for key in data if "/" in key}
    return cases or {"": {}}


def check_case(
    name: str, case: str, settings: dict[str, Any], file: dict[str, Any], data: Arrays, tolerance: float
) -> Outcome:
    """Compare all arrays that are recorded for one case with ours."""
    shown = case or "(the file)"
    function = FILES.get(name)
    if function is None:
        return Outcome(name, shown, "unsupported", float("nan"), "unknown file")
    try:
        extra = (case,) if "name" in inspect.signature(function).parameters else ()
        ours = function(data, settings, file, *extra)
    except (Unsupported, KeyError) as error:
        what = str(error) if isinstance(error, Unsupported) else f"no array or parameter {error}"
        return Outcome(name, shown, "unsupported", float("nan"), what)
    prefix = f"{case}/" if case else ""
    recorded = {key: data[prefix + key] for key in ours if prefix + key in data}
    if not recorded:
        return Outcome(name, shown, "unsupported", float("nan"), "nothing is recorded for it")
    errors = {key: relative_error(ours[key], expected) for key, expected in recorded.items()}
    worst = max(errors, key=lambda key: errors[key])
    bad = [f"{key} {error:.2g}" for key, error in errors.items() if not error <= tolerance]
    return Outcome(name, shown, "FAIL" if bad else "ok", errors[worst], ", ".join(bad) or ", ".join(errors))


def relative_error(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected number; infinite for other shapes or values that are not finite."""
    if ours.shape != expected.shape or not np.isfinite(ours).all():
        return float("inf")
    if not expected.size:
        return 0.0
    scale = float(np.abs(expected).max())
    return float(np.abs(ours - expected).max()) / (scale or 1.0)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", metavar="DIR", type=Path)
    p.add_argument("--strict", action="store_true", help="unsupported cases fail too")
    p.add_argument("--tolerance", type=float, default=TOLERANCE)
    a = p.parse_args(arguments)
    outcomes = []
    try:
        for outcome in check_folder(a.folder, a.tolerance):
            outcomes.append(outcome)
            number = "" if np.isnan(outcome.error) else f"{outcome.error:.1e}"
            print(f"{outcome.file:16} {outcome.case:26} {outcome.status:12} {number:8} {outcome.detail}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = {status: sum(o.status == status for o in outcomes) for status in ("ok", "FAIL", "unsupported")}
    print(f"{count['ok']} ok, {count['FAIL']} failed, {count['unsupported']} unsupported (tolerance {a.tolerance:g})")
    return int(count["FAIL"] > 0 or (a.strict and count["unsupported"] > 0))


if __name__ == "__main__":
    sys.exit(main())
