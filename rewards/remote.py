"""A reward server of OpenRLHF: `function: http://host:5000/get_reward` in the configuration.

    POST {"query": [...], "prompts": [...], "labels": [...]}  ->  {"rewards": [...]}, perhaps with scores and extra_logs

Tries again what may pass (429, 5xx, a timeout, a broken connection). What the server cannot say is no reward, never 0.
Knows nothing about what the server does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from urllib.parse import urlsplit

from rewards.deadline import deadline
from rewards.foreign import label_column, query, rewards_in
from rewards.texts import strict_json
from rlft.endpoint.client import retry_after_s
from rlft.endpoint.replies import error_text
from rlft.endpoint.wire import Wire
from rlft.errors import UserError
from rlft.samples import RewardResult, RewardStatus

MAX_TRIES = 5  # as upstream's client
TIMEOUT_S = 180.0  # of one try, as upstream's client; less where the function's timeout_s is less
WAIT_S = 1.0  # before a second try; it doubles


def is_url(text: str) -> bool:
    """Whether a configuration's `function` is the address of a server."""
    return text.startswith(("http://", "https://"))


class RemoteReward:
    """What asks one server about a group."""

    def __init__(self, url: str) -> None:
        """Raises UserError for an address that is none, or that has a password in it."""
        try:
            parts = urlsplit(url)
            bad = not parts.hostname or parts.port == 0
        except ValueError:
            bad, parts = True, urlsplit("")
        if bad:
            raise UserError(f"rewards: the function {url} is no address; expected one like http://host:5000/get_reward")
        if parts.username or parts.password:
            raise UserError("rewards: the address of a reward server has a name or password in it; leave that out")
        self._wire = Wire(url, TIMEOUT_S)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteReward, (self._wire.url,)

    def beside(self, num_samples: int) -> AbstractContextManager[None]:
        """The server may be asked about several groups at once."""
        return nullcontext()

    def __call__(self, prompt_texts: Sequence[str], label_key: str | None = None, **provided: Any) -> Any:
        """One result for each completion. `label_key`: the column that the server gets as labels; `label` or `labels`
        without one."""
        body = json.dumps(query({**provided, "prompt_texts": prompt_texts}, label_key, "query"), default=str).encode()
        count = len(provided["completions"])
        end = deadline()
        for attempt in range(MAX_TRIES):
            left_s = TIMEOUT_S if end is None else _before(end)
            status, detail, wait_s = "timeout", "no time is left to ask", None
            if left_s > 0:
                status, detail, wait_s, found = self._try(body, left_s)
                if found is not None:
                    return self._rewards(found, count)
            if wait_s is None:
                break
            wait_s = max(wait_s, WAIT_S * 2.0**attempt)
            if attempt + 1 == MAX_TRIES or (end is not None and wait_s >= _before(end)):
                break
            time.sleep(wait_s)
        return [RewardResult(None, status, f"{self._wire.url}: {detail}")] * count

    def check_columns(self, names: Iterable[str], label_key: str | None = None) -> None:
        """Whether it is clear which column has the labels."""
        label_column(names, label_key)

    def _try(self, body: bytes, left_s: float) -> tuple[RewardStatus, str, float | None, bytes | None]:
        """(how it failed, why, seconds to wait before it may be tried again or None, the reply when it did not fail)"""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        try:
            response = self._wire.post(body, headers, left_s)
        except TimeoutError as error:
            return "timeout", str(error), 0.0, None
        except ConnectionError as error:
            return "error", str(error), 0.0, None
        if 200 <= response.status < 300:
            return "error", "", None, response.body
        passing = response.status == 429 or response.status >= 500
        wait_s = (retry_after_s(response.retry_after) or 0.0) if passing else None
        return "error", f"status {response.status}: {error_text(response.body)}", wait_s, None

    def _rewards(self, body: bytes, count: int) -> Any:
        try:
            said = strict_json(body.decode())
            rewards = rewards_in(self._wire.url, said)
        except (ValueError, UserError):
            said, rewards = None, None
        if isinstance(rewards, list) and len(rewards) == count and isinstance(said, dict):
            return rewards
        detail = f'{self._wire.url}: expected {{"rewards": [{count} numbers]}}, found {error_text(body)}'
        return [RewardResult(None, "error", detail)] * count


def _before(end: float) -> float:
    """Seconds until shortly before the caller gives up."""
    return end - time.monotonic() - 0.1
