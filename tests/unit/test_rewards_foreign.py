"""Reward functions of other projects, written as their own documentation has them, in files of their own."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rewards.combine import RewardSet
from rlft.data.prompts import with_ground_truth
from rlft.errors import UserError
from tests.unit.rewarding import group, in_file, rewards_of, spec

VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if solution_str == "c2":
        raise KeyError("odd one")
    score = float(solution_str == ground_truth and data_source == "openai/gsm8k")
    return {"score": score, "acc": bool(score), "index": extra_info["index"]} if extra_info else score

async def slowly(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0):
    import asyncio
    await asyncio.sleep(0.01)
    if solution_str == "c1":
        raise ValueError("no")
    return bonus + (solution_str == ground_truth)

def batch(data_sources, solution_strs, ground_truths, extra_infos):
    assert data_sources == ["openai/gsm8k"] * len(solution_strs) and extra_infos[0] == {"index": 7}
    return [{"score": float(s == g)} for s, g in zip(solution_strs, ground_truths)]

def pair(data_source, solution_str, ground_truth): return (0.5, "why")

def nothing(data_source, solution_str, ground_truth): return {"acc": 1}
"""
OPENRLHF = """
import torch
def reward_func(queries, prompts, labels, **kwargs):
    found = torch.tensor([float(q[len(p):] == l) for q, p, l in zip(queries, prompts, labels)])
    return {"rewards": found, "scores": found, "extra_logs": {"dummy": found * 2, "mean": found.mean()}}
def tensor(queries, prompts, labels):
    return torch.ones(len(queries))
def short(queries, prompts, labels):
    return torch.ones(1)
def odd(queries, prompts, labels):
    return {"scores": torch.ones(len(queries))}
"""
TRL = """
def accuracy(prompts, completions, answer, **kwargs):
    return [1.0 if c == a else 0.0 for c, a in zip(completions, answer)]
async def later(completions, completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]
class Counting:
    def __init__(self): self.calls = 0
    def __call__(self, completions, **kwargs):
        self.calls += 1
        return [self.calls] * len(completions)
instance = Counting()
class Needs:
    def __init__(self, size): pass
class Mute: pass
"""
ROW = with_ground_truth(
    {"data_source": "openai/gsm8k", "reward_model": {"style": "rule", "ground_truth": "c0"}, "extra_info": {"index": 7}}
)


def parts(rewards: RewardSet, num: int = 2, chat: bool = False, **columns: Any) -> list[Any]:
    samples = pickle.loads(pickle.dumps(rewards)).score_group(group(num, chat, **columns)).samples
    return [next(iter(s.reward_parts.values())) for s in samples]


@pytest.mark.parametrize("chat", [False, True])
def test_verl_one_by_one(tmp_path: Path, chat: bool) -> None:
    rewards = rewards_of(spec(f"{in_file(tmp_path, VERL)}:compute_score"))
    rewards.check_columns(ROW)
    right, wrong, odd = parts(rewards, 3, chat, **ROW)
    assert (right.value, right.status, right.detail) == (1, "ok", "acc=True, index=7")
    assert (wrong.value, wrong.detail) == (0, "acc=False, index=7")
    assert (odd.value, odd.status) == (None, "error"), "one that fails says nothing of the others"
    assert "KeyError: 'odd one'" in odd.detail and "mine.py:4" in odd.detail
    assert parts(rewards, 1, data_source="openai/gsm8k", ground_truth="c0")[0].value == 1


def test_verl_async_batch_and_args(tmp_path: Path) -> None:
    file = in_file(tmp_path, VERL)
    first, second = parts(
        rewards_of(spec(f"{file}:slowly", args={"bonus": 2.0, "data_source": "x"})), ground_truth="c0"
    )
    assert (first.value, second.value, second.status) == (3, None, "error") and "ValueError: no" in second.detail
    assert [p.value for p in parts(rewards_of(spec(f"{file}:batch")), **ROW)] == [1, 0]
    assert [p.value for p in parts(rewards_of(spec(f"{file}:pair")), **ROW)] == [0.5, 0.5]


def test_verl_in_part(tmp_path: Path) -> None:
    """Of verl's parameters a function is given those that it takes."""
    code = "def score(solution_str, ground_truth, odd=1): return float(solution_str == ground_truth)\n"
    file = in_file(tmp_path, code)
    assert [p.value for p in parts(rewards_of(spec(f"{file}:score")), ground_truth="c0")] == [1, 0]


def test_verl_without_what_it_needs(tmp_path: Path) -> None:
    file = in_file(tmp_path, VERL)
    with pytest.raises(UserError, match="'compute_score' needs the parameter 'data_source'"):
        rewards_of(spec(f"{file}:compute_score")).check_columns(["ground_truth"])
    with pytest.raises(UserError, match="'nothing' returned a dict with acc; expected a `score`"):
        parts(rewards_of(spec(f"{file}:nothing")), **ROW)
    with pytest.raises(UserError, match=r"args of 'slowly' sets 'bonsu'\. Expected bonus, data_source, extra_info"):
        rewards_of(spec(f"{file}:slowly", args={"bonsu": 1}))


