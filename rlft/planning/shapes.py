"""The samples that a run is expected to learn from, when nothing is known but lengths. Knows nothing about models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlft.samples import Group, Prompt, Sample


def expected_groups(num_groups: int, num_samples: int, prompt: int, completion: int, source: str = "") -> list[Group]:
    """Groups of samples of these lengths, everything behind the prompt trained on."""
    shape = Prompt("plan", np.full(prompt, 5, dtype=np.int32), "", None, {}, source=source)
    ids = np.full(prompt + completion, 5, dtype=np.int32)
    mask = np.arange(prompt + completion) >= prompt
    sample = replace(Sample.given(ids, mask, ""), advantages=mask.astype(np.float32))
    return [Group(shape, tuple(replace(sample, seed=i) for i in range(num_samples))) for _ in range(num_groups)]
