"""A judge asked by a reward worker that is an actor: groups are judged side by side."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chat_server import chat_server
from tests.running import GRPO, metrics_of, train_here, write_config

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_one_worker_has_several_groups_judged_at_once(task: Path, joined_ray: None) -> None:
    def answer(body: dict[str, Any]) -> str:
        time.sleep(0.5)
        found = re.search(r"<answer ([0-9a-f]{12})>", body["messages"][0]["content"])
        assert found is not None
        return json.dumps({"token": found[1], "reason": "", "score": len(body["messages"][0]["content"]) % 11})

    with chat_server(answer) as server:
        endpoint = {"base_url": server.url, "model": "m", "max_concurrent": 12}
        changes = {
            "rewards.functions": [{"function": "judge", "args": {"endpoint": endpoint}}],
            "loop.steps": 1, "loop.save_every": 0, "loop.prompts_per_step": 8, "cluster.mode": "local",
        }  # fmt: skip
        train_here(task, write_config(task, "judged", GRPO, changes))
    (line,) = metrics_of(task / "runs" / "judged")
    assert line["reward/judge/requests"] == len(server.requests) == 32 and line["samples/failed"] == 0
    assert 4 < server.most_at_once <= 12, "more than a group of 4, and no more than may be"
