"""The reward judge as runs use it: tokens and cost in metrics, a key that is nowhere, a judge that breaks down, and a
real model behind `transformers serve`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlft.config.model import TinyModel
from rlft.data.tokenizer import load_tokenizer
from rlft.errors import RunError
from rlft.models.tiny import make_tiny_model
from tests.chat_server import Answer, Fault, chat_server
from tests.running import GRPO, environment, fails, free_port, metrics_of, rlft, train_here, write_config
from tests.unit.rewarding import group, rewards_of, spec

KEY = "sk-never-written-down-7f3a"
_PARTS = re.compile(r"<answer ([0-9a-f]{12})>\n(.*?)\n</answer \1>", re.S)


def judge(server_url: str, **endpoint: Any) -> dict[str, Any]:
    return {"function": "judge", "args": {"endpoint": {"base_url": server_url, "model": "m", **endpoint}}}


def by_digits(body: dict[str, Any]) -> Answer:
    found = _PARTS.search(body["messages"][0]["content"])
    assert found is not None
    score = sum(letter.isdigit() for letter in found[2])
    return json.dumps({"token": found[1], "reason": "digits", "score": min(score, 10)})


def test_a_run_with_a_judge(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten prompt and five completion tokens a call; what the judge gets is paid only behind the gate."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with chat_server(by_digits) as server:
        prices = {"prompt_price": 1e5, "completion_price": 2e5, "api_key_env": "JUDGE_KEY"}
        gate = {"function": "my_rewards.py:share_of_digits", "gate": 0.1}
        functions = [gate, judge(server.url, **prices) | {"cap": 0.5}]
        changes = {"rewards.functions": functions, "loop.steps": 2, "cluster.mode": "inline"}
        train_here(task, write_config(task, "judged", GRPO, changes))
        assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    lines = metrics_of(task / "runs" / "judged")
    requests = [line.get("reward/judge/requests", 0.0) for line in lines]
    assert sum(requests) == len(server.requests) > 0
    for line, count in zip(lines, requests, strict=True):
        if not count:
            continue  # the gate was closed for all
        assert (line["reward/judge/prompt_tokens"], line["reward/judge/completion_tokens"]) == (10 * count, 5 * count)
        assert line["reward/judge/cost"] == pytest.approx(2 * count)
        samples = GRPO["loop"]["prompts_per_step"] * GRPO["algorithm"]["group_size"]
        assert line.get("reward/judge/gated", 0) + count == samples and line["samples/failed"] == 0
    written = [file for file in (task / "runs" / "judged").rglob("*") if file.is_file()]
    assert written and not [file for file in written if KEY.encode() in file.read_bytes()]


def test_a_judge_that_breaks_down_ends_the_run(task: Path) -> None:
    with chat_server(lambda body: Fault(500, b"out of memory")) as server:
        functions = [judge(server.url, max_retries=0, backoff_s=0.01)]
        changes = {"rewards.functions": functions, "loop.steps": 2, "cluster.mode": "inline"}
        with pytest.raises(RunError) as caught:
            train_here(task, write_config(task, "broken", GRPO, changes))
    said = str(caught.value)
    assert "samples have no reward" in said and "Reward 'judge': " in said and "refused" in said
    assert len(server.requests) < 20, "the breaker has spared the rest"


def test_bad_args_are_told_before_anything_starts(task: Path) -> None:
    functions = [judge("http://localhost:1/v1", api_key_env="NO_SUCH_KEY") | {"gate": 0.5}]
    config = write_config(task, "bad", GRPO, {"rewards.functions": functions})
    assert "the environment variable NO_SUCH_KEY is not set" in fails(2, rlft(task, "config", "check", config))


@contextlib.contextmanager
def transformers_serve(model: Path) -> Iterator[str]:
    """`transformers serve` with a model; gives the address up to /v1."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--host", "127.0.0.1", "--port",
        str(port), "--device", "cpu",
    ]  # fmt: skip
    with (model.parent / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment(HF_HUB_OFFLINE="1"), stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, model.parent / "serve.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120  # it imports torch and loads a model of a few megabytes
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.2)


@pytest.mark.slow
def test_a_real_model_behind_transformers_serve(tmp_path: Path) -> None:
    """It was never trained, so it says nothing that is a verdict: no reward, and no number made up. Its server counts
    tokens, and so do we with its own tokenizer."""
    pytest.importorskip("uvicorn", reason="needs what `transformers serve` needs: pip install transformers[serving]")
    pytest.importorskip("fastapi", reason="needs what `transformers serve` needs: pip install transformers[serving]")
    model = tmp_path / "judge"
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 64}
    make_tiny_model(TinyModel.model_validate({"vocabulary": "bytes", **sizes, "max_length": 4096}), model, seed=0)
    with transformers_serve(model) as url:
        endpoint = {"base_url": url, "model": str(model), "max_tokens": 24, "timeout_s": 60.0, "max_concurrent": 2}
        rewards = rewards_of(spec("judge", args={"endpoint": endpoint, "max_asks": 2}, timeout_s=100))
        found = [sample.reward_parts["judge"] for sample in rewards.score_group(group(2)).samples]
    assert [(result.value, result.status) for result in found] == [(None, "error")] * 2, found
    from rewards.judge.modes import Row, _data
    from rewards.judge.questions import Question
    from rewards.judge.settings import QUESTIONS

    task = f"{QUESTIONS['score']}\nGive a score from 0 (worst) to 10 (best)."
    question = Question(_data(Row("p", "c0", None)), task, "score", "<a number from 0 to 10>", "{}")
    talk = [{"role": "user", "content": question.text("0123456789ab")}]
    tokens = load_tokenizer(str(model)).apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    for result in found:
        assert "2 replies without a verdict; the last: the judge's reply is not one JSON object" in result.detail
        assert (result.counts["requests"], result.counts["unreadable"]) == (2, 2)
        assert result.counts["prompt_tokens"] == 2 * len(tokens), "each byte of the question is a token of this model"
        assert 0 < result.counts["completion_tokens"] <= 2 * 24
