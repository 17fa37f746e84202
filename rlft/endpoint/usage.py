"""What requests came to: how many, what failed, tokens, cost. Knows nothing about where they went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MILLION = 1_000_000


@dataclass
class Usage:
    """Counts that can be added up and written as JSON."""

    requests: int = 0  # sent, retries included
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # requests that failed, by kind, also if a retry worked
    uncounted: int = 0  # replies that did not say how many tokens they took, which are in neither sum

    def add(self, other: Usage) -> None:
        """Add the counts of `other`."""
        self.requests += other.requests
        self.retries += other.retries
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.uncounted += other.uncounted
        self.failures += other.failures

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "requests": self.requests,
            "retries": self.retries,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "uncounted": self.uncounted,
            "failures": dict(sorted(self.failures.items())),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Usage:
        """Raises KeyError, TypeError or ValueError when it is none."""
        counts = {name: int(tree[name]) for name in ("requests", "retries", "prompt_tokens", "completion_tokens")}
        counts["uncounted"] = int(tree.get("uncounted", 0))  # of ledgers from before it was counted
        return cls(**counts, failures=Counter({str(kind): int(n) for kind, n in tree["failures"].items()}))


@dataclass(frozen=True)
class Prices:
    """Of a million tokens."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / MILLION
