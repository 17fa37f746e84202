"""A folder of goldens of other shapes, masks and parameters, from formulas written down once more on padded arrays.

Nothing here calls rlft: what the recorded goldens hold at one shape, this holds at any.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.golden.plain.folder import Folder
from tests.golden.plain.policies import Batch, policy_losses, policy_masks, single_actions
from tests.golden.plain.preferences import Pairs, labelled, preferences, without_reference
from tests.golden.plain.rewards import critics, rewards, vocabularies


def other_goldens(folder: Path, seed: int) -> Path:
    """Write a folder of every kind of case but ORPO's."""
    rng, made = np.random.default_rng(seed), Folder()
    torch.manual_seed(seed)
    rows, columns, pairs = (int(x) for x in rng.integers(2, 9, 3))
    batch, chosen_and_rejected = Batch(rng, rows, columns), Pairs(rng, pairs, columns)
    policy_losses(made, batch)
    policy_masks(made, batch)
    single_actions(made, batch)
    rewards(made, rng, groups=rows + 1, size=int(rng.integers(3, 7)))
    critics(made, rng, rows, columns)
    preferences(made, chosen_and_rejected)
    labelled(made, chosen_and_rejected, rng)
    without_reference(made, rng, pairs)
    vocabularies(made, rng, rows, columns)
    return made.write(folder)
