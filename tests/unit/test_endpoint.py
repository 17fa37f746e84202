"""The client, against a real HTTP server that misbehaves in every way."""

from __future__ import annotations

import json
import socket
import threading
import time
from email.utils import formatdate
from typing import Any

import pytest

from rlft.endpoint.client import Asker, Endpoint, OutOfBudget, RequestFailed, Stopped, retry_after_s, row_seed
from rlft.endpoint.config import EndpointConfig
from rlft.endpoint.replies import Rubbish, error_text, read_reply
from rlft.endpoint.usage import Usage
from rlft.errors import RunError, UserError
from tests.chat_server import ChatServer, Fault, chat_server, completion, in_turn
from tests.running import free_port

HELLO = [{"role": "user", "content": "Hello"}]


def config(server: ChatServer | str, **values: Any) -> EndpointConfig:
    url = server if isinstance(server, str) else server.url
    quick = {"base_url": url, "model": "m", "backoff_s": 0.001, "timeout_s": 10.0, "max_retries": 2}
    return EndpointConfig.model_validate(quick | values)


def ask(endpoint: Endpoint, usage: Usage | None = None):
    return endpoint.ask(HELLO, usage if usage is not None else Usage(), seed=7)


def test_an_answer_and_what_was_asked():
    with chat_server(in_turn("Hi.")) as server:
        usage = Usage()
        reply = ask(Endpoint(config(server, temperature=0.5, max_tokens=9, extra_body={"top_p": 0.9})), usage)
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("Hi.", "", "stop")
    assert server.requests == [
        {"model": "m", "messages": HELLO, "temperature": 0.5, "max_tokens": 9, "seed": 7, "top_p": 0.9}
    ]
    assert "Authorization" not in server.headers[0]
    assert usage == Usage(requests=1, prompt_tokens=10, completion_tokens=5)


def test_null_in_extra_body_takes_a_field_out():
    with chat_server(in_turn("Hi.")) as server:
        ask(Endpoint(config(server, extra_body={"max_tokens": None, "max_completion_tokens": 3, "seed": None})))
    assert server.requests[0].keys() == {"model", "messages", "temperature", "max_completion_tokens"}


