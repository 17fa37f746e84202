"""`rlft eval --judge` as people run it, with a judge behind a real HTTP server: good, lazy, broken, killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlft import cli
from rlft.evaluation.win_rate import wilson
from tests.chat_server import Answer, ChatServer, Fault, chat_server, completion
from tests.running import SFT, fails, finish, num_lines, start, succeeds, train_here, wait_until, write_config

SHORT = ["--generator.max_new_tokens", "8"]
_PARTS = re.compile(r"user: (.*)\n</conversation>.*<answer_A>\n(.*)\n</answer_A>.*<answer_B>\n(.*)\n</answer_B>", re.S)


@pytest.fixture(scope="module")
def runs(task: Path) -> Path:
    """runs/sft, which has learned to sort digits to some extent, and prompts.jsonl."""
    train_here(task, write_config(task, "sft", SFT, {"loop.steps": 60}))
    (task / "prompts.jsonl").write_text("".join((task / "eval.jsonl").read_text().splitlines(keepends=True)[:40]))
    return task


def write_judge(folder: Path, server: ChatServer, name: str = "judge", **sections: dict[str, Any]) -> str:
    """Gives the file's name."""
    tree: dict[str, dict[str, Any]] = {
        "endpoint": {"base_url": server.url, "model": "m", "backoff_s": 0.01, "timeout_s": 5.0, "max_concurrent": 4}
    }
    for section, keys in sections.items():
        tree[section] = tree.get(section, {}) | keys
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return f"{name}.yaml"


def parts(body: dict[str, Any]) -> tuple[str, str, str]:
    """The prompt, and the answers in their places."""
    found = _PARTS.search(body["messages"][0]["content"])
    assert found is not None, body
    return found[1], found[2], found[3]


def quality(prompt: str, answer: str) -> int:
    """How many digits stand where they should."""
    right = "".join(sorted(prompt.rstrip("=")))
    return sum(a == b for a, b in zip(right, answer))


def good(body: dict[str, Any]) -> Answer:
    """Looks at the answers; where they are equally good, it says A."""
    prompt, a, b = parts(body)
    return f"I looked.\nVERDICT: {'B' if quality(prompt, b) > quality(prompt, a) else 'A'}"


def judged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(path: Path) -> dict[str, Any]:
    return json.loads(Path(f"{path}.summary.json").read_text())


def test_a_good_judge(runs: Path) -> None:
    """Against what training started from; the numbers are those of counting by hand."""
    with chat_server(good) as server:
        judge = write_judge(runs, server, endpoint={"prompt_price": 1e6, "completion_price": 2e6})
        words = ("eval", "runs/sft", "--judge", judge, "--data", "prompts.jsonl", *SHORT)
        done = succeeds(runs, *words)
        asked = len(server.requests)
        again = succeeds(runs, *words)
        assert len(server.requests) == asked, "nothing is left to do"
    assert "40 judged before" in again.stdout and "answers to draw" not in again.stderr
    assert all(body["temperature"] == 0.0 for body in server.requests)
    (path,) = (runs / "runs/sft/judge").glob("step-000060-judge-*[0-9a-f].jsonl")
    rows = judged(path)
    assert [row["id"] for row in rows] == [f"prompts.jsonl:{i}" for i in range(1, 41)]
    gaps = [quality(row["prompt"], row["answer"]) - quality(row["prompt"], row["base_answer"]) for row in rows]
    same = [row["answer"] == row["base_answer"] for row in rows]
    wins, losses = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    ties = 40 - wins - losses
    assert wins > 20 and ties - sum(same) > 0, "it has learned, and some answers are equally good"
    said = summary(runs / path)
    assert said["result"] == {
        "wins": wins, "losses": losses, "orders_disagree": ties - sum(same), "same_answer": sum(same),
        "num_first": asked // 2 + ties - sum(same), "num_verdicts": asked,
    }  # fmt: skip
    assert asked == 2 * (40 - sum(same)) == said["requests"] and said["cost"] == asked * (10 + 2 * 5)
    assert said["win_rate"] == (wins + ties / 2) / 40
    low, high = wilson(wins + ties / 2, 40)
    for line in (
        f"win rate   {said['win_rate']:.3f}, 95 % interval {low:.3f} to {high:.3f}, of 40 judged",
        f"decided    {wins + losses}: wins {wins}, losses {losses}; won {wins / (wins + losses):.3f}",
        f"ties       {ties}: orders disagree {ties - sum(same)}, same answer {sum(same)}",
        "left out   unparsed 0, failed 0", f"cost       {asked * 20}",
        f"length     {sum(len(row['answer']) for row in rows) / 40:.1f} and ",
    ):  # fmt: skip
        assert line in done.stdout, done.stdout
    assert "model      runs/sft/checkpoints/step-000060" in done.stdout
    assert str(runs / "runs/sft/model") in done.stdout, "the base"


