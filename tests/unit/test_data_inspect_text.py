"""How what was found is shown, and what is read of a file with bad lines."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import pytest

from rlft.data.inspect import inspect_rows
from rlft.data.inspect_text import print_inspection
from rlft.data.lenient import BadLine, read_leniently
from rlft.errors import UserError
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer
from tests.unit.inspecting import inspect


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_what_is_printed(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "1+1=", "answer": "2"}, *({"prompt": str(i), "answer": ""} for i in range(5))]
    found = inspect(rows, tokenizer)
    stream = io.StringIO()
    print_inspection(found, stream)
    printed = stream.getvalue()
    for line in (
        "dataset: 6 rows", "  prompt  text  0.0%  prompt", "  | 1+1=[[2<|im_end|>]]",
        "Prompt, tokens: min 4, median 4, p95 4, max 4", f"  4  1  {'#' * 40}",
        "5 rows, empty completion, would stop a run:", "  ... and 2 more",
        "Not usable as it is: 5 problems would stop a run.",
    ):  # fmt: skip
        assert line in printed.splitlines(), (line, printed)
    assert "\x1b" not in printed
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    print_inspection(found, terminal)
    assert "\x1b[32m2\x1b[0m\x1b[1;32m<|im_end|>\x1b[0m" in terminal.getvalue(), terminal.getvalue()
    assert "[[" not in terminal.getvalue()


def test_data_do_not_steer_the_terminal() -> None:
    stream = io.StringIO()
    print_inspection(inspect([{"prompt": "a\x1b[2Jb\u2028é\tc", "answer": "\x07"}, {"prompt": "\ud800"}]), stream)
    assert "  | a\\x1b[2Jb\\u2028é\\tc[[\\x07]]" in stream.getvalue().splitlines()
    found = inspect([{"prompt": "a\ud800", "answer": "b"}])
    assert found.problems[0].reason == "not text" and "half of a surrogate pair" in found.problems[0].text
    print_inspection(found, stream)


def test_bad_lines_do_not_stop_reading(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"prompt": "a"}\n\nno\n[1]\n{"prompt": "\xff"}\n{"prompt": "b"}\n'
    for name, data in (("a.jsonl", content), ("b.jsonl.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        read, bad = read_leniently(str(tmp_path / name))
        assert read.places == [f"{name}:1", f"{name}:6"] and [line.place for line in bad] == [
            f"{name}:3", f"{name}:4", f"{name}:5",
        ]  # fmt: skip
        assert bad[0].text.startswith("is not valid JSON: Expecting value at column 1. Found: no. Expected one JSON")
        assert "is a list" in bad[1].text and "is not UTF-8" in bad[2].text
    assert not inspect_rows(*read_leniently(str(tmp_path / "a.jsonl"))).usable
    (tmp_path / "c.json").write_text('[{"prompt": "a"}, 7]')
    read, bad = read_leniently(str(tmp_path / "c.json"))
    assert bad == [BadLine("c.json:2", "is '7'. Expected a JSON object with named columns.")]
    (tmp_path / "d.json").write_text('[{"prompt"}]')
    (tmp_path / "e.jsonl.gz").write_text("no gzip")
    for name, words in (("d.json", "not valid JSON"), ("e.jsonl.gz", "cannot be read"), ("f.jsonl", "does not exist")):
        with pytest.raises(UserError, match=words):
            read_leniently(str(tmp_path / name))


def test_nothing_but_bad_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("no\n")
    found = inspect_rows(*read_leniently(str(tmp_path / "a.jsonl")))
    assert [problem.reason for problem in found.problems] == ["not a row", "not understood"]
