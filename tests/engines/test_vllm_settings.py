"""From a configuration to vLLM's arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlft.engines.vllm import settings
from rlft.errors import UserError
from tests.helpers import make_config

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
pytest.importorskip("vllm", reason="vLLM is not installed (make vllm)")


def test_engine_arguments_that_are_wrong_are_refused(tiny_folder: Path) -> None:
    def refused(arguments: dict[str, Any]) -> Any:
        config = make_config(tiny_folder, {"generator.engine": "vllm", "generator.engine_args": arguments})
        return settings.engine_arguments(config, "cpu", 0)

    with pytest.raises(UserError, match=r"engine_args\.max_model_length: this vLLM has no .* near: max_model_len"):
        refused({"max_model_length": 5})
    with pytest.raises(UserError, match=r"engine_args\.seed: rlft sets it"):
        refused({"seed": 5})
    with pytest.raises(UserError, match=r"engine_args\.kv_cache_memory_bytes: without effect on CPUs"):
        refused({"kv_cache_memory_bytes": 2**30})
    assert refused({"max_model_len": 128})["max_model_len"] == 128


def test_a_model_that_gives_no_text_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text((tiny_folder / "config.json").read_text().replace("ForCausalLM", "ForSequenceClassification"))
    config = make_config(tmp_path, {"generator.engine": "vllm"})
    with pytest.raises(UserError, match="ForSequenceClassification, which says nothing"):
        settings.engine_arguments(config, "cpu", 0)
