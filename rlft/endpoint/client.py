"""Asks an OpenAI-compatible endpoint: retries with a bound, counts every failure by its kind, and stops at a budget.

Knows nothing about what is asked or what rows are made of it. The API key goes into one header and nowhere else: it is
taken out of everything that a server says.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

from rlft.endpoint.config import EndpointConfig
from rlft.endpoint.replies import Reply, Rubbish, error_text, read_reply
from rlft.endpoint.usage import Prices, Usage
from rlft.endpoint.wire import MAX_BYTES, Response, Wire
from rlft.errors import RunError, UserError

KINDS = ("429", "5xx", "timeout", "connection", "rubbish", "refused")
"""How a request can fail. `refused`: any other status, with the server's reason; the only kind that is not retried."""

_HOPELESS = {  # what no other row could mend
    401: "the API key is not accepted; look at endpoint.api_key_env",
    404: "there is no such model or path; look at endpoint.model and endpoint.base_url",
}


class RequestFailed(Exception):
    """A request that was given up. `kind` is one of KINDS."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class OutOfBudget(RunError):
    """run.max_cost is spent."""


class Stopped(RunError):
    """Somebody else ended the run while this request was under way."""


class _Trouble(Exception):
    """One try that failed."""

    def __init__(self, kind: str, detail: str, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.kind, self.status, self.retry_after_s = kind, status, retry_after_s


class Endpoint:
    """A server and a model, for several threads at once."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        max_cost: float | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`tell` hears of the first failure of each kind. Raises UserError when the key's variable is not set."""
        self._config, self._tell = config, tell
        self._wire = Wire(config.base_url.rstrip("/") + "/chat/completions", config.timeout_s)
        self._key = _api_key(config.api_key_env)
        self._max_cost, self._cost = max_cost, 0.0
        self._prices = None
        if config.prompt_price is not None and config.completion_price is not None:
            self._prices = Prices(config.prompt_price, config.completion_price)
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._stop = threading.Event()

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        usage: Usage,
        *,
        seed: int,
        temperature: float | None = None,
        response_format: Mapping[str, Any] | None = None,
        deadline: float | None = None,
    ) -> Reply:
        """The model's answer to a conversation; what it took is added to `usage`. `response_format` as the servers know
        it; no try goes on after `deadline` (of time.monotonic), and none begins that would have to wait for it.

        Raises RequestFailed when the last try failed, UserError where no request can succeed (401, 404), OutOfBudget
        before a request that the budget does not allow, and Stopped after `stop`.
        """
        body = json.dumps(self._body(messages, seed, temperature, response_format)).encode()
        for attempt in range(self._config.max_retries + 1):
            self._check()
            usage.requests += 1
            usage.retries += attempt > 0
            try:
                reply = self._try(body, _seconds_until(deadline))
            except _Trouble as trouble:
                if self._stop.is_set():
                    raise Stopped("stopped") from None
                usage.failures[trouble.kind] += 1
                if advice := _HOPELESS.get(trouble.status):
                    raise UserError(f"endpoint {self._wire.url}: {trouble} ({advice})") from None
                wait_s = self._wait_s(attempt, trouble.retry_after_s)
                last = attempt == self._config.max_retries or trouble.kind == "refused"
                in_time = wait_s < _seconds_until(deadline)
                self._tell_once(trouble, last or not in_time)
                if last or not in_time:
                    late = "" if last else "; no time is left to try again"
                    raise RequestFailed(trouble.kind, f"{trouble}{late}") from None
                self._stop.wait(wait_s)
            else:
                self._pay(reply, usage)
                return reply
        raise AssertionError("the last try returns or raises")

    @property
    def max_concurrent(self) -> int:
        """Requests under way at a time."""
        return self._config.max_concurrent

    def stop(self) -> None:
        """End every request and every wait at once."""
        self._stop.set()
        self._wire.stop()

    def charge(self, usage: Usage) -> None:
        """Count what earlier starts spent against the budget."""
        self._cost += self.cost(usage) or 0.0

    def cost(self, usage: Usage) -> float | None:
        """Of so many tokens; None without prices."""
        return self._prices.cost(usage.prompt_tokens, usage.completion_tokens) if self._prices else None

    def _body(
        self,
        messages: Sequence[Mapping[str, Any]],
        seed: int,
        temperature: float | None,
        response_format: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        config = self._config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": [dict(message) for message in messages],
            "temperature": config.temperature if temperature is None else temperature,
            "max_tokens": config.max_tokens,
            "seed": seed,
            "response_format": response_format,
        }
        return {name: value for name, value in (body | config.extra_body).items() if value is not None}

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped("stopped")
        if self._max_cost is not None and self._cost >= self._max_cost:
            raise OutOfBudget(
                f"endpoint: {self._cost:.4g} has been spent, run.max_cost is {self._max_cost:g}. The same command with "
                "a higher --run.max_cost goes on from here."
            )

    def _try(self, body: bytes, left_s: float) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if left_s <= 0:
            raise _Trouble("timeout", "no time is left for it")
        try:
            response = self._wire.post(body, headers, left_s)
            if self._key:  # before anything is cut off, which would leave a part of it
                response = response._replace(body=response.body.replace(self._key.encode(), b"(the API key)"))
        except TimeoutError as error:
            raise _Trouble("timeout", str(error)) from None
        except ConnectionError as error:
            raise _Trouble("connection", f"{self._wire.url}: {error}") from None
        if not 200 <= response.status < 300:
            raise self._refusal(response)
        try:
            if len(response.body) > MAX_BYTES:
                raise Rubbish(f"the reply is longer than {MAX_BYTES} bytes")
            reply = read_reply(response.body)
            return replace(reply, text=self._without_key(reply.text), reasoning=self._without_key(reply.reasoning))
        except Rubbish as error:
            raise _Trouble("rubbish", self._without_key(str(error))) from None

    def _refusal(self, response: Response) -> _Trouble:
        status, words = response.status, self._without_key(error_text(response.body))
        detail = f"status {status}: {words}"
        kind = "429" if status == 429 else "5xx" if status >= 500 else "refused"
        return _Trouble(kind, detail, status, retry_after_s(response.retry_after))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "(the API key)") if self._key else text

    def _wait_s(self, attempt: int, asked_s: float | None) -> float:
        """Doubling, with jitter so that threads that failed together do not come back together; at least what the
        server asks for, at most max_wait_s."""
        wait = self._config.backoff_s * 2.0 ** min(attempt, 30) * random.uniform(0.5, 1.0)
        return min(max(wait, asked_s or 0.0), self._config.max_wait_s)

    def _pay(self, reply: Reply, usage: Usage) -> None:
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            if self._max_cost is not None:
                raise RunError(
                    f"endpoint {self._wire.url}: replies do not say how many tokens they took (usage), so "
                    "run.max_cost cannot be held. Leave run.max_cost out, or use a server that says so."
                )
            usage.uncounted += 1
            return
        usage.prompt_tokens += reply.prompt_tokens
        usage.completion_tokens += reply.completion_tokens
        if self._prices:
            with self._lock:
                self._cost += self._prices.cost(reply.prompt_tokens, reply.completion_tokens)

    def _tell_once(self, trouble: _Trouble, last: bool) -> None:
        with self._lock:
            is_new = trouble.kind not in self._told
            self._told.add(trouble.kind)
        if is_new:
            self._tell(f"endpoint: {trouble.kind}: {trouble}{'' if last else '; trying again'}")


