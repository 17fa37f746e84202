"""The reward judge, against a real HTTP server that stalls and breaks down; its limits and its cache."""

from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rewards.combine import check_failures
from rewards.judge import judge
from rlft.endpoint.breaker import Breaker
from rlft.errors import RunError, UserError
from tests.chat_server import Answer, Fault, chat_server, completion, in_turn
from tests.unit.judging import args_for, by_number, judged, parts, results
from tests.unit.rewarding import group, rewards_of, spec

# ---- a judge that cannot do its work


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (Fault(429, b"slow down", {"Retry-After": "0"}), "error", "429: status 429: slow down"),
        (Fault(500, b"oops"), "error", "5xx: status 500: oops"),
        (Fault(cut=True), "error", "connection: "),
        (Fault(200, b"<html>"), "error", "rubbish: the reply is not JSON"),
        (Fault(400, b"unknown field response_format"), "error", "extra_body: {response_format: null}"),
        (Fault(hang_s=30), "timeout", "timeout: no whole reply within 0.2 s"),
    ],
)
def test_failures_have_a_status_and_no_value(fault: Fault, status: str, words: str) -> None:
    with chat_server(in_turn(fault)) as server:
        found = judged(server, endpoint={"timeout_s": 0.2 if fault.hang_s else 30.0})
    assert [(r.value, r.status) for r in found] == [(None, status)] * 4
    assert words in found[0].detail, found[0].detail
    assert sum(r.counts["failed_requests"] for r in found) == len(server.requests)


def test_what_passes_is_tried_again() -> None:
    said: list[int] = []

    def answer(body: dict[str, Any]) -> Answer:
        said.append(1)
        return Fault(503, b"loading") if len(said) == 1 else by_number(body)

    with chat_server(answer) as server:
        (found,) = judged(server, group(1))
    assert found.value == 0 and found.counts["retries"] == 1


def test_it_comes_back_in_time_with_what_it_has() -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return Fault(hang_s=30) if parts(body)[1]["answer"] == "c1" else by_number(body)

    with chat_server(answer) as server:
        begin = time.monotonic()
        found = judged(server, timeout_s=1.0)
        assert time.monotonic() - begin < 3
    assert [r.value for r in found] == [0, None, 0.2, 0.3] and found[1].status == "timeout"
    assert all(r.counts["requests"] for r in found), "the call itself was not given up"


def test_the_breaker_refuses_at_once_and_the_run_stops() -> None:
    broken = threading.Event()
    broken.set()
    with chat_server(lambda body: Fault(500, b"oops") if broken.is_set() else by_number(body)) as server:
        args = args_for(server, max_failures=3, pause_s=1.0, endpoint={"max_retries": 0, "max_concurrent": 1})
        rewards = rewards_of(spec("judge", args=args))
        first = results(rewards)
        assert [r.status for r in first] == ["error", "error", "error", "refused"] and len(server.requests) == 3
        assert "3 requests in a row have failed (the last: status 500: oops); the next try is in 1 s" in first[3].detail
        scored = rewards.score_group(group(4))
        assert {s.reward_parts["judge"].status for s in scored.samples} == {"refused"} and len(server.requests) == 3
        with pytest.raises(RunError, match="4 of 4 samples have no reward.*Reward 'judge': refused 4"):
            check_failures([scored], 0.2)
        broken.clear()
        time.sleep(1.05)
        assert [r.value for r in results(rewards)] == [0, 0.1, 0.2, 0.3]


def test_what_a_server_refuses_does_not_open_the_breaker() -> None:
    """A text that is too long for the judge says nothing about the next one."""
    with chat_server(in_turn(Fault(400, b"too long"))) as server:
        found = [result for _ in range(2) for result in judged(server, max_failures=2)]
    assert len(found) == len(server.requests) == 8 and {r.status for r in found} == {"error"}


def test_breaker_lets_one_try_and_opens_again() -> None:
    breaker = Breaker(max_failures=1, pause_s=0.05)
    assert not breaker.refusal()
    breaker.failed("x")
    assert breaker.refusal()
    time.sleep(0.06)
    assert not breaker.refusal() and "one is trying again now" in breaker.refusal()
    breaker.failed("y")
    assert "the last: y" in breaker.refusal()


