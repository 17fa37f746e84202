"""model.quantization: what it goes with."""

from __future__ import annotations

from typing import Any

import pytest

from rlft.config.adapters import KINDS
from rlft.config.derived import mismatch_warn
from rlft.config.load import load_config
from rlft.errors import UserError

BASE = {"model": {"tiny": {}}, "rewards": {"functions": [{"function": "exact_match"}]}}


def load(changes: dict[str, Any]) -> Any:
    return load_config(BASE, changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, r"model\.quantization: nf4 weights cannot be trained, and model\.adapter is empty"),
        ({"model.quantization.type": "int8"}, r"model\.quantization: int8 weights cannot be trained"),
        (
            {"model.adapter.type": "pissa"},
            r"model\.quantization: nf4, but pissa needs a base that is not quantized; expected .*lora, dora,",
        ),
        (
            {"model.adapter.type": "lora", "model.quantization": {"type": "int8", "double": False}},
            r"model\.quantization\.double: has no effect, because model\.quantization\.type is int8",
        ),
        ({"model.adapter.type": "dora", "learner.zero_stage": 3}, r"learner\.zero_stage: 3 splits .*dora"),
        ({"model.quantization.type": "nf3"}, r'model\.quantization\.type: found "nf3" .*expected one of nf4, int8'),
    ],
)
def test_what_it_does_not_go_with(changes, said):
    with pytest.raises(UserError, match=said):
        load({"model.quantization.type": "nf4", **changes})


def test_what_it_goes_with():
    for kind in (name for name, able in KINDS.items() if able.quantized):
        for base in ("nf4", "int8"):
            config = load({"model.quantization.type": base, "model.adapter.type": kind, "loop.steps": 100})
            assert config.model.quantization.double
            assert mismatch_warn(config) == 1e-4, "generators hold the same weights"
    assert (
        load({"model.adapter.type": "lora", "model.quantization": {"double": False}}).model.quantization.type == "nf4"
    )
    assert load({"model.adapter": {}, "model.quantization": {}, "learner.zero_stage": 3}).learner.zero_stage == 3