class Asker:
    """Asks for one row. The seed of each request follows from the run's seed, the row and how many came before."""

    def __init__(self, endpoint: Endpoint, seed: int, row_id: str) -> None:
        self._endpoint, self._seed, self._row_id = endpoint, seed, row_id
        self._count = 0
        self.usage = Usage()

    def __call__(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> Reply:
        """`how`: what else Endpoint.ask takes."""
        seed = row_seed(self._seed, self._row_id, f"request {self._count}")
        self._count += 1
        return self._endpoint.ask(messages, self.usage, seed=seed, **how)


def row_seed(seed: int, row_id: str, purpose: str) -> int:
    """In [0, 2**31), which every server takes: a function of the run's seed, the row and what it is for."""
    digest = hashlib.blake2b(json.dumps([seed, row_id, purpose]).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def retry_after_s(value: str | None) -> float | None:
    """The header Retry-After, in seconds or as a date, as seconds from now; None when there is none to be read."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


def _seconds_until(deadline: float | None) -> float:
    return math.inf if deadline is None else deadline - time.monotonic()


def _api_key(name: str | None) -> str:
    if name is None:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"endpoint.api_key_env: the environment variable {name} is not set. Export it.")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"endpoint.api_key_env: the environment variable {name} holds what no HTTP header can.")
    return key