def test_a_key_that_is_not_accepted_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-1")
    fault = Fault(401, b'{"error": {"message": "bad key sk-secret-1"}}')
    with chat_server(in_turn(fault)) as server, pytest.raises(UserError) as caught:
        judged(server, endpoint={"api_key_env": "JUDGE_KEY"})
    assert server.headers[0]["Authorization"] == "Bearer sk-secret-1"
    assert "endpoint.api_key_env" in str(caught.value) and "sk-secret" not in str(caught.value)


def test_a_key_is_in_nothing_that_travels_or_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-2")
    fault = Fault(500, b"you sent sk-secret-2")
    with chat_server(in_turn(fault)) as server:
        rewards = rewards_of(spec("judge", args=args_for(server, endpoint={"api_key_env": "JUDGE_KEY"})))
        found = results(rewards)
    assert "(the API key)" in found[0].detail
    assert all("sk-secret" not in r.detail for r in found)
    assert b"sk-secret" not in pickle.dumps(rewards)


# ---- limits and cache


def test_so_many_requests_are_under_way() -> None:
    with chat_server(lambda body: (time.sleep(0.05), by_number(body))[1]) as server:
        rewards = rewards_of(spec("judge", args=args_for(server, endpoint={"max_concurrent": 3}, max=100)))
        threads = [threading.Thread(target=rewards.score_group, args=(group(6),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert server.most_at_once == 3 and len(server.requests) == 12


def test_groups_side_by_side_do_not_use_up_each_others_time() -> None:
    """Four groups of four take 0.8 s with two places; each has 0.6 s from when it is let in."""
    with chat_server(lambda body: (time.sleep(0.1), by_number(body))[1]) as server:
        args = args_for(server, endpoint={"max_concurrent": 2})
        rewards = rewards_of(spec("judge", args=args, timeout_s=0.6))
        rewards.score_group(group(1))  # imports
        with ThreadPoolExecutor(4) as pool:
            scored = list(pool.map(rewards.score_group, [group(4) for _ in range(4)]))
    assert [[s.reward for s in one.samples] for one in scored] == [[0, 0.1, 0.2, 0.3]] * 4
    assert server.most_at_once == 2


def test_a_judge_from_a_driver_script_travels() -> None:
    with chat_server(by_number) as server:
        rewards = pickle.loads(pickle.dumps(rewards_of(judge(**args_for(server)))))
        assert rewards.names == ["Judge"]
        assert [s.reward for s in rewards.score_group(group(2)).samples] == [0, 0.1]


@pytest.mark.parametrize("in_file", [False, True])
def test_the_same_is_asked_once(tmp_path: Path, in_file: bool) -> None:
    made = group(2)
    twice = made.with_samples([*made.samples, made.samples[1]])
    with chat_server(by_number) as server:
        args = args_for(server, cache=str(tmp_path / "verdicts.db") if in_file else True)
        rewards = rewards_of(spec("judge", args=args))
        first = results(rewards, twice)
        again = results(pickle.loads(pickle.dumps(rewards)) if in_file else rewards, twice)
        other = judged(server, twice, cache=args["cache"], question="Another?")
    assert [r.value for r in first] == [r.value for r in again] == [0, 0.1, 0.1]
    assert [r.counts["cached"] for r in first] == [0, 0, 1] and [r.counts["cached"] for r in again] == [1, 1, 1]
    assert sum(r.counts["requests"] for r in again) == 0 and sum(r.counts["requests"] for r in other) == 2
    assert len(server.requests) == 4


def test_failures_are_not_kept() -> None:
    with chat_server(in_turn(Fault(400, b"no"), completion("rubbish"))) as server:
        rewards = rewards_of(spec("judge", args=args_for(server, cache=True, max_asks=1)))
        assert [results(rewards, group(1))[0].status for _ in range(3)] == ["error"] * 3
    assert len(server.requests) == 3


def test_a_cache_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("not a database, and long enough to be looked at" * 30)
    for file in (tmp_path / "x.db", tmp_path / "missing" / "x.db"):
        with chat_server(by_number) as server, pytest.raises(UserError, match=f"judge's cache {file} cannot be used"):
            judged(server, cache=str(file))
