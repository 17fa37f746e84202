"""The ledger: killed anywhere it goes on, and it mixes nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from rlft.endpoint.usage import Usage
from rlft.errors import RunError, UserError
from rlft.synthesis.ledger import Ledger
from rlft.synthesis.rows import Outcome, SourceRow

SETTINGS = {"command": "distill", "endpoint.model": "m", "endpoint.temperature": 1.0}


def source(count: int = 4) -> list[SourceRow]:
    return [
        SourceRow(f"x.jsonl:{i}", f"fp{i}", f"p{i}", [{"role": "user", "content": f"p{i}"}], {}) for i in range(count)
    ]


def made(*completions: str, prompt: str = "p") -> Outcome:
    return Outcome(tuple({"prompt": prompt, "completion": text} for text in completions))


def spent(requests: int = 1, **failures: int) -> Usage:
    return Usage(requests, sum(failures.values()), 10 * requests, 5 * requests, Counter(failures))


def written(out: Path) -> list[str]:
    return [json.loads(line)["completion"] for line in out.read_text().split("\n")[:-1]]


def test_rows_come_in_the_order_of_the_source(tmp_path):
    out, rows = tmp_path / "new" / "out.jsonl", source()
    ledger = Ledger(out, SETTINGS, rows)
    ledger.add(rows[2], made("c", "ü\u2028"), spent(2, timeout=1))
    ledger.add(rows[0], made("a"), spent())
    ledger.add(rows[1], Outcome(left_out={"rejected": 2}), spent(2))
    ledger.add(rows[3], Outcome(failed="timeout", detail="slow"), spent(3, timeout=3))
    assert ledger.export() == (3, 0)
    assert written(out) == ["a", "c", "ü\u2028"]
    assert ledger.counts() == (3, 3, {"rejected": 2}, {"timeout": 1})
    assert ledger.example_failure() == "x.jsonl:3: timeout: slow"
    assert ledger.usage == Usage(8, 4, 80, 40, Counter(timeout=4))
    ledger.close()


def test_it_goes_on_and_a_failed_row_is_done_again(tmp_path):
    out, rows = tmp_path / "out.jsonl", source()
    ledger = Ledger(out, SETTINGS, rows)
    ledger.add(rows[1], Outcome(failed="5xx", detail="oops"), spent())
    ledger.add(rows[0], made("a"), spent())
    ledger.add_usage(spent(5))
    ledger.close()
    again = Ledger(out, dict(reversed(SETTINGS.items())), rows)
    assert [again.is_done(row) for row in rows] == [True, False, False, False]
    assert (again.num_resumed, again.usage.requests) == (1, 7)
    again.add(rows[1], made("b"), spent())
    assert again.counts() == (2, 2, {}, {})
    again.export()
    assert written(out) == ["a", "b"]
    again.close()


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_half_a_last_line_is_cut_off(tmp_path, cut):
    out, rows = tmp_path / "out.jsonl", source()
    ledger = Ledger(out, SETTINGS, rows)
    ledger.add(rows[0], made("a"), spent())
    ledger.add(rows[1], made("b"), spent())
    ledger.close()
    os.truncate(ledger.path, ledger.path.stat().st_size - cut)
    again = Ledger(out, SETTINGS, rows)
    assert [again.is_done(row) for row in rows[:2]] == [True, False]
    again.add(rows[1], made("b"), spent())
    again.export()
    again.close()
    assert written(out) == ["a", "b"]
    assert all(json.loads(line) for line in again.path.read_text().splitlines())


def test_half_a_first_line_begins_anew(tmp_path):
    out, rows = tmp_path / "out.jsonl", source()
    Ledger(out, SETTINGS, rows).close()
    path = tmp_path / "out.jsonl.ledger.jsonl"
    os.truncate(path, 10)
    Ledger(out, SETTINGS, rows).close()
    assert json.loads(path.read_text()) == {"settings": SETTINGS}


def test_other_settings_are_refused(tmp_path):
    out, rows = tmp_path / "out.jsonl", source()
    Ledger(out, SETTINGS, rows).close()
    with pytest.raises(UserError) as refused:
        Ledger(out, SETTINGS | {"endpoint.temperature": 0.5, "new": None, "more": 1}, rows)
    message = str(refused.value)
    assert "endpoint.temperature: was 1.0, now 0.5; more: was null, now 1. Give another --out" in message
    assert str(out) in message and "remove" in message
    Ledger(out, SETTINGS, rows).close()  # the refusal holds no lock


def test_other_data_is_refused_and_more_is_not(tmp_path):
    out, rows = tmp_path / "out.jsonl", source()
    ledger = Ledger(out, SETTINGS, rows)
    ledger.add(rows[3], made("d"), spent())
    ledger.close()
    with pytest.raises(UserError, match="row x.jsonl:3 is not in the data any more"):
        Ledger(out, SETTINGS, rows[:3])
    changed = [*rows[:3], SourceRow("x.jsonl:3", "other", "p", [], {})]
    with pytest.raises(UserError, match="row x.jsonl:3 has changed since"):
        Ledger(out, SETTINGS, changed)
    Ledger(out, SETTINGS, source(9)).close()


def test_a_damaged_line_is_named(tmp_path):
    out, rows = tmp_path / "out.jsonl", source()
    ledger = Ledger(out, SETTINGS, rows)
    ledger.add(rows[0], made("a"), spent())
    ledger.close()
    lines = ledger.path.read_text().splitlines()
    ledger.path.write_text("\n".join([lines[0], lines[1][:20], lines[1], ""]))
    with pytest.raises(UserError, match=r"out.jsonl.ledger.jsonl, line 2 is damaged"):
        Ledger(out, SETTINGS, rows)


def test_a_file_that_is_not_ours_is_left_alone(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    with pytest.raises(UserError, match="was not made by rlft"):
        Ledger(out, SETTINGS, source())
    assert out.read_text() == "precious\n"


def test_duplicates_are_written_once(tmp_path):
    out, rows = tmp_path / "out.jsonl", source()
    ledger = Ledger(out, SETTINGS, rows)
    ledger.add(rows[0], made("a", "b"), spent())
    ledger.add(rows[1], made("b"), spent())
    ledger.add(rows[2], made("b", prompt="other"), spent())
    assert ledger.export() == (3, 1)
    assert ledger.export() == (3, 1), "as often as one likes"
    assert written(out) == ["a", "b", "b"]
    ledger.close()


def test_two_processes_cannot_write_one_output(tmp_path):
    out = tmp_path / "out.jsonl"
    code = (
        "import sys, time; from pathlib import Path; from rlft.synthesis.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]), {}, []); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another live process is writing it"):
        Ledger(out, {}, [])
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    Ledger(out, {}, []).close()


def test_a_full_disk_leaves_whole_lines(tmp_path):
    out, rows = tmp_path / "out.jsonl", source()
    ledger = Ledger(out, SETTINGS, rows)
    ledger.add(rows[0], made("a"), spent())
    size, limits = ledger.path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(RunError, match="Make room; the same command goes on"):
            ledger.add(rows[1], made("b" * 100), spent())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert ledger.path.stat().st_size == size
    ledger.close()
    again = Ledger(out, SETTINGS, rows)
    assert [again.is_done(row) for row in rows[:2]] == [True, False]
    again.close()
