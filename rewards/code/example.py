"""A programming task that a very small model can learn: one expression of Python, from a line that says which.

    python -m rewards.code.example data/expressions      # writes train.jsonl and eval.jsonl there

Rows have HumanEval's columns (prompt, canonical_solution, test, entry_point), so the reward `code` reads them as it
does real ones. For configs/code_1_sft.yaml and configs/code_2_grpo.yaml; nothing is downloaded.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path

_FIRST = {"a": "a", "twice a": "2 * a", "three times a": "3 * a", "a squared": "a * a"}
_SECOND = {"b": "b", "twice b": "2 * b", "three times b": "3 * b", "b squared": "b * b"}
_BETWEEN = {"plus": "+", "minus": "-"}
_NUM_EVAL = 32
_CASES = ((1, 2), (5, 3), (-4, 7), (10, -6))


def make_rows(seed: int = 0) -> list[dict[str, str]]:
    """All 160 rows in an order that follows from `seed`: "twice a minus b, plus 4" is `2 * a - b + 4`."""
    rows = []
    for first, between, second, number in itertools.product(_FIRST, _BETWEEN, _SECOND, range(1, 6)):
        code = f"{_FIRST[first]} {_BETWEEN[between]} {_SECOND[second]} + {number}"
        values = [eval(code, {"a": a, "b": b}) for a, b in _CASES]  # of our own making, just above
        asserts = [f"    assert candidate({a}, {b}) == {value}" for (a, b), value in zip(_CASES, values, strict=True)]
        rows.append(
            {
                "prompt": f"# {first} {between} {second}, plus {number}\ndef f(a, b):\n    return ",
                "canonical_solution": code,
                "test": "\n".join(["def check(candidate):", *asserts]) + "\n",
                "entry_point": "f",
            }
        )
    random.Random(seed).shuffle(rows)
    return rows


def write_files(folder: Path) -> tuple[Path, Path]:
    """train.jsonl and eval.jsonl in `folder`; no row is in both."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(row) for row in make_rows()]
    paths = folder / "train.jsonl", folder / "eval.jsonl"
    for path, part in zip(paths, (rows[_NUM_EVAL:], rows[:_NUM_EVAL]), strict=True):
        path.write_text("\n".join(part) + "\n")
    return paths


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m rewards.code.example FOLDER (got {len(sys.argv) - 1} arguments)")
    print(*write_files(Path(sys.argv[1])))
