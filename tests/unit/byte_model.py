"""A model folder whose tokenizer knows the 256 bytes and the marks of a chat, for tests of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlft.config.model import TinyModel
from rlft.data.tokenizer import load_tokenizer
from rlft.models.tiny import EOS_ID, FIRST_BYTE_ID, make_tiny_model

EOS = EOS_ID
SMALL = TinyModel(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    make_tiny_model(SMALL, path, seed=0)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def encoded(text: str) -> list[int]:
    return [FIRST_BYTE_ID + byte for byte in text.encode()]
