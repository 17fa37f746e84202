"""Judge calls a second and in flight, against a server on this machine that takes a fixed time for each.

    python -m tests.bench.rewards_judge [--groups 32] [--size 16] [--delay-s 0.2] [--concurrent 64] [--threads 4]

Groups go through the reward `judge` as a run sends them, --threads groups at a time. `ideal_per_s` is what the limit
allows, in flight / delay; `in_flight` is counted by the server. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rewards.combine import RewardSet
from rlft.config.roles import RewardFunction, RewardsConfig
from tests.chat_server import chat_server
from tests.unit.rewarding import group

_TOKEN = re.compile(r"<answer ([0-9a-f]{12})>")


def serve(delay_s: float, pipe: Any) -> None:
    """The judge, in a process of its own; says its address, and at the end how many requests were under way at most."""
    under_way, most = 0, 0
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> str:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(delay_s)
        with lock:
            under_way -= 1
        found = _TOKEN.search(body["messages"][0]["content"])
        assert found is not None
        return json.dumps({"token": found[1], "reason": "", "score": 5})

    with chat_server(answer) as server:
        pipe.send(server.url)
        pipe.recv()
        pipe.send(most)


def measure(groups: int, size: int, delay_s: float, concurrent: int, threads: int) -> dict[str, Any]:
    """One run. Raises AssertionError when a completion got no reward."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(delay_s, theirs), daemon=True)
    server.start()
    endpoint = {"base_url": ours.recv(), "model": "m", "max_concurrent": concurrent, "max_retries": 0}
    spec = RewardFunction(function="judge", args={"endpoint": endpoint}, timeout_s=600)
    rewards = RewardSet(RewardsConfig(functions=[spec]))
    rewards.score_group(group(1))  # imports, and the first connection
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        scored = list(pool.map(rewards.score_group, [group(size) for _ in range(groups)]))
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
    ours.send("end")
    most = ours.recv()
    server.join(10)
    assert all(sample.reward == 0.5 for one in scored for sample in one.samples)
    calls, allowed = groups * size, min(concurrent, size * threads)
    return {
        "bench": "rewards_judge", "calls": calls, "delay_s": delay_s, "limit": allowed, "seconds": round(seconds, 2),
        "per_s": round(calls / seconds, 1), "ideal_per_s": round(allowed / delay_s, 1), "most_in_flight": most,
        "mean_in_flight": round(calls * delay_s / seconds, 1), "cpu_ms_per_call": round(1000 * cpu_s / calls, 2),
    }  # fmt: skip


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--delay-s", type=float, default=0.2)
    parser.add_argument("--concurrent", type=int, default=64)
    parser.add_argument("--threads", type=int, default=4)
    a = parser.parse_args()
    print(json.dumps(measure(a.groups, a.size, a.delay_s, a.concurrent, a.threads)))


if __name__ == "__main__":
    main()
