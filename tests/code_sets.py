"""Known-good solutions of published sets through the code reward: all must pass, and their empty stubs must fail.

    python -m tests.code_sets HumanEval.jsonl.gz mbpp_sanitized.jsonl [--tier ...] [--limit N]

A row with `canonical_solution` is HumanEval's, with `test_list` MBPP's. Rows that are themselves broken (the reference
fails its own tests in a plain interpreter too) are named in BROKEN and must fail.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.code.pool import TIERS, Pool, Settings
from rewards.code.reward import Options, make_job, result_of
from rlft.samples import RewardResult

BROKEN: dict[str, str] = {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """JSON lines, also compressed."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def answers(row: Mapping[str, Any]) -> tuple[str, str]:
    """What a model would write that is right, and one that does nothing."""
    if "canonical_solution" in row:
        return row["canonical_solution"], "    pass\n"
    names = [line.split("(")[0].removeprefix("def ").strip() for line in row["code"].splitlines() if line[:4] == "def "]
    stub = "".join(f"def {name}(*args, **kwargs):\n    pass\n" for name in names)
    return f"Here it is:\n```python\n{row['code']}\n```\n", f"```python\n{stub}```"


def judge_all(rows: Sequence[Mapping[str, Any]], pool: Pool) -> Iterator[tuple[str, RewardResult, RewardResult]]:
    """Each row's id, what the reward says of its reference, and of a stub."""
    options = Options(timeout_s=10.0)
    jobs = [make_job(text, row, options) for row in rows for text in answers(row)]
    outcomes = iter(pool.run([job for job in jobs if isinstance(job, dict)]))
    results = [result_of(next(outcomes), False) if isinstance(job, dict) else job for job in jobs]
    for i, row in enumerate(rows):
        yield str(row["task_id"]), results[2 * i], results[2 * i + 1]


def main(words: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.code_sets")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tier", default="auto", choices=("auto", *TIERS))
    parser.add_argument("--limit", type=int)
    options = parser.parse_args(words)
    pool, bad = Pool(Settings(tier=options.tier)), 0
    for path in options.files:
        rows, begin, passed, failed, broken = read_rows(path)[: options.limit], time.monotonic(), 0, 0, []
        for name, reference, stub in judge_all(rows, pool):
            passed, failed = passed + (reference.value == 1.0), failed + (stub.value == 0.0)
            if reference.value != 1.0 and name in BROKEN:
                broken.append(name)
            elif reference.value != 1.0 or name in BROKEN:
                bad += 1
                print(f"{path.name} {name}: reference {reference.status} ({reference.detail})")
            if stub.value != 0.0:
                bad += 1
                print(f"{path.name} {name}: stub {stub.status} ({stub.detail})")
        print(
            f"{path.name}: {passed} of {len(rows)} references pass (broken rows: {', '.join(broken) or 'none'}), "
            f"{failed} of {len(rows)} stubs fail; tier {pool.facts()['tier']}, {time.monotonic() - begin:.0f} s"
        )
    pool.close()
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
