"""How fast verifiers are: what a step's rewards cost on this machine.

    python -m tests.bench.rewards [--only code math judge] [--seconds 10]

Prints one JSON line a part. `code`: whole judgements a second (a program of a few lines against four asserts) in the
sandbox, as many at a time as the reward takes by itself, beside a plain cold subprocess for each, which has no sandbox
at all: `python -c` of program and tests. In turn, several times; medians. CPU milliseconds are those of all processes
of a judgement.
`math` and `judge`: see rewards_math and rewards_judge beside this file, which have more options.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

_REPEAT = 3


def code(seconds: float) -> dict[str, Any]:
    """Sandboxed judgements against cold subprocesses."""
    from rewards.code.example import make_rows
    from rewards.code.pool import Pool, Settings
    from rewards.code.reward import Options, make_job

    rows = make_rows()
    jobs = [make_job(row["canonical_solution"], row, Options()) for row in rows]
    assert all(isinstance(job, dict) for job in jobs)
    programs = [f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck(f)\n" for row in rows]
    found: dict[str, Any] = {"part": "code", "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    pool = Pool(Settings())
    try:
        found["tier"] = pool.facts()["tier"]
        statuses = {outcome["status"] for outcome in pool.run(jobs[: 4 * pool.parallel])}  # starts all of them
        assert statuses == {"ok"}, statuses
        sandboxed, cold = [], []
        for _ in range(_REPEAT):
            sandboxed.append(_rate(lambda: pool.run(jobs[: 8 * pool.parallel]), 8 * pool.parallel, seconds))
            cold.append(_rate(lambda: _cold(programs[: 4 * pool.parallel], pool.parallel), 4 * pool.parallel, seconds))
    finally:
        pool.close()
    for name, runs in (("sandboxed", sandboxed), ("cold_subprocess", cold)):
        found[f"{name}_per_s"] = round(statistics.median(rate for rate, _ in runs), 1)
        found[f"{name}_cpu_ms"] = round(statistics.median(cpu for _, cpu in runs), 2)
    return found


def _cold(programs: Sequence[str], parallel: int) -> None:
    def one(program: str) -> None:
        subprocess.run([sys.executable, "-I", "-c", program], check=True, timeout=60)

    with ThreadPoolExecutor(parallel) as threads:
        list(threads.map(one, programs))


def _rate(run: Callable[[], Any], count: int, seconds: float) -> tuple[float, float]:
    """Judgements a second, and CPU milliseconds for each, of `run` again and again for so long."""
    begin, cpu, done = time.perf_counter(), _cpu(), 0
    while time.perf_counter() < begin + seconds:
        run()
        done += count
    return done / (time.perf_counter() - begin), 1000 * (_cpu() - cpu) / done


def _cpu() -> float:
    """CPU seconds of this process and all below it by now, the ended ones too."""
    everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:4]) for process in everyone)


def math(seconds: float) -> dict[str, Any]:
    """See tests.bench.rewards_math."""
    from tests.bench.rewards_math import pairs_per_second

    return {"part": "math"} | pairs_per_second()


def judge(seconds: float) -> dict[str, Any]:
    """See tests.bench.rewards_judge."""
    from tests.bench.rewards_judge import measure

    return {"part": "judge"} | measure(groups=32, size=16, delay_s=0.2, concurrent=64, threads=4)


PARTS: dict[str, Callable[[float], dict[str, Any]]] = {"code": code, "math": math, "judge": judge}


def main(words: Sequence[str] | None = None) -> None:
    """Run the parts and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rewards")
    parser.add_argument("--only", choices=sorted(PARTS), nargs="*", default=sorted(PARTS))
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement of `code`")
    options = parser.parse_args(words)
    for name in options.only:
        print(json.dumps(PARTS[name](options.seconds)), flush=True)


if __name__ == "__main__":
    main()
