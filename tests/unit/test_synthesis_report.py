"""What people are told of a job."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import pytest

from rlft.endpoint.usage import Usage
from rlft.synthesis import report
from rlft.synthesis.ledger import Counts
from rlft.synthesis.report import Progress, Summary

DONE = Summary(
    command="revise", out="made.jsonl", complete=True, source_rows=2, resumed_rows=0, rows_made=2, left_out={},
    failed_rows={}, requests=2, retries=0, failed_requests={}, prompt_tokens=10, completion_tokens=5,
    replies_without_usage=0, cost=0.5, seconds=1.0,
)  # fmt: skip


def test_a_cost_that_is_not_whole_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "  cost       0.5\n" in DONE.text() + "\n" and "incomplete" not in DONE.text()
    some = "incomplete: 3 replies did not say how many tokens they took (usage)"
    lines = replace(DONE, replies_without_usage=3).text().splitlines()
    assert f"  cost       0.5; {some}" in lines and f"  tokens     10 prompt, 5 completion; {some}" in lines
    monkeypatch.setattr(report, "LINE_EVERY_S", 0.0)
    stream = io.StringIO()
    Progress(2, 0, stream).show(Counts(1, 1, Counter(), Counter()), Usage(requests=1, uncounted=1), 0.5)
    assert "cost=0.5 without_usage=1" in stream.getvalue()
