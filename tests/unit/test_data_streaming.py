"""Rows read when they are needed: the same batches as from memory."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlft.config.data import DataConfig
from rlft.config.load import load_config
from rlft.data import streaming
from rlft.data.pairs import load_pairs
from rlft.data.sources import all_examples, all_prompts
from rlft.data.streaming import Lazy, index_rows
from rlft.errors import UserError
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer

ROWS = [{"prompt": f"{i}é=", "answer": str(i * i), "n": None if i % 2 else [i]} for i in range(23)]


def write(folder: Path, name: str, rows: list[dict[str, Any]] = ROWS) -> str:
    """The rows in the format that `name` stands for; JSONL with blank lines and a byte order mark."""
    file = folder / name
    if name.endswith(".parquet"):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=5)
    elif name.endswith(".jsonl"):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        file.write_bytes(("\ufeff" + "\n\n".join(lines)).encode())
    else:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(file))
    return str(file)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "saved"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("max_rows", [None, 11])
def test_the_same_batches_as_from_memory(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shuffle: bool, max_rows: int | None
) -> None:
    monkeypatch.setattr(streaming, "CACHED_ITEMS", 3)
    monkeypatch.setattr(streaming, "CACHED_GROUPS", 2)
    path = write(tmp_path, name)
    both = [DataConfig(path=path, shuffle=shuffle, max_rows=max_rows, streaming=s) for s in (False, True)]
    held, streamed = (all_examples(data, tokenizer, window=99, seed=3) for data in both)
    for step in (0, 1, 2, 7, 3):
        for one, other in zip(held.batch(step, 8), streamed.batch(step, 8), strict=True):
            assert one.prompt.id == other.prompt.id and one.prompt.columns == other.prompt.columns
            assert np.array_equal(one.samples[0].token_ids, other.samples[0].token_ids)
            assert np.array_equal(one.samples[0].loss_mask, other.samples[0].loss_mask)
    assert len(streamed) == len(held) and streamed.description == held.description + "; streamed"
    held, streamed = (all_prompts(data, tokenizer, window=99, max_new_tokens=9, seed=3) for data in both)
    for first in (0, 40):
        pairs = zip(held.take(first, 9), streamed.take(first, 9), strict=True)
        assert all(a.id == b.id and np.array_equal(a.token_ids, b.token_ids) for a, b in pairs)


def test_a_streamed_mixture_is_the_mixture(tokenizer: Any, tmp_path: Path) -> None:
    sources: Any = [{"path": write(tmp_path, "a.jsonl")}, {"path": write(tmp_path, "b.parquet", ROWS[:7]), "weight": 2}]
    both = [
        all_examples(DataConfig.model_validate({"mixture": sources, "streaming": s}), tokenizer, window=99, seed=0)
        for s in (False, True)
    ]
    for step in range(5):
        held, streamed = ([(g.prompt.source, g.prompt.id) for g in mixture.batch(step, 6)] for mixture in both)
        assert held == streamed


def test_rows_that_are_too_long(tokenizer: Any, tmp_path: Path) -> None:
    # prompts of 1, 9, 9 and 1 tokens, a completion of 1 and its end: 3, 11, 11 and 3 tokens
    rows = [{"prompt": letter * size, "answer": "x"} for letter, size in (("a", 1), ("b", 9), ("c", 9), ("d", 1))]
    path = write(tmp_path, "a.jsonl", rows)

    def taken(too_long: str, count: int = 4) -> list[str]:
        data = DataConfig.model_validate({"path": path, "streaming": True, "shuffle": False, "too_long": too_long})
        examples = all_examples(data, tokenizer, window=10, seed=0)
        return [g.prompt.text for g in examples.take(0, count)]

    assert taken("drop") == ["a", "d", "d", "d"]  # the next row that fits stands in
    assert taken("error", 1) == ["a"]
    message = r"a\.jsonl:3 is too long: 11 tokens, and there is room for 10 .*set data\.too_long to drop or truncate"
    with pytest.raises(UserError, match=message):
        taken("error")
    assert taken("truncate") == ["a", "b" * 9, "c" * 9, "d"]
    data = DataConfig(path=path, streaming=True, shuffle=False, too_long="drop")
    prompts = all_prompts(data, tokenizer, window=10, max_new_tokens=5, seed=0)
    assert [prompt.text for prompt in prompts.take(0, 4)] == ["a", "d", "d", "d"]
    assert prompts.description.endswith("; streamed; what is too long is skipped when it is met")
    with pytest.raises(UserError, match=r"row 1 and the 3 behind it are too long"):
        all_prompts(data, tokenizer, window=10, max_new_tokens=10, seed=0).take(0, 1)


def test_only_what_is_asked_for_is_made() -> None:
    index = Numbers(10_000)
    made = list[int]()

    def make(read: Any) -> int:
        made.append(read.rows[0]["n"])
        return made[-1]

    lazy = Lazy(index, make)
    assert [lazy[5], lazy[5], lazy[-1], *lazy[2:4]] == [5, 5, 9999, 2, 3] and made == [5, 9999, 2, 3]
    with pytest.raises(IndexError):
        lazy[10_000]
    assert len(list(lazy)) == 10_000 and len(lazy._made) == streaming.CACHED_ITEMS


class Numbers:
    source = "numbers"

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def row(self, i: int) -> tuple[dict[str, Any], str]:
        return {"n": i}, f"numbers:{i + 1}"


def test_a_bad_row_is_named_when_it_is_met(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "FIRST_ROWS", 1)
    file = tmp_path / "a.jsonl"
    good = '{"prompt": "a", "answer": "b"}'
    file.write_bytes(f'{good}\n\n{{"prompt"\n{{"prompt": "a", "answer": ""}}\n'.encode() + b'{"prompt": "\xff"}\n')
    examples = all_examples(DataConfig(path=str(file), streaming=True, shuffle=False), tokenizer, window=9, seed=0)
    assert examples.take(0, 1)[0].prompt.text == "a"
    for place, message in ((1, "line 3 is not valid JSON"), (2, "a.jsonl:4: the completion .* is empty"), (3, "UTF-8")):
        with pytest.raises(UserError, match=message):
            examples.take(place, 1)


def test_what_cannot_be_streamed(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"prompt": "a"}]')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n'))
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.parquet").write_text("no")
    for name, message in (
        ("a.json", r"single rows of .*a\.json cannot be read.*Expected \.jsonl or \.parquet"),
        ("a.jsonl.gz", r"not packed with gzip"), ("empty.jsonl", "has no rows"),
        ("bad.parquet", "not a readable Parquet"), ("none.jsonl", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            index_rows(str(tmp_path / name), split="train", max_rows=None)
    path = write(tmp_path, "text.jsonl", [{"text": "abc"}])
    with pytest.raises(UserError, match=r"data\.streaming: .*whole documents"):
        all_examples(DataConfig(path=path, streaming=True), tokenizer, window=9, seed=0)
    with pytest.raises(UserError, match=r"data\.streaming: pairs and labelled completions are read as a whole"):
        all_examples(DataConfig(path=path, streaming=True), tokenizer, window=9, seed=0, load=load_pairs)
    config = {"model": {"tiny": {}}, "algorithm": {"type": "sft"}, "data": {"streaming": True}}
    with pytest.raises(UserError, match=r"data\.streaming: has no effect, because dataset= was passed"):
        load_config(config, has_dataset=True)
