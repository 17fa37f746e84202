"""An OpenAI-compatible server as a configuration describes it: one section, as strict as the rest.

Knows nothing about requests. Serves whatever asks a model over HTTP: `rlft synth`, `rlft eval --judge`, the reward
`judge`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from rlft.config.base import Section
from rlft.config.problems import Problem

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EndpointConfig(Section):
    """endpoint: an OpenAI-compatible server (chat completions) and the model that it serves."""

    base_url: str
    """Up to and with the version: `http://localhost:8000/v1`."""
    model: str
    """The model's name at that server."""
    api_key_env: str | None = None
    """Environment variable that holds the API key. Empty: the server wants none. The key itself is written nowhere."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of answers."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest answer, in tokens. What is cut off there is left out."""
    extra_body: dict[str, Any] = {}
    """More fields for each request, under the server's names: `{top_p: 0.9}`. null takes one of ours out:
    `{max_tokens: null, max_completion_tokens: 1024}`, or `{seed: null}` for servers that refuse seeds."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds that one request may take once it is connected, to the last byte of the reply. Connecting may take as
    long, at most 20 s."""
    max_concurrent: int = Field(default=16, ge=1)
    """Requests under way at a time."""
    max_retries: int = Field(default=5, ge=0)
    """A request is tried so many times more after a 429, a 5xx, a timeout, a broken connection or a reply that is no
    chat completion."""
    backoff_s: float = Field(default=1.0, gt=0)
    """Wait before the first retry; it doubles from one to the next, less up to a half by chance."""
    max_wait_s: float = Field(default=60.0, gt=0)
    """Longest wait before a retry, also where the server asks for more (Retry-After)."""
    prompt_price: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens, in any currency. Empty: cost is not counted."""
    completion_price: float | None = Field(default=None, ge=0)
    """Price of a million completion tokens."""


def endpoint_problems(endpoint: EndpointConfig) -> Iterator[Problem]:
    """What the types do not say."""
    key, url = "endpoint.base_url", endpoint.base_url
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield Problem(key, f'found "{url}", expected http:// or https:// and a host, like http://localhost:8000/v1')
    elif parts.username or parts.password:
        yield Problem(key, "has a name or a password in it; put the key into a variable and name it with api_key_env")
    elif parts.query or parts.path.rstrip("/").endswith("/completions"):
        yield Problem(key, f'found "{url}", expected only what comes before /chat/completions')
    try:
        _ = parts.port
    except ValueError:
        yield Problem(key, f'found "{url}", whose port is no number from 0 to 65535')
    name = endpoint.api_key_env
    if name is not None and not _VARIABLE.fullmatch(name):  # not shown: it may be the key itself
        yield Problem(
            "endpoint.api_key_env",
            "is not the name of an environment variable, like JUDGE_KEY; export the key under a name and give the name",
        )
    elif name is not None and not os.environ.get(name, "").strip():
        yield Problem(
            "endpoint.api_key_env",
            f"the environment variable {name} is not set; export it, or leave the key out for servers without keys",
        )
    elif name is not None and not os.environ[name].strip().isprintable():
        yield Problem("endpoint.api_key_env", f"the environment variable {name} holds more than one line")
    if (endpoint.prompt_price is None) != (endpoint.completion_price is None):
        missing = "prompt_price" if endpoint.prompt_price is None else "completion_price"
        yield Problem(f"endpoint.{missing}", "is empty, and the other price is given; give both or none")
    try:
        json.dumps(endpoint.extra_body, allow_nan=False)
    except ValueError:
        yield Problem("endpoint.extra_body", "holds a number that JSON does not have (nan or inf)")
    for field in ("messages", "model", "stream", "n"):
        if field in endpoint.extra_body:
            yield Problem("endpoint.extra_body", f"sets {field}, which rlft sets itself; take it out")
