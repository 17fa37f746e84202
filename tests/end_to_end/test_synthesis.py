"""`rlft synth` as people run it, against a real HTTP server: its three commands, kills, stops, training on the rows."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chat_server import Answer, Fault, chat_server, completion
from tests.running import TINY, fails, finish, num_lines, start, succeeds, train_here, wait_until

LAWS = {
    "principles": [{"name": n, "critique": f"crit {n}", "revision": f"rev {n}", "prefer": f"pref {n}"} for n in "pq"]
}
BYTES = {**TINY, "vocabulary": "bytes", "max_length": 256}


def write_job(folder: Path, url: str, command: str, count: int = 20, **sections: dict[str, Any]) -> str:
    """Prompts "3+4=" with their answers, a constitution and job.yaml; gives its name."""
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(count)]
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "laws.yaml").write_text(yaml.safe_dump(LAWS))
    tree: dict[str, dict[str, Any]] = {
        "run": {"out": "made.jsonl"},
        "endpoint": {"base_url": url, "model": "m", "backoff_s": 0.01, "timeout_s": 5.0, "max_concurrent": 4},
        "data": {"path": "x.jsonl"},
    }
    if command != "distill":
        tree[command] = {"constitution": "laws.yaml"}
    for section, keys in sections.items():
        tree[section] = tree.get(section, {}) | keys
    (folder / "job.yaml").write_text(yaml.safe_dump(tree))
    return "job.yaml"


def made(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "made.jsonl").read_text().splitlines()]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "made.jsonl.summary.json").read_text())


def question(body: dict[str, Any]) -> int:
    """i of "i+i="."""
    return int(body["messages"][0]["content"].partition("+")[0])


def right(body: dict[str, Any]) -> str:
    return str(2 * question(body))


def test_distil_a_teacher_that_is_sometimes_wrong_and_learn_from_it(tmp_path: Path) -> None:
    seen: Counter[int] = Counter()
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> Answer:
        i = question(body)
        with lock:
            seen[i] += 1
            turn = seen[i]
        if i == 3 and turn == 1:
            return Fault(429, headers={"Retry-After": "0"})
        if i == 4 and turn == 1:
            return Fault(500, b"oops")
        if i == 5:
            return completion("1", finish_reason="length")
        if i == 6:
            return "wrong"
        return {"content": right(body), "reasoning_content": f"thought {turn}"}

    with chat_server(answer) as server:
        prices = {"prompt_price": 1e6, "completion_price": 2e6, "api_key_env": "SYNTH_KEY"}
        words = ("--distill.num_answers", "2", "--rewards.functions", "[{function: exact_match}]")
        job = write_job(tmp_path, server.url, "distill", 20, endpoint=prices)
        os.environ["SYNTH_KEY"] = "sk-secret-of-the-test"
        try:
            done = succeeds(tmp_path, "synth", "distill", job, *words)
        finally:
            del os.environ["SYNTH_KEY"]
    assert server.most_at_once <= 4
    assert server.headers[0]["Authorization"] == "Bearer sk-secret-of-the-test"
    rows = made(tmp_path)
    assert [row["id"] for row in rows] == [f"x.jsonl:{i + 1}" for i in range(20) if i not in (5, 6)]
    assert rows[3]["completion"].startswith("<think>\nthought 2\n</think>\n\n6")
    assert rows[0]["answer"] == "0" and rows[0]["reward"] == 1.0
    said = summary(tmp_path)
    assert said.pop("seconds") > 0
    assert said == {
        "command": "distill", "out": "made.jsonl", "complete": True, "source_rows": 20, "resumed_rows": 0,
        "rows_made": 18, "left_out": {"duplicate": 19, "rejected": 1, "truncated": 2}, "failed_rows": {},
        "requests": 42, "retries": 2, "failed_requests": {"429": 1, "5xx": 1},
        "prompt_tokens": 400, "completion_tokens": 200, "replies_without_usage": 0, "cost": 800.0,
    }  # fmt: skip
    for line in ("18 rows from 20 prompts", "duplicate 19, truncated 2, rejected 1", "42, 2 of them retries", "800"):
        assert line in done.stdout
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"sk-secret" not in file.read_bytes(), file
    assert "sk-secret" not in done.stdout + done.stderr

    config = {
        "model": {"tiny": BYTES}, "data": {"path": "made.jsonl"}, "algorithm": {"type": "sft"},
        "learner": {"lr": 1e-2}, "loop": {"steps": 2, "prompts_per_step": 4}, "tracking": {"tensorboard": False},
        "cluster": {"mode": "inline", "threads": 1},
    }  # fmt: skip
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(config))
    train_here(tmp_path, "sft.yaml")
    assert num_lines(tmp_path / "runs" / "sft" / "metrics.jsonl") == 2


def test_revise(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        turns = [turn["content"] for turn in body["messages"]]
        words = turns[-1].split("\n")[0]
        return f"draft {question(body)}" if len(turns) == 1 else f"{words} of {turns[1]}"

    with chat_server(answer) as server:
        job = write_job(tmp_path, server.url, "revise", 6, revise={"num_principles": 2, "pairs": True})
        succeeds(tmp_path, "synth", "revise", job, "--out", "made.jsonl")
    orders = set()
    for i, row in enumerate(made(tmp_path)):
        first, second = row["principles"]
        orders.add(first)
        assert row["draft"] == row["rejected"] == f"draft {i}"
        assert row["critiques"][0] == f"crit {first} of draft {i}"
        assert row["completion"] == row["chosen"] == f"rev {second} of rev {first} of draft {i}"
    assert orders == {"p", "q"}
    assert summary(tmp_path)["requests"] == 30


def test_prefer(tmp_path: Path) -> None:
    """The judge likes longer answers, except of 2+2= (the first) and of 3+3= (nothing that can be read)."""
    drawn: Counter[int] = Counter()
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> Answer:
        text = body["messages"][0]["content"]
        if not text.startswith("Below"):
            with lock:
                drawn[question(body)] += 1
                return "long" * drawn[question(body)]
        if "2+2=" in text or "3+3=" in text:
            return "VERDICT: A" if "2+2=" in text else "Both are good. VERDICT: A and B"
        longer = text.index("longlong") > text.index("<answer_B>")
        return f"The longer one.\n\nVERDICT: {'B' if longer else 'A'}"

    with chat_server(answer) as server:
        job = write_job(tmp_path, server.url, "prefer", 6)
        succeeds(tmp_path, "synth", "prefer", job)
    rows = made(tmp_path)
    assert [row["id"] for row in rows] == [f"x.jsonl:{i}" for i in (1, 2, 5, 6)]
    assert all((row["chosen"], row["rejected"]) == ("longlong", "long") for row in rows)
    assert summary(tmp_path)["left_out"] == {"orders_disagree": 1, "unparsed": 1}
    assert summary(tmp_path)["requests"] == 6 * 2 + 5 * 2 + 3, "the unparsed one is given up in its first order"


def test_killed_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """kill -9 three times, once with half a line written; the rows are those of a job that was never killed."""
    asked: Counter[int] = Counter()
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> Answer:
        time.sleep(0.05)
        with lock:
            asked[question(body)] += 1
        return right(body)

    with chat_server(answer) as server:
        job = write_job(tmp_path, server.url, "distill", 120)
        ledger = tmp_path / "made.jsonl.ledger.jsonl"
        for lines in (20, 50, 80):
            process = start(tmp_path, "synth", "distill", job)
            wait_until(lambda lines=lines: num_lines(ledger) >= lines, process)
            os.killpg(process.pid, signal.SIGKILL)
            finish(process)
            assert not (tmp_path / "made.jsonl").exists()
        with ledger.open("rb+") as file:
            file.truncate(ledger.stat().st_size - 7)
        done = succeeds(tmp_path, "synth", "distill", job)
        assert "going on with made.jsonl: " in done.stderr
        requests = len(server.requests)
        again = succeeds(tmp_path, "synth", "distill", job)
        assert len(server.requests) == requests, "nothing is left to do"
        assert "(120 were done before)" in again.stdout
    assert [(row["id"], row["completion"]) for row in made(tmp_path)] == [
        (f"x.jsonl:{i + 1}", str(2 * i)) for i in range(120)
    ]
    ids = [json.loads(line).get("id") for line in ledger.read_text().splitlines()[1:]]
    assert Counter(ids) == Counter(f"x.jsonl:{i + 1}" for i in range(120))
    assert asked.total() <= 120 + 3 * 4 + 1, "at most what was under way is asked again"


def test_other_settings_are_refused(tmp_path: Path) -> None:
    with chat_server(right) as server:
        job = write_job(tmp_path, server.url, "distill", 3)
        succeeds(tmp_path, "synth", "distill", job)
        before = (tmp_path / "made.jsonl").read_bytes()
        err = fails(2, finish(start(tmp_path, "synth", "distill", job, "--endpoint.temperature", "0.5")))
        assert "endpoint.temperature: was 1.0, now 0.5" in err and "Give another --out" in err
        assert (tmp_path / "made.jsonl").read_bytes() == before
        succeeds(tmp_path, "synth", "distill", job, "--endpoint.max_concurrent", "1")


def test_a_server_that_is_down_and_comes_back(tmp_path: Path) -> None:
    """Every row fails until the limit; what failed is asked again by the same command."""
    with chat_server(lambda body: Fault(503, b"loading")) as server:
        job = write_job(tmp_path, server.url, "distill", 40, endpoint={"max_retries": 1})
        err = fails(1, finish(start(tmp_path, "synth", "distill", job)))
        assert "20 of 20 rows failed, more than run.max_failed_fraction 0.2 allows" in err
        assert "status 503: loading" in err
        assert len(server.requests) <= 2 * (20 + 4)
        said = summary(tmp_path)
        assert said["failed_rows"]["5xx"] >= 20 and not said["complete"] and made(tmp_path) == []
        server.answer = right
        succeeds(tmp_path, "synth", "distill", job)
    assert len(made(tmp_path)) == 40
    assert summary(tmp_path)["failed_rows"] == {}
    assert summary(tmp_path)["failed_requests"]["5xx"] >= 40


def test_a_wrong_key_ends_it_at_once(tmp_path: Path) -> None:
    with chat_server(lambda body: Fault(401, b'{"error": {"message": "bad key"}}')) as server:
        err = fails(2, finish(start(tmp_path, "synth", "distill", write_job(tmp_path, server.url, "distill"))))
        assert "status 401: bad key (the API key is not accepted; look at endpoint.api_key_env)" in err
        assert len(server.requests) <= 4


def test_few_failures_are_reported_and_no_more(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        i = question(body)
        faults = {1: Fault(400, b"too long"), 2: Fault(cut=True), 3: Fault(200, b"{"), 4: Fault(hang_s=30)}
        return faults.get(i, right(body))

    with chat_server(answer) as server:
        job = write_job(tmp_path, server.url, "distill", 30, endpoint={"max_retries": 1, "timeout_s": 0.5})
        done = succeeds(tmp_path, "synth", "distill", job)
    assert len(made(tmp_path)) == 26
    said = summary(tmp_path)
    assert said["failed_rows"] == {"connection": 1, "refused": 1, "rubbish": 1, "timeout": 1}
    assert said["failed_requests"] == {"connection": 2, "refused": 1, "rubbish": 2, "timeout": 2}
    assert not said["complete"] and "the same command tries them again" in done.stdout
    assert "endpoint: refused: status 400: too long" in done.stderr


def test_a_budget_stops_it_and_more_money_goes_on(tmp_path: Path) -> None:
    with chat_server(right) as server:
        prices = {"prompt_price": 1e5, "completion_price": 0.0}  # 1 a request
        job = write_job(tmp_path, server.url, "distill", 40, endpoint=prices)
        err = fails(1, finish(start(tmp_path, "synth", "distill", job, "--run.max_cost", "10")))
        assert "run.max_cost is 10" in err
        spent = summary(tmp_path)["cost"]
        assert 10 <= spent <= 13 and len(made(tmp_path)) == spent == len(server.requests)
        succeeds(tmp_path, "synth", "distill", job, "--run.max_cost", "100")
        assert summary(tmp_path)["cost"] == 40 == len(server.requests)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_signal_leaves_what_was_made(tmp_path: Path, number: int, code: int, word: str) -> None:
    """Also while requests hang."""

    def answer(body: dict[str, Any]) -> Answer:
        return Fault(hang_s=60) if question(body) >= 10 else right(body)

    with chat_server(answer) as server:
        job = write_job(tmp_path, server.url, "distill", 20, endpoint={"timeout_s": 100.0})
        process = start(tmp_path, "synth", "distill", job)
        wait_until(lambda: len(server.requests) >= 14, process)
        begin = time.monotonic()
        process.send_signal(number)
        done = finish(process)
        assert time.monotonic() - begin < 10
        assert done.returncode == code and word in done.stderr and "The same command goes on" in done.stderr
        assert "Traceback" not in done.stderr
        assert len(made(tmp_path)) == 10 and summary(tmp_path)["requests"] == 14
        server.answer = right
        succeeds(tmp_path, "synth", "distill", job)
        assert len(made(tmp_path)) == 20


def test_progress_says_how_long_it_will_take(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        time.sleep(0.6)
        return right(body)

    with chat_server(answer) as server:
        done = succeeds(tmp_path, "synth", "distill", write_job(tmp_path, server.url, "distill", 48))
    lines = [line for line in done.stderr.splitlines() if line.startswith("rows=")]
    assert lines and "/48 made=" in lines[0] and " eta=" in lines[0] and " requests=" in lines[0]
    assert "rows=" not in done.stdout
