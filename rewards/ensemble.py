"""Several models' scores of the same completions, made comparable and put together. Functions of arrays.

M: models, N: completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlft.errors import UserError


def normalised(scores_MN: np.ndarray, mean_M: np.ndarray, std_M: np.ndarray) -> np.ndarray:
    """Each model's scores with its own mean and spread taken out, [M, N]."""
    return (scores_MN - mean_M[:, None]) / std_M[:, None]


def _conservative(scores_MN: np.ndarray, doubt: float) -> np.ndarray:
    """The mean less `doubt` times the variance between models (uncertainty-weighted optimization, Coste et al. 2023,
    arXiv:2310.02743): what models disagree on is not worth chasing."""
    return scores_MN.mean(0) - doubt * scores_MN.var(0)


COMBINED: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "mean": lambda scores_MN, doubt: scores_MN.mean(0),
    "min": lambda scores_MN, doubt: scores_MN.min(0),  # worst case, same paper
    "conservative": _conservative,
}
"""How the scores [M, N] of an ensemble become one, [N]."""


def check_ensemble(paths: Sequence[str], combine: str | None, doubt: float | None, mean: object, std: object) -> None:
    """Raise UserError for what does not fit together, before a run starts."""
    problem = None
    if not paths or len(set(paths)) < len(paths):
        problem = f"path is {', '.join(paths) or 'empty'}; expected each model once"
    elif combine is not None and combine not in COMBINED:
        problem = f"combine is {combine!r}; expected {', '.join(COMBINED)}"
    elif len(paths) == 1 and (combine is not None or doubt is not None):
        problem = "combine and doubt have no effect with one model; take them out, or give path a list"
    elif doubt is not None and (combine != "conservative" or not isinstance(doubt, int | float) or not doubt > 0):
        problem = f"doubt is {doubt!r}; expected a number above 0, with combine: conservative"
    elif (mean is None) != (std is None):
        problem = "mean and std go together: both, or none"
    if problem is not None:
        raise UserError(f"rewards: reward_model's {problem}")
    for name, value in (("mean", mean), ("std", std)):
        if value is not None:
            each(name, value, len(paths))


def each(name: str, value: object, num: int) -> np.ndarray:
    """float64 [num]: a number for every model, from one or from a list. Raises UserError for anything else."""
    values: list[Any] = list(value) if isinstance(value, list | tuple) else [value] * num
    fine = len(values) == num and all(isinstance(v, int | float) and np.isfinite(v) for v in values)
    if not fine or (name == "std" and not all(v > 0 for v in values)):
        least = " above 0" if name == "std" else ""
        raise UserError(f"rewards: reward_model's {name} is {value}; expected a number{least}, or a list of {num}")
    return np.array(values, dtype=np.float64)
