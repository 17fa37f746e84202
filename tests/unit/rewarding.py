"""Groups and reward functions for the tests of rewards."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from rewards.combine import RewardSet
from rlft.config.roles import RewardFunction, RewardsConfig
from rlft.samples import Group, Prompt, Sample


def group(num: int = 2, chat: bool = False, place: str = "a.jsonl:1", **columns: Any) -> Group:
    """A prompt "p" of 2 tokens, completions "c0", "c1" ... of tokens [10 + i, 2]; the last one is cut off."""
    messages = ({"role": "user", "content": "p"},) if chat else None
    prompt = Prompt(place, np.array([5, 6], dtype=np.int32), "p", messages, columns)
    samples = [
        Sample(
            token_ids=np.array([5, 6, 10 + i, 2], dtype=np.int32),
            loss_mask=np.array([False, False, True, True]),
            logprobs=np.zeros(4, dtype=np.float32),
            weight_versions=np.zeros(4, dtype=np.int32),
            finish_reason="length" if i == num - 1 else "stop",
            seed=i,
            text=f"c{i}",
        )
        for i in range(num)
    ]
    return Group(prompt, tuple(samples))


def spec(function: str, **values: Any) -> RewardFunction:
    return RewardFunction.model_validate({"function": function, **values})


def rewards_of(*functions: Any) -> RewardSet:
    """A set of specs and plain functions."""
    specs = [f for f in functions if isinstance(f, RewardFunction)]
    return RewardSet(RewardsConfig(functions=specs), [f for f in functions if not isinstance(f, RewardFunction)])


def in_file(folder: Path, code: str, name: str = "mine.py") -> str:
    (folder / name).write_text(textwrap.dedent(code))
    return str(folder / name)


def slow(folder: Path, seconds: float = 30, kind: str = "def") -> str:
    wait = "await asyncio.sleep" if kind == "async def" else "time.sleep"
    return in_file(
        folder, f"import asyncio, time\n{kind} slow(completions):\n    {wait}({seconds})\n    return [1.0]\n"
    )