NOT_JSON = Fault(200, b"<html>Bad gateway</html>")
TRANSIENT = {
    "429": (Fault(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0"}), "429", "slow down"),
    "500": (Fault(500, b"oops"), "5xx", "status 500: oops"),
    "503": (Fault(503, b'{"detail": "loading"}'), "5xx", "loading"),
    "hangs": (Fault(hang_s=30), "timeout", "no whole reply within 0.3 s"),
    "drips": (Fault(200, b"x" * 1000, drip_s=0.05), "timeout", "no whole reply within 0.3 s"),
    "cuts": (Fault(cut=True), "connection", "the connection ended 987 bytes before the reply did"),
    "not JSON": (NOT_JSON, "rubbish", "not JSON: <html>Bad gateway</html>"),
    "no choices": (Fault(200, b'{"choices": []}'), "rubbish", "no choices[0].message"),
    "half a pair": (Fault(200, json.dumps(completion("\ud83d")).encode()), "rubbish", "surrogate"),
}  # fmt: skip


@pytest.mark.parametrize("case", TRANSIENT)
def test_what_may_pass_is_tried_again(case):
    fault, kind, said = TRANSIENT[case]
    told: list[str] = []
    with chat_server(in_turn(fault, "Hi.")) as server:
        usage = Usage()
        assert ask(Endpoint(config(server, timeout_s=0.3), tell=told.append), usage).text == "Hi."
    assert (usage.requests, usage.retries, dict(usage.failures)) == (2, 1, {kind: 1})
    assert len(told) == 1 and said in told[0] and told[0].endswith("; trying again")
    assert usage.prompt_tokens == 10, "only the answer's"


@pytest.mark.parametrize("case", TRANSIENT)
def test_but_not_for_ever(case):
    fault, kind, said = TRANSIENT[case]
    begin = time.monotonic()
    with chat_server(in_turn(fault)) as server:
        usage = Usage()
        with pytest.raises(RequestFailed) as failed:
            ask(Endpoint(config(server, timeout_s=0.3, max_retries=1)), usage)
    assert failed.value.kind == kind and said in str(failed.value)
    assert (usage.requests, usage.retries, dict(usage.failures)) == (2, 1, {kind: 2})
    assert time.monotonic() - begin < 5


def test_a_host_that_accepts_nothing():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(address)
        url = f"http://127.0.0.1:{address[1]}/v1"
        with pytest.raises(RequestFailed, match=f"no connection to {url}/chat/completions within 0.3 s") as failed:
            ask(Endpoint(config(url, timeout_s=0.3, max_retries=0)))
        for sock in waiting:
            sock.close()
    assert failed.value.kind == "timeout"


def test_nobody_there():
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(RequestFailed, match="refused") as failed:
        ask(Endpoint(config(url)))
    assert failed.value.kind == "connection" and url in str(failed.value)


@pytest.mark.parametrize("status", [400, 403, 422, 302])
def test_a_refusal_is_not_tried_again(status):
    fault = Fault(status, b'{"error": {"message": "prompt is too long"}}', {"Location": "http://example.org"})
    with chat_server(in_turn(fault)) as server:
        usage = Usage()
        with pytest.raises(RequestFailed, match=f"status {status}: prompt is too long") as failed:
            ask(Endpoint(config(server)), usage)
    assert failed.value.kind == "refused"
    assert (usage.requests, dict(usage.failures)) == (1, {"refused": 1})


@pytest.mark.parametrize(("status", "advice"), [(401, "endpoint.api_key_env"), (404, "endpoint.model")])
def test_what_no_row_can_mend_is_bad_input(status, advice, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret\n")
    fault = Fault(status, b'{"error": {"message": "wrong: sk-very-secret"}}')
    with chat_server(in_turn(fault)) as server, pytest.raises(UserError) as failed:
        ask(Endpoint(config(server, api_key_env="MY_KEY")))
    assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    message = str(failed.value)
    assert f"status {status}: wrong: (the API key)" in message and advice in message and "sk-very" not in message


def test_a_key_that_is_not_there(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="the environment variable MY_KEY is not set"):
        Endpoint(config("http://localhost/v1", api_key_env="MY_KEY"))


def test_retry_after_is_obeyed_within_bounds():
    with chat_server(in_turn(Fault(429, headers={"Retry-After": "0.4"}), "Hi.")) as server:
        begin = time.monotonic()
        ask(Endpoint(config(server)))
        assert time.monotonic() - begin >= 0.4
    with chat_server(in_turn(Fault(429, headers={"Retry-After": "3600"}), "Hi.")) as server:
        begin = time.monotonic()
        ask(Endpoint(config(server, max_wait_s=0.2)))
        assert 0.2 <= time.monotonic() - begin < 5


def test_retry_after_in_all_its_forms():
    assert retry_after_s("3") == 3.0
    assert retry_after_s("-3") == 0.0
    assert 50 < (retry_after_s(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60
    assert [retry_after_s(text) for text in (None, "", "soon", "inf", "nan")] == [None] * 5


def test_waits_double_with_jitter_up_to_a_bound():
    endpoint = Endpoint(config("http://localhost/v1", backoff_s=1.0, max_wait_s=6.0))
    for attempt, most in ((0, 1.0), (1, 2.0), (2, 4.0), (3, 6.0), (1000, 6.0)):
        waits = [endpoint._wait_s(attempt, None) for _ in range(50)]
        assert all(most / 2 <= wait <= most for wait in waits)
    assert len({endpoint._wait_s(1, None) for _ in range(5)}) > 1


def test_a_budget():
    prices = {"prompt_price": 100_000.0, "completion_price": 200_000.0}  # 10 and 5 tokens: 1 + 1
    with chat_server(in_turn("Hi.")) as server:
        endpoint, usage = Endpoint(config(server, **prices), max_cost=5.0), Usage()
        for _ in range(3):
            ask(endpoint, usage)
        assert endpoint.cost(usage) == 6.0
        with pytest.raises(OutOfBudget, match="6 has been spent, run.max_cost is 5"):
            ask(endpoint, usage)
        assert len(server.requests) == 3
        again = Endpoint(config(server, **prices), max_cost=5.0)
        again.charge(usage)
        with pytest.raises(OutOfBudget):
            ask(again)


def test_a_key_is_taken_out_of_answers_too(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk/very-secret")
    half = Fault(400, b" " * 3 + b"x" * 292 + b"sk/very-secret")  # of which 300 characters are kept
    escaped = Fault(
        body=json.dumps(completion("<think>sk/very-secret</think>sk/very-secret!")).replace("/", r"\/").encode()
    )
    with chat_server(in_turn(half, escaped)) as server:
        endpoint = Endpoint(config(server, api_key_env="MY_KEY"))
        with pytest.raises(RequestFailed) as failed:
            ask(endpoint)
        reply = ask(endpoint)
    assert "sk/v" not in str(failed.value)
    assert (reply.text, reply.reasoning) == ("(the API key)!", "(the API key)")


def test_more_tokens_than_there_are_is_no_count():
    lie = completion("Hi.") | {"usage": {"prompt_tokens": 10**400, "completion_tokens": 5}}
    with chat_server(in_turn(lie)) as server:
        usage = Usage()
        assert ask(Endpoint(config(server, prompt_price=1.0, completion_price=1.0)), usage).text == "Hi."
    assert usage == Usage(requests=1, uncounted=1)


def test_a_budget_needs_usage():
    prices = {"prompt_price": 1.0, "completion_price": 1.0}
    with chat_server(in_turn(completion("Hi.") | {"usage": None})) as server:
        usage = Usage()
        assert ask(Endpoint(config(server, **prices)), usage).text == "Hi."
        assert usage.uncounted == 1 and Usage.from_json(usage.as_json()) == usage
        with pytest.raises(RunError, match="do not say how many tokens"):
            ask(Endpoint(config(server, **prices), max_cost=1.0))


def test_stop_ends_requests_and_waits_at_once():
    for fault in (Fault(hang_s=30), Fault(429, headers={"Retry-After": "50"})):
        with chat_server(in_turn(fault)) as server:
            endpoint = Endpoint(config(server, timeout_s=60.0))
            threading.Timer(0.3, endpoint.stop).start()
            begin = time.monotonic()
            with pytest.raises(Stopped):
                ask(endpoint)
            assert time.monotonic() - begin < 5
            with pytest.raises(Stopped):
                ask(endpoint)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (Fault(hang_s=30), "timeout", r"no whole reply within 0\.[23]\d* s; no time is left to try again"),
        (Fault(429, b"slow down", {"Retry-After": "5"}), "429", "status 429: slow down; no time is left to try again"),
    ],
)
def test_a_deadline_ends_tries_and_waits(fault, kind, said):
    with chat_server(in_turn(fault)) as server:
        usage, begin = Usage(), time.monotonic()
        with pytest.raises(RequestFailed, match=said) as failed:
            Endpoint(config(server)).ask(HELLO, usage, seed=7, deadline=begin + 0.3)
        assert time.monotonic() - begin < 3 and failed.value.kind == kind and usage.requests == 1
        with pytest.raises(RequestFailed, match="no time is left for it"):
            Endpoint(config(server)).ask(HELLO, usage, seed=7, deadline=begin)
        assert len(server.requests) == 1


def test_a_response_format_may_be_taken_out():
    wanted = {"type": "json_object"}
    with chat_server(in_turn("{}")) as server:
        for more in ({}, {"extra_body": {"response_format": None}}):
            Endpoint(config(server, **more)).ask(HELLO, Usage(), seed=7, response_format=wanted)
    assert [request.get("response_format") for request in server.requests] == [wanted, None]


def test_seeds_follow_from_run_row_and_request():
    with chat_server(in_turn("Hi.")) as server:
        endpoint = Endpoint(config(server))
        for row in ("a:1", "a:2", "a:1"):
            asker = Asker(endpoint, 3, row)
            asker(HELLO)
            asker(HELLO, temperature=0.0)
    seeds = [request["seed"] for request in server.requests]
    assert seeds[:2] == seeds[4:] and len(set(seeds)) == 4
    assert [request["temperature"] for request in server.requests[:2]] == [1.0, 0.0]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert row_seed(3, "a:1", "x") != row_seed(4, "a:1", "x")


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "4", "reasoning_content": " 2+2 \n"}, "4", "2+2"),
        ({"content": "4", "reasoning": "2+2"}, "4", "2+2"),
        ({"content": "<think>\n2+2\n</think>\n\n4"}, "4", "2+2"),
        ({"content": "2+2\n</think>\n4"}, "4", "2+2"),  # the template has opened it
        ({"content": [{"type": "text", "text": "4"}]}, "4", ""),
        ({"content": '{"a": "he wrote </think> 4"}'}, '{"a": "he wrote </think> 4"}', ""),
        ({"content": None, "reasoning_content": "hm"}, "", "hm"),
        ({"content": None, "refusal": "no"}, "", ""),
    ],
)
def test_replies_in_their_forms(message, text, reasoning):
    reply = read_reply(json.dumps(completion(message)).encode())
    assert (reply.text, reply.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"3", b'{"choices": [{}]}', b'{"choices": [{"message": {"content": 3}}]}']
)
def test_rubbish(body):
    with pytest.raises(Rubbish):
        read_reply(body)


def test_error_texts():
    assert error_text(b'{"error": {"message": "a\\nb"}}') == "a b"
    assert error_text(b'{"error": "c"}') == "c"
    assert error_text(b'{"message": "d"}') == "d"
    assert error_text(b"\xff") == "\ufffd"
    assert error_text(b"") == "(empty)"
    assert len(error_text(b"x" * 9999)) == 300
