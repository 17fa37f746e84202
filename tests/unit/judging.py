"""A judge behind a real HTTP server, for tests: what it was asked, what it may answer, what came of it."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

from rewards.combine import RewardSet
from rlft.samples import Group, RewardResult
from tests.chat_server import Answer, ChatServer
from tests.unit.rewarding import group, rewards_of, spec

PARTS = re.compile(r"<(\w+) ([0-9a-f]{12})>\n(.*?)\n</\1 \2>", re.S)


def parts(body: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The token of a request, and the texts between its marks."""
    text = body["messages"][0]["content"]
    found = PARTS.findall(text)
    return found[0][1], {name: part for name, _, part in found}


def verdict(body: dict[str, Any], **fields: Any) -> str:
    return json.dumps({"token": parts(body)[0], "reason": "so it is", **fields})


def by_number(body: dict[str, Any]) -> Answer:
    """Scores "c3" with 3, and prefers the higher number."""
    _, texts = parts(body)
    if "answer" in texts:
        return verdict(body, score=int(texts["answer"][1:]))
    a, b = int(texts["answer_A"][1:]), int(texts["answer_B"][1:])
    return verdict(body, better="tie" if a == b else "A" if a > b else "B")


def args_for(server: ChatServer | str, **more: Any) -> dict[str, Any]:
    url = server if isinstance(server, str) else server.url
    endpoint = {"base_url": url, "model": "m", "backoff_s": 0.001, "max_retries": 1, "max_concurrent": 4}
    return {"endpoint": endpoint | more.pop("endpoint", {}), **more}


def judged(server: ChatServer, given: Group | None = None, timeout_s: float = 20, **more: Any) -> list[RewardResult]:
    rewards = pickle.loads(pickle.dumps(rewards_of(spec("judge", args=args_for(server, **more), timeout_s=timeout_s))))
    return results(rewards, given)


def results(rewards: RewardSet, given: Group | None = None) -> list[RewardResult]:
    samples = rewards.score_group(given if given is not None else group(4)).samples
    return [s.reward_parts["judge"] for s in samples]
