"""Hold rlft's algorithms to recorded numbers.

    python -m tests.golden.check DIR [--strict] [--tolerance 1e-9]

DIR holds index.json and the .npz files that it names: inputs, and for each case what another implementation made of
them in float64 (losses and their gradients for each token's log-prob, advantages, ...). For each case a line: ok, FAIL
or unsupported with the reason; a file or case that is named and not there is unsupported too. The error of an array is
its largest difference from the recorded one, divided by the largest recorded number, or by 1e-6 where all are smaller:
what should be 0 is recorded as rounding errors.

Exit code 0 when nothing failed, 1 otherwise (with --strict also when a case is unsupported), 2 for a folder that is
none of goldens.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.golden.cases import FILES, Arrays, Unsupported

TOLERANCE = 1e-9
TINY = 1e-6  # what numbers are measured against at least
NAN = float("nan")
RESULTS = ("loss", "grad", "advantages", "returns")  # how the names of arrays begin that only a case can have


class Asked(dict[str, np.ndarray]):
    """The arrays of a file, and which of them somebody asked for."""

    def __init__(self, arrays: Arrays) -> None:
        super().__init__(arrays)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.names.add(name)
        return super().__getitem__(name)


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
        files = {name: dict(file or {}) for name, file in json.loads(index.read_text())["files"].items()}
    except OSError as error:
        why = error.strerror if index.exists() else "not there"
        raise ValueError(f"{index} is {why}: expected a folder with index.json and .npz files") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{index} is not an index of goldens ({error!r}): expected {{"files": {{...}}}}') from None
    present = {path.name for path in folder.glob("*.npz")}
    if not present:
        raise ValueError(f"{folder} holds no .npz file; its index names {', '.join(sorted(files)) or 'none'}")
    for name in sorted({*files, *present}):
        file = files.get(name, {})
        if name not in present:
            yield Outcome(name, "(the file)", "unsupported", NAN, "named in the index, and not there")
            continue
        try:
            with np.load(folder / name) as opened:
                data = dict(opened)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            yield Outcome(name, "(the file)", "FAIL", NAN, f"cannot be read: {error}")
            continue
        for case, settings in cases_of(file, data).items():
            yield check_case(name, case, settings, file, data, tolerance)


def cases_of(file: dict[str, Any], data: Arrays) -> dict[str, dict[str, Any] | None]:
    """The cases of a file and their parameters, which are None for a case that has results and is not in the index. A
    file whose entry in the index lists no cases has one, of the parameters of the file; without an entry, None."""
    found = dict.fromkeys(
        case for case, _, array in (key.rpartition("/") for key in data) if case and array.startswith(RESULTS)
    )
    if file and "cases" not in file:
        return {case: {} for case in found} or {"": {}}
    cases = {case: dict(values or {}) for case, values in file.get("cases", {}).items()}
    return {**dict.fromkeys(found), **cases} or {"": None}


def check_case(
    name: str, case: str, settings: dict[str, Any] | None, file: dict[str, Any], data: Arrays, tolerance: float
) -> Outcome:
    """Compare all arrays that are recorded for one case with ours. What goes wrong in a case whose parameters are known
    is a failure."""
    shown = case or "(the file)"
    function = FILES.get(name)
    if function is None:
        return Outcome(name, shown, "unsupported", NAN, "unknown file")
    if settings is None:
        return Outcome(name, shown, "unsupported", NAN, "not in the index, so that its parameters are not known")
    asked = Asked(data)
    try:
        extra = (case,) if "name" in inspect.signature(function).parameters else ()
        ours = function(asked, settings, file, *extra)
    except (Unsupported, KeyError) as error:
        what = str(error) if isinstance(error, Unsupported) else f"no array or parameter {error}"
        return Outcome(name, shown, "unsupported", NAN, what)
    except Exception as error:  # of whatever kind: the other cases are to be looked at all the same
        return Outcome(name, shown, "FAIL", NAN, f"{type(error).__name__}: {error}".splitlines()[0])
    prefix = f"{case}/" if case else ""
    recorded = {key: data[prefix + key] for key in ours if prefix + key in data}
    if not recorded:
        return Outcome(name, shown, "unsupported", NAN, "nothing is recorded for it")
    errors = {key: relative_error(ours[key], expected) for key, expected in recorded.items()}
    bad = [f"{key} {error:.2g}" for key, error in errors.items() if not error <= tolerance]
    left = [key for key in data if key.startswith(prefix or "/") and key not in asked.names]
    left = [key.removeprefix(prefix) for key in left if key.removeprefix(prefix) not in ours]
    note = f" (not compared: {', '.join(left)})" if left else ""
    return Outcome(
        name, shown, "FAIL" if bad else "ok", max(errors.values()), (", ".join(bad) or ", ".join(errors)) + note
    )


def relative_error(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected number (at least TINY); infinite for other shapes or values that are
    not finite."""
    if ours.shape != expected.shape or not np.isfinite(ours).all() or not np.isfinite(expected).all():
        return float("inf")
    if not expected.size:
        return 0.0
    return float(np.abs(ours - expected).max()) / max(float(np.abs(expected).max()), TINY)


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
