"""Jobs run by rewards.code.serve on another machine. Knows nothing about what is in them."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from rlft.errors import UserError

TOKEN = "RLFT_CODE_TOKEN"
"""Environment variable with the word that client and server share."""
_TRIES, _WAIT_S = 3, 1.0
_MARGIN_S, _LONGEST = 120.0, 12.0  # waiting in the server's queue; times timeout_s, as for a pool


class _Here(urllib.request.HTTPRedirectHandler):
    """No redirects: programs and the token are for this server alone."""

    def redirect_request(self, *request: Any) -> None:
        """None: the status is an error like any other."""


_OPENER = urllib.request.build_opener(_Here)


class RemoteExecutor:
    """See rewards.code.executor.Executor."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def run(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """See Executor. All jobs go in one request."""
        limit = _MARGIN_S + _LONGEST * sum(job["timeout_s"] for job in jobs)
        try:
            outcomes = self._ask("/judge", {"jobs": list(jobs)}, limit)["outcomes"]
            if len(outcomes) == len(jobs):
                return outcomes
            detail = f"{self._url} answered {len(outcomes)} outcomes for {len(jobs)} jobs"
        except (OSError, ValueError, KeyError, TypeError) as error:
            detail = f"executor {self._url}: {_reason(error)}"
        return [{"status": "error", "passed": 0, "total": 1, "detail": detail, "seconds": 0.0} for _ in jobs]

    def facts(self) -> Mapping[str, Any]:
        """See Executor: what the server says of itself."""
        try:
            return {**self._ask("/facts", None, 30.0), "executor": self._url}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"reward 'code': executor {self._url} does not answer ({_reason(error)}). Start it there with "
                f"`python -m rewards.code.serve`, the same {TOKEN} in both environments."
            ) from None

    def _ask(self, path: str, body: Any, timeout_s: float) -> Any:
        """Raises OSError (HTTP errors too) and ValueError. A connection that fails is tried again, an answer is not."""
        headers = {"Authorization": f"Bearer {os.environ.get(TOKEN, '')}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        for tries_left in reversed(range(_TRIES)):
            request = urllib.request.Request(self._url + path, data, headers)
            try:
                with _OPENER.open(request, timeout=timeout_s) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError:
                raise
            except urllib.error.URLError:
                if not tries_left:
                    raise
                time.sleep(_WAIT_S)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        said = error.read(200).decode("utf-8", "replace").strip()
        return f"HTTP {error.code} {said or error.reason}"
    return f"{type(error).__name__}: {error}"
