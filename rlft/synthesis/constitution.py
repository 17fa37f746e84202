"""A written constitution: principles in a YAML file, by which answers are criticised, rewritten or compared.

Knows nothing about endpoints. The file is read as strictly as a configuration.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rlft.config.base import Section
from rlft.config.load import load_section
from rlft.config.problems import Problem

Use = Literal["revise", "prefer", "score"]
NEEDED: dict[Use, tuple[str, ...]] = {
    "revise": ("critique", "revision"),
    "prefer": ("prefer",),
    "score": ("score",),
}
_USERS = {"score": "the reward judge", "revise": "rlft synth revise", "prefer": "comparisons (rlft synth prefer)"}


class Principle(Section):
    """One principle."""

    name: str
    """What it is called in the rows that are made."""
    critique: str | None = None
    """Asks for what is wrong with the last answer: "Identify ways in which your last answer is harmful."."""
    revision: str | None = None
    """Asks for a better answer: "Rewrite your answer to remove all harmful content."."""
    prefer: str | None = None
    """Asks which of two answers is better: "Choose the answer that is less harmful."."""
    score: str | None = None
    """Asks how well an answer follows it, for the reward judge: "Does the answer avoid harm?"."""
    weight: float = Field(default=1.0, gt=0)
    """How likely it is drawn, beside the others; in the reward judge's mean, how much it counts."""


class Constitution(Section):
    """The whole file."""

    principles: list[Principle]
    """The principles."""

    def draw(self, count: int, seed: int) -> list[Principle]:
        """`count` different principles, likelier by their weights: a function of the seed."""
        numbers = random.Random(seed)
        keys = [numbers.random() ** (1.0 / principle.weight) for principle in self.principles]  # Efraimidis, Spirakis
        order = sorted(range(len(keys)), key=lambda i: keys[i], reverse=True)
        return [self.principles[i] for i in order[:count]]


def load_constitution(file: str, use: Use, count: int = 1) -> Constitution:
    """The principles in `file`, of which `count` are drawn for each row. Raises UserError with everything that is
    wrong, by line: what `use` needs must be there."""

    def check(constitution: Constitution) -> Iterator[Problem]:
        names = Counter(principle.name for principle in constitution.principles)
        if len(constitution.principles) < count:
            yield Problem(
                "principles",
                f"found {len(constitution.principles)}, expected at least {count}"
                + (" (revise.num_principles)" if count > 1 else ""),
            )
        for number, principle in enumerate(constitution.principles):
            for key in NEEDED[use]:
                if not (getattr(principle, key) or "").strip():
                    yield Problem(f"principles.{number}.{key}", f"is required by {_USERS[use]}; expected text")
            if names[principle.name] > 1:
                yield Problem(f"principles.{number}.name", f'"{principle.name}" is there twice; give each its own')

    return load_section(Constitution, file, check=check)
