"""How well the reward `math` agrees with people: judged pairs of a right answer and an answer, one JSON object a line.

    python -m tests.math_cases ../shared/data/math_answers.jsonl --show
    python -m tests.math_cases FILE --against math-verify
    python -m tests.math_cases --gsm8k ../shared/data/gsm8k_train_300.jsonl

A row has `gold`, `answer` (a bare answer or a whole completion) and `equal`. Prints agreement, pairs called equal that
are not (false equal) and the other way round (false different), hangs (pairs that took longer than the deadline), and
which statuses there were. Policies are the reward's defaults; `--args '{"order": "strict"}'` changes them. Exit code 0
when every pair came to an end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from rewards.killable.process import GRACE_S
from rewards.math import math_reward
from rewards.math.extract import bare_answer
from rewards.math.policy import Policy
from rlft.errors import UserError
from rlft.samples import RewardResult


class Judged(NamedTuple):
    """A row, and what a grader said of it."""

    row: dict[str, Any]
    equal: bool
    status: str
    detail: str
    seconds: float


def read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a JSONL file. Raises UserError for one without these columns."""
    if not path.is_file():
        raise UserError(f"{path} is not a file. Expected a JSONL file with {', '.join(columns)} in each row.")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        row = json.loads(line)
        missing = [column for column in columns if column not in row]
        if missing:
            raise UserError(f"{path}:{number}: no {missing[0]!r}. Expected {', '.join(columns)} in each row.")
        rows.append(row)
    return rows


def ours(rows: list[dict[str, Any]], args: dict[str, Any]) -> list[Judged]:
    """What the reward says of each pair."""
    judged = []
    for row in rows:
        begin = time.perf_counter()
        (result,) = math_reward([row["answer"]], answer=[row["gold"]], **args)
        took = time.perf_counter() - begin
        judged.append(Judged(row, result.value == 1.0, result.status, result.detail, took))
    return judged


def math_verify(rows: list[dict[str, Any]], deadline_s: float) -> list[Judged]:
    """What math-verify alone says, with its own defaults, in a process for each pair that is killed when it is late.
    It wants LaTeX in dollar signs: what is nothing but an answer gets them where it has none."""
    judged = []
    context = multiprocessing.get_context("fork")
    import math_verify  # noqa: F401 (here once, so that each fork has it)

    for row in rows:
        here, there = context.Pipe(duplex=False)
        begin = time.perf_counter()
        process = context.Process(target=_verify, args=(row["gold"], row["answer"], there))
        process.start()
        there.close()
        said = None
        if here.poll(deadline_s):
            try:
                said = here.recv()
            except EOFError:
                said = None
        status = "timeout" if said is None and process.is_alive() else "error" if said is None else "ok"
        process.kill()
        process.join()
        judged.append(Judged(row, bool(said), status, "", time.perf_counter() - begin))
    return judged


def _verify(gold: str, answer: str, pipe: Any) -> None:
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    right, said = map(_in_dollars, (gold, answer))
    pipe.send(bool(verify(parse(right), parse(said))))


def _in_dollars(text: str) -> str:
    has_own = re.search(r"[$%]|boxed|\\[(\[]", text)
    return text if has_own or not bare_answer(text) else f"${text}$"


def report(judged: list[Judged], late_s: float) -> dict[str, Any]:
    """The counts of a grader."""
    agree = sum(one.equal == one.row["equal"] for one in judged)
    return {
        "pairs": len(judged),
        "agree": agree,
        "agreement": round(agree / max(len(judged), 1), 4),
        "false_equal": sum(one.equal and not one.row["equal"] for one in judged),
        "false_different": sum(one.row["equal"] and not one.equal for one in judged),
        "hangs": sum(one.seconds > late_s for one in judged),
        "seconds": round(sum(one.seconds for one in judged), 2),
        "slowest": round(max((one.seconds for one in judged), default=0.0), 2),
        "statuses": dict(Counter(one.status for one in judged)),
    }


def gsm8k(rows: list[dict[str, Any]], args: dict[str, Any]) -> dict[str, Any]:
    """Each solution against itself, and with its final number changed: by one, in sign, and in its last digit."""
    golds = [row["answer"] for row in rows]
    counts: dict[str, Any] = {"rows": len(rows)}
    counts["right_scored_1"] = _ones(math_reward(golds, answer=golds, **args))
    for name, change in CHANGES.items():
        wrong = []
        for gold in golds:
            solution, number = gold.rsplit("#### ", 1)
            wrong.append(f"{solution}#### {change(int(number.replace(',', '')))}")
        results = math_reward(wrong, answer=golds, **args)
        counts[f"{name}_scored_0"] = sum(result.value == 0.0 for result in results)
    return counts


CHANGES = {
    "plus_one": lambda number: number + 1,
    "negated": lambda number: -number if number else 1,
    "digit_more": lambda number: number * 10 + 3,
    "percent": lambda number: f"{number}%" if number else "1%",
    "plus_a_tenth": lambda number: f"{number}.1",
}


def _ones(results: list[RewardResult]) -> int:
    return sum(result.value == 1.0 for result in results)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.math_cases", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--gsm8k", type=Path, metavar="FILE", help="solutions that end in #### N")
    parser.add_argument("--show", action="store_true", help="the rows of which it thinks otherwise")
    parser.add_argument("--against", choices=["math-verify"], help="the same pairs by another grader")
    parser.add_argument("--args", type=json.loads, default={}, help="the reward's, as JSON")
    flags = parser.parse_args()
    if not flags.file and not flags.gsm8k:
        parser.error("give FILE, or --gsm8k FILE")
    deadline_s = Policy(**flags.args).deadline_s
    hangs = 0
    math_reward(["x+1"], answer=["1+x"], **flags.args)  # loads sympy, which no pair is to blame for
    if flags.file:
        rows = read_rows(flags.file, ("gold", "answer", "equal"))
        graders = {"rlft": ours(rows, flags.args)}
        if flags.against:
            graders[flags.against] = math_verify(rows, 3 * deadline_s)
        for name, judged in graders.items():
            counts = report(judged, deadline_s + GRACE_S)
            hangs += counts["hangs"] if name == "rlft" else 0
            print(json.dumps({"grader": name, **counts}))
            for number, one in enumerate(judged, start=1):
                if flags.show and one.equal != one.row["equal"]:
                    shown = {key: str(one.row[key])[-70:] for key in ("gold", "answer")}
                    print(f"  row {number}: judged equal={one.row['equal']}, {one.status}: {shown} {one.detail}")
    if flags.gsm8k:
        print(json.dumps({"gsm8k": gsm8k(read_rows(flags.gsm8k, ("answer",)), flags.args)}))
    return 1 if hangs else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
