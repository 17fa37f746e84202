"""What all tests share: nothing is downloaded, one thread per process, and one small model for everybody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(_name, _value)  # before torch and transformers are imported, which is inside fixtures


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the `digits` vocabulary (64 tokens), hidden size 32, 2 layers, 4 heads over 2 key/value heads.

    Its matrices are 8 times larger than a fresh model's, so that it is sure of some tokens and attends to some places:
    with fresh weights every distribution is nearly flat and a wrong mask hardly shows.
    """
    from tests.helpers import make_sharp_model

    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_sharp_model(
        folder, 8, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64, max_length=256
    )
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: Path):
    """The tokenizer of `tiny_folder`."""
    from rlft.data.tokenizer import load_tokenizer

    return load_tokenizer(str(tiny_folder))
