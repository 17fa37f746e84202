"""Several reward models' scores put together, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rewards.ensemble import COMBINED, check_ensemble, each, normalised
from rlft.errors import UserError

SCORES = np.array([[1.0, 4.0], [3.0, 4.0]])  # two models, two completions


def test_how_scores_become_one():
    """Means 2 and 4, variances 1 and 0, least 1 and 4."""
    assert COMBINED["mean"](SCORES, 1.0).tolist() == [2, 4]
    assert COMBINED["min"](SCORES, 1.0).tolist() == [1, 4]
    assert COMBINED["conservative"](SCORES, 0.5).tolist() == [1.5, 4]


def test_each_model_loses_its_own_mean_and_spread():
    """(1 - 1) / 1, (4 - 1) / 1; (3 - 2) / 2, (4 - 2) / 2."""
    found = normalised(SCORES, each("mean", [1, 2], 2), each("std", [1.0, 2.0], 2))
    assert found.tolist() == [[0, 3], [0.5, 1]]
    assert each("mean", 3, 2).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"paths": []}, "path is empty"),
        ({"paths": ["a", "a"]}, "path is a, a; expected each model once"),
        ({"combine": "median"}, "combine is 'median'; expected mean, min, conservative"),
        ({"paths": ["a"], "combine": "min"}, "have no effect with one model"),
        ({"doubt": 1.0}, "with combine: conservative"),
        ({"combine": "conservative", "doubt": -1.0}, "doubt is -1.0; expected a number above 0"),
        ({"combine": "conservative", "doubt": "x"}, "doubt is 'x'; expected a number above 0"),
        ({"mean": 1.0}, "mean and std go together"),
        ({"mean": [1.0], "std": 1.0}, "mean is \\[1.0\\]; expected a number, or a list of 2"),
        ({"mean": 0.0, "std": [1.0, 0.0]}, "std is \\[1.0, 0.0\\]; expected a number above 0"),
        ({"mean": "x", "std": 1.0}, "mean is x; expected a number"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: dict[str, Any], words: str):
    settings: dict[str, Any] = {"paths": ["a", "b"], "combine": None, "doubt": None, "mean": None, "std": None}
    with pytest.raises(UserError, match=words):
        check_ensemble(**(settings | given))
