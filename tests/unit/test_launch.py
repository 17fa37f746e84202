"""The model that a run makes for itself."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from actors.launch import with_model
from rlft.config.load import load_config


def test_a_failed_starts_model_is_not_taken_for_another(tmp_path: Path) -> None:
    def width(hidden_size: int, anew: bool) -> int:
        tiny = {"vocabulary": "digits", "hidden_size": hidden_size, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
        config = load_config({"model": {"tiny": tiny}, "rewards": {"functions": [{"function": "exact_match"}]}})
        return AutoConfig.from_pretrained(with_model(config, tmp_path, anew).model.path).hidden_size

    assert width(16, anew=True) == 16
    assert width(32, anew=True) == 32  # a new run makes its own
    assert width(16, anew=False) == 32  # a resumed one keeps what is there
