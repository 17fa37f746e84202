"""Reading rows: every source, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from rlft.data.lenient import read_leniently
from rlft.data.reading import read_rows, rows_in_memory
from rlft.errors import UserError

ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+2=", "answer": "4"}, {"prompt": "é=", "answer": None}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(folder: Path, name: str) -> Path:
    """ROWS in the format that `name` stands for."""
    file = folder / name
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    elif name == "saved":
        import datasets

        datasets.Dataset.from_list(ROWS).save_to_disk(str(file))
    else:
        text = json.dumps(ROWS, indent=1) if name.startswith("list") else LINES
        file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return file


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "list.json", "list.json.gz", "a.parquet", "saved"])
def test_sources(tmp_path: Path, name: str) -> None:
    read = read_rows(str(write(tmp_path, name)))
    assert read.rows == ROWS
    assert read.places == [f"{name}:1", f"{name}:2", f"{name}:3"]
    assert read.columns() == ["prompt", "answer"]
    assert read_rows(str(tmp_path / name), max_rows=2).rows == ROWS[:2]


def test_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    import datasets

    folder = str(tmp_path / "splits")
    data: Any = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(data).save_to_disk(folder)
    assert len(read_rows(folder, split="test").rows) == 1
    with pytest.raises(UserError, match=r"no split 'dev'.*train, test.*data\.split"):
        read_rows(folder, split="dev")


def test_in_memory() -> None:
    import datasets

    assert rows_in_memory(ROWS).rows == rows_in_memory(datasets.Dataset.from_list(ROWS)).rows == ROWS
    assert rows_in_memory(ROWS, max_rows=2).places == ["dataset:1", "dataset:2"]
    for wrong in ([], "text", {"train": ROWS}, 3, [ROWS[0], "text"]):
        with pytest.raises(UserError, match="Expected"):
            rows_in_memory(cast(Any, wrong))


def test_separators_inside_of_texts(tmp_path: Path) -> None:
    """U+2028 and U+0085 end no line of JSON, whatever the file is called."""
    rows = [{"prompt": "a\u2028b\x85c"}, {"prompt": "d"}]
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        assert read_rows(str(tmp_path / name)).rows == rows


def test_blank_lines_count_as_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('\ufeff{"prompt": "a"}\n\n  \n{"prompt": "b"}')
    assert read_rows(str(file)).places == ["a.jsonl:1", "a.jsonl:4"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"p": 1}\n\n{"p": \n', ["a.jsonl, line 3", "not valid JSON", "mend or delete"]),
        ("a.jsonl", b'{"p": 1}\n[1, 2]\n', ["a.jsonl, line 2", "a list", "JSON object"]),
        ("a.jsonl", b"null\n", ["a.jsonl, line 1", "null"]),
        ("a.json", b'[{"p": 1}, 7]', ["a.json, row 2", "a number"]),
        ("a.json", b'[{"p": 1},\n {"p"}]', ["a.json, line 2", "not valid JSON"]),
        ("a.jsonl", b"\n \n", ["no rows"]),
        ("a.json", b"[]", ["no rows"]),
        ("a.jsonl", b'{"p": "\xff"}', ["UTF-8"]),
        ("a.jsonl.gz", b"not gzip", ["gzip"]),
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 100)[:-20], ["gzip"]),
        ("a.parquet", b"not parquet", ["Parquet"]),
        ("a.csv", b"p\n1\n", ["format", ".jsonl"]),
    ],
)
def test_malformed(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_rows(str(tmp_path / name))
    assert all(word in str(caught.value) for word in words), caught.value


def test_missing_file_names_near_ones(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    with pytest.raises(UserError, match=r"trian.jsonl does not exist. Did you mean .*train.jsonl\?"):
        read_rows(str(tmp_path / "trian.jsonl"))
    with pytest.raises(UserError, match="folder .*nowhere does not exist either"):
        read_rows(str(tmp_path / "nowhere" / "a.jsonl"))


def test_folder_that_is_no_data_set(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    with pytest.raises(UserError, match=r"not saved by `datasets`.*train\.jsonl"):
        read_rows(str(tmp_path))


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls: list[Any] = []

    def load(name: str, config: str | None, *, split: str) -> datasets.Dataset:
        calls.append((name, config, split))
        if name == "owner/missing":
            raise ConnectionError("offline")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows("openai/gsm8k:main", split="test", max_rows=2).rows == ROWS[:2]
    assert calls == [("openai/gsm8k", "main", "test")]
    with pytest.raises(UserError, match=r"(?s)owner/missing is neither.*ConnectionError: offline"):
        read_rows("owner/missing")


def test_reading_a_file_imports_no_datasets_and_no_torch(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl")
    code = (
        "import sys; from rlft.data.prompts import PromptSet; from rlft.data.reading import read_rows; "
        f"read_rows({str(file)!r}); print(sorted({{'datasets', 'torch', 'pandas'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_lines_end_with_a_line_feed(tmp_path: Path) -> None:
    """And not with a carriage return alone, which may stand inside of one; looking at data says so too."""
    lines = [json.dumps(row).replace(", ", ",\r") for row in ROWS]
    for name, end, usable in (("a.jsonl", "\r\n", True), ("b.jsonl", "\n", True), ("c.jsonl", "\r", False)):
        (tmp_path / name).write_bytes(end.join([*lines, ""]).encode())
        if usable:
            assert read_rows(str(tmp_path / name)).rows == ROWS == read_leniently(str(tmp_path / name))[0].rows
            continue
        with pytest.raises(UserError, match=r"line 1 is not valid JSON.*carriage returns \(CR\) inside"):
            read_rows(str(tmp_path / name))
        rows, (bad,) = read_leniently(str(tmp_path / name))
        assert not rows.rows and "carriage returns" in bad.text


def test_one_object_in_a_json_file(tmp_path: Path) -> None:
    """However it is laid out; where it holds the rows in a list, that is said."""
    from rlft.data.shapes import detect_shape

    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps({"data": ROWS}, indent=indent))
        for read in (read_rows(str(tmp_path / "a.json")), read_leniently(str(tmp_path / "a.json"))[0]):
            assert read.rows == [{"data": ROWS}] and read.places == ["a.json:1"]
            with pytest.raises(UserError, match="a list of objects in 'data': if those are the rows, save that list"):
                detect_shape(read, prompt_column=None, completion_column=None, need_completion=True)
