"""What a chat-completions server says, strictly read: a reply, or what is wrong with it.

Knows nothing about how it came here. Nothing is made up: what is not there is empty or an error.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

MAX_COUNT = 1 << 40  # tokens; what says that it took more says nothing
MAX_DETAIL = 300  # characters of a server's words that are kept
_THINKING = re.compile(r"\s*(?:<think>)?(?P<reasoning>.*?)</think>\s*", re.DOTALL)


class Rubbish(Exception):
    """A reply that is no chat completion; says why."""


@dataclass(frozen=True)
class Reply:
    """What a model answered."""

    text: str  # without its reasoning; may be empty. JSON is never split: a text inside it may quote </think>
    reasoning: str  # what it thought before, empty when the server hides it or there is none
    finish_reason: str  # "stop", "length", "content_filter", ...; "stop" where the server says nothing
    prompt_tokens: int | None  # None where the server does not say
    completion_tokens: int | None


def read_reply(body: bytes) -> Reply:
    """The reply in the body of a chat completion. Raises Rubbish."""
    try:
        tree = json.loads(body)
        body.decode("utf-8")
    except (ValueError, RecursionError):
        raise Rubbish(f"the reply is not JSON: {_excerpt(body)}") from None
    try:
        choice = tree["choices"][0]
        message = choice["message"]
        content, reasoning = _text(message.get("content")), _reasoning(message)
        finish_reason = str(choice.get("finish_reason") or "stop")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Rubbish(f"the reply has no choices[0].message with a text: {_excerpt(body)}") from None
    try:
        (content + reasoning).encode()
    except UnicodeEncodeError:
        raise Rubbish("the reply holds half of a surrogate pair, which no text can hold") from None
    if not reasoning and not content.lstrip().startswith("{") and (thinking := _THINKING.match(content)):
        reasoning, content = thinking["reasoning"].strip(), content[thinking.end() :]
    usage = tree.get("usage")
    return Reply(content, reasoning, finish_reason, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))


def error_text(body: bytes) -> str:
    """The server's own words in the body of an error, in one line."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return _excerpt(body)
    inner = tree.get("error", tree) if isinstance(tree, dict) else tree
    for key in ("message", "detail", "error"):
        if isinstance(inner, dict) and isinstance(inner.get(key), str):
            return _excerpt(inner[key].encode(errors="replace"))
    return _excerpt(inner.encode(errors="replace") if isinstance(inner, str) else body)


def _text(content: Any) -> str:
    """Content as text: some servers give a list of parts, and null where there is only reasoning or a refusal."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise TypeError(type(content).__name__)
    return content


def _reasoning(message: dict[str, Any]) -> str:
    """Reasoning under its two usual names."""
    found = message.get("reasoning_content") or message.get("reasoning") or ""
    return found.strip() if isinstance(found, str) else ""


def _count(usage: Any, key: str) -> int | None:
    count = usage.get(key) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MAX_COUNT else None


def _excerpt(body: bytes) -> str:
    text = " ".join(body[: 4 * MAX_DETAIL].decode("utf-8", errors="replace").split())
    return (text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 3] + "...") or "(empty)"