def run_here(
    runs: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[dict[str, Any]], Answer], name: str,
    *words: str, code: int = 0, **sections: dict[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """In this process: (verdicts, summary)."""
    monkeypatch.chdir(runs)
    with chat_server(answer) as server:
        judge = write_judge(runs, server, name, **sections)
        more = ["--data", "prompts.jsonl", "--out", f"{name}.jsonl", "--evaluation.max_rows", "20", *SHORT, *words]
        assert cli.main(["eval", "runs/sft", "--judge", judge, *more]) == code
    return judged(runs / f"{name}.jsonl"), summary(runs / f"{name}.jsonl")


def test_a_judge_that_always_says_the_first_decides_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, said = run_here(runs, monkeypatch, lambda body: "VERDICT: A", "lazy")
    same = said["result"]["same_answer"]
    assert {row["verdict"] for row in rows} <= {"orders_disagree", "same_answer"}
    assert said["result"]["orders_disagree"] == 20 - same and said["win_rate"] == 0.5 and said["first_place"] == 1.0
    assert said["result"]["wins"] == said["result"]["losses"] == 0


def test_a_model_against_itself_is_all_ties(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, said = run_here(runs, monkeypatch, lambda body: Fault(500), "itself", "--against", "runs/sft")
    assert {row["verdict"] for row in rows} == {"same_answer"} and said["requests"] == 0 and said["win_rate"] == 0.5


def test_answers_of_the_data(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The right ones, so that nothing wins."""
    rows, said = run_here(runs, monkeypatch, good, "column", "--judge.reference_column", "answer")
    answers = [json.loads(line)["answer"] for line in (runs / "prompts.jsonl").read_text().splitlines()[:20]]
    assert [row["base_answer"] for row in rows] == answers
    assert said["result"]["wins"] == 0 and said["result"]["losses"] > 0
    assert "base       column answer" in capsys.readouterr().out


def test_rubbish_and_429(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read or fails is counted and left out of the win rate."""
    seen: set[str] = set()
    lock = threading.Lock()
    with (runs / "prompts.jsonl").open() as file:
        prompts = [json.loads(line)["prompt"] for line in file]

    def answer(body: dict[str, Any]) -> Answer:
        place = prompts.index(parts(body)[0])
        with lock:
            is_new = json.dumps(body) not in seen
            seen.add(json.dumps(body))
        if place in (0, 1):
            return "Both are fine. VERDICT: A or B"
        if place == 2:
            return Fault(200, b"<html>")
        if place == 3:
            return Fault(400, b"too long")
        if place == 4 and is_new:
            return Fault(429, headers={"Retry-After": "0"})
        return completion("VERDICT: B") if place == 5 else good(body)

    rows, said = run_here(runs, monkeypatch, answer, "rubbish", endpoint={"max_retries": 1}, judge={"max_asks": 2})
    same = {row["id"] for row in rows if row["verdict"] == "same_answer"}
    assert not same & {f"prompts.jsonl:{i}" for i in range(1, 7)}, "the base is random: that would be chance"
    assert [row["id"] for row in rows] == [f"prompts.jsonl:{i}" for i in range(5, 21)]
    assert rows[1]["verdict"] == "orders_disagree" and rows[1]["verdicts"] == ["B", "B"]
    assert said["unparsed"] == 2 and said["failed"] == {"rubbish": 1, "refused": 1}
    assert said["failed_requests"] == {"429": 2, "refused": 1, "rubbish": 2} and said["retries"] == 3
    result = said["result"]
    assert sum(result[k] for k in ("wins", "losses", "orders_disagree", "same_answer")) == 16


def test_too_many_failures_are_exit_code_1_and_the_same_command_goes_on(runs: Path) -> None:
    with chat_server(lambda body: Fault(503, b"loading")) as server:
        judge = write_judge(runs, server, "down", endpoint={"max_retries": 0}, run={"max_failed_fraction": 0.1})
        words = ("eval", "runs/sft", "--judge", judge, "--data", "prompts.jsonl", *SHORT)
        err = fails(1, finish(start(runs, *words)))
        assert "rows failed, more than run.max_failed_fraction 0.1 allows" in err and "503: loading" in err
        assert "win rate   " in err
        server.answer = good
        assert "failed 0" in succeeds(runs, *words).stdout
        server.answer = lambda body: "hm"
        err = fails(1, finish(start(runs, *words, "--judge.question", "Which?")))
        assert "not one of 40 pairs got a verdict in both orders" in err and "unparsed 40" in err


def test_killed_it_goes_on_where_it_was(runs: Path) -> None:
    """kill -9 while answers are judged: no answer is drawn again, no verdict is asked for twice."""

    def slow(body: dict[str, Any]) -> Answer:
        time.sleep(0.1)
        return good(body)

    with chat_server(slow) as server:
        judge = write_judge(runs, server, "slow")
        words = ("eval", "runs/sft", "--judge", judge, "--data", "prompts.jsonl", "--out", "slow.jsonl", *SHORT)
        process = start(runs, *words)
        wait_until(lambda: num_lines(runs / "slow.jsonl.ledger.jsonl") >= 15, process)
        os.killpg(process.pid, signal.SIGKILL)
        finish(process)
        assert not (runs / "slow.jsonl").exists()
        done = succeeds(runs, *words)
        assert "answers to draw" not in done.stderr and "going on with slow.jsonl: " in done.stderr
        assert len(server.requests) <= 2 * 40 + 2 * 4
        more = succeeds(runs, *words, "--evaluation.max_rows", "30", "--out", "fewer.jsonl")
        assert "30 prompts" in more.stdout
        err = fails(2, finish(start(runs, *words, "--judge.question", "Which?")))
        assert "was begun with other settings" in err and "judge.question: was" in err
    assert len(judged(runs / "slow.jsonl")) == 40


def test_errors(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    with chat_server(good) as server:
        write_judge(runs, server, "ok")
        write_judge(runs, server, "typo", judge={"max_ask": 1})
    data = ("--data", "prompts.jsonl")
    shutil.copytree("runs/sft/checkpoints/step-000060", "plain")
    cases = {
        ("runs/sft", "--judge", "typo.yaml", *data): "typo.yaml:8: judge.max_ask: unknown key; did you mean",
        ("runs/sft", "--judge", "nowhere.yaml", *data): "nowhere.yaml: there is no such configuration file",
        ("plain", "--judge", "ok.yaml", *data, *SHORT): "nothing says what it was: give --against BASE",
        ("plain", "--judge", "ok.yaml", *data, *SHORT, "--against", "runs/sft"): "give --out FILE for the verdicts",
        ("runs/sft", "--judge", "ok.yaml"): "--judge needs prompts: give them with --data FILE",
        ("runs/sft", "--judge", "ok.yaml", *data, "--samples", "2"): "--samples has no effect with --judge",
        ("runs/sft", "--judge", "ok.yaml", "--golden", "x"): "--golden and --judge measure different things",
        ("runs/sft", "--out", "x.jsonl"): "--out has no effect without --judge FILE",
        ("runs/sft", "--against", "runs/sft"): "--against has no effect without --golden FILE or --judge FILE",
        ("runs/sft", "--judge", "ok.yaml", *data, "--learner.lr", "1"): "--learner.lr has no effect on a comparison",
        ("runs/sft", "--judge", "ok.yaml", *data, "--judge.max_asks", "0"): "--judge.max_asks",
        ("runs/sft", "--judge", "ok.yaml", *data, "--against", "runs/sft", "--judge.reference_column", "answer"):
            "is compared with already; keep one",
        ("runs/sft", "--judge", "ok.yaml", *data, "--judge.reference_column", "anser", *SHORT):
            "prompts.jsonl:1: column 'anser' (judge.reference_column) is not there",
    }  # fmt: skip
    for words, expected in cases.items():
        assert cli.main(["eval", *words]) == 2, words
        err = capsys.readouterr().err
        assert err.rpartition("error: ")[2] and expected in err, (words, err)