@pytest.mark.parametrize("chat", [False, True])
def test_openrlhf(tmp_path: Path, chat: bool) -> None:
    file = in_file(tmp_path, OPENRLHF)
    first, second = parts(rewards_of(spec(f"{file}:reward_func", args={"label_key": "answer"})), 2, chat, answer="c0")
    assert (first.value, first.detail) == (1, "scores=1.0, dummy=2.0") and second.value == 0
    assert [p.value for p in parts(rewards_of(spec(f"{file}:tensor")), label="x")] == [1, 1]
    with pytest.raises(UserError, match="returned 1 values for 2 completions"):
        parts(rewards_of(spec(f"{file}:short")), label="x")
    with pytest.raises(UserError, match="'odd' returned a dict with scores; expected `rewards`"):
        parts(rewards_of(spec(f"{file}:odd")), label="x")


@pytest.mark.parametrize(
    ("columns", "args", "words"),
    [
        (["answer"], {}, r"there is neither of .*label_key: answer.*Columns there: answer"),
        (["label", "labels"], {}, "there is both of"),
        (["label"], {"label_key": "gold"}, "there is no 'gold'"),
    ],
)
def test_openrlhf_labels_that_are_not_clear(tmp_path: Path, columns: list[str], args: dict, words: str) -> None:
    rewards = rewards_of(spec(f"{in_file(tmp_path, OPENRLHF)}:tensor", args=args))
    with pytest.raises(UserError, match=words):
        rewards.check_columns(columns)


def test_trl_and_classes(tmp_path: Path) -> None:
    file = in_file(tmp_path, TRL)
    assert [p.value for p in parts(rewards_of(spec(f"{file}:accuracy")), answer="c1")] == [0, 1]
    assert [p.value for p in parts(rewards_of(spec(f"{file}:later")))] == [2, 2]
    assert [p.value for p in parts(rewards_of(spec(f"{file}:instance")))] == [1, 1]
    counting = rewards_of(spec(f"{file}:Counting"))
    assert [counting.score_group(group(1)).samples[0].reward for _ in range(2)] == [1, 2], "made once"
    with pytest.raises(UserError, match="Needs is a class, and making one without arguments failed: TypeError"):
        rewards_of(spec(f"{file}:Needs"))
    with pytest.raises(UserError, match="Mute is a class without __call__"):
        rewards_of(spec(f"{file}:Mute"))


def test_a_signature_that_nobody_has(tmp_path: Path) -> None:
    file = in_file(tmp_path, "def f(response, label: str = ''): return 1.0\n")
    with pytest.raises(UserError) as caught:
        rewards_of(spec(f"{file}:f"))
    message = str(caught.value)
    for words in ("f(response, label: 'str'", "takes no completions", "TRL", "compute_score(", "reward_func(queries"):
        assert words.replace("'str'", "str") in message, message


# ---- a reward server


@contextmanager
def reward_server(*replies: tuple[int, Any, dict[str, str]]) -> Iterator[tuple[str, list[Any]]]:
    """OpenRLHF's server, that says these one after the other, the last for ever; gives its address and what came in."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, reply, headers = replies[min(len(asked), len(replies) - 1)]
            asked.append((self.path, body))
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/get_reward", asked
    finally:
        server.shutdown()
        server.server_close()


GOOD = (200, {"rewards": [1.5, -1], "scores": [1, 0], "extra_logs": {"a": [2, 3]}}, {})


def test_a_reward_server() -> None:
    with reward_server((503, b"loading", {"Retry-After": "0"}), GOOD) as (url, asked):
        rewards = rewards_of(spec(url, args={"label_key": "answer"}, weight=2))
        assert rewards.names == ["get_reward"]
        rewards.check_columns(["answer"])
        first, second = parts(rewards, answer="x")
    assert (first.value, first.detail, second.value) == (1.5, "scores=1, a=2", -1)
    assert asked[1] == ("/get_reward", {"query": ["pc0", "pc1"], "prompts": ["p", "p"], "labels": ["x", "x"]})
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("reply", "status", "words"),
    [
        ((500, b"oops", {"Retry-After": "5"}), "error", "status 500: oops"),
        ((400, b"bad query", {}), "error", "status 400: bad query"),
        ((200, {"rewards": [1]}, {}), "error", 'expected {"rewards": [2 numbers]}'),
        ((200, {"reward": [1, 2]}, {}), "error", 'expected {"rewards"'),
        ((200, b"<html>", {}), "error", "found <html>"),
    ],
)
def test_a_reward_server_that_cannot_say(reply: Any, status: str, words: str) -> None:
    with reward_server(reply) as (url, asked):
        for part in parts(rewards_of(spec(url, timeout_s=1)), label="x"):
            assert (part.value, part.status) == (None, status) and words in part.detail, part.detail
    assert len(asked) == 1


def test_nobody_at_the_address() -> None:
    with pytest.raises(UserError, match="name or password in it"):
        rewards_of(spec("http://me:secret@localhost/get_reward"))
    with pytest.raises(UserError, match="is no address"):
        rewards_of(spec("http://:80/"))
    (part,) = parts(rewards_of(spec("http://127.0.0.1:9/get_reward", timeout_s=0.5)), 1, label="x")
    assert (part.value, part.status) == (None, "error") and "refused" in part.detail
