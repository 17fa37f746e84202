"""What vLLM's processes print goes to this process's error stream. Where that is a file, as in a Ray actor, people do
not see it: this finds the error that vLLM itself refers to as "above". Knows nothing about vLLM but how it prints
errors."""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOST = 1 << 20  # bytes that are looked at: a traceback has some thousands
_ERROR = re.compile(r"\b((?:\w+\.)*\w*(?:Error|Exception|Interrupt)): (.+)")
_REFERRING = ("Engine core initialization failed", "EngineCore encountered an issue")  # to what stands before


class OwnLog:
    """Remembers how long the file was."""

    def __init__(self) -> None:
        target = Path(os.path.realpath("/proc/self/fd/2"))
        self._file = target if target.is_file() else None
        self._start = target.stat().st_size if self._file else 0

    def last_error(self) -> str:
        """A sentence with the last error in the file and where the file is; empty when there is no file."""
        if self._file is None:
            return ""
        with open(self._file, "rb") as opened:
            opened.seek(max(self._start, self._file.stat().st_size - _MOST))
            text = opened.read().decode("utf-8", "replace")
        found = [m for m in _ERROR.finditer(text) if not m.group(2).startswith(_REFERRING)]
        said = f"its own last error was {found[-1].group(1)}: {found[-1].group(2).strip()}; " if found else ""
        return f" ({said}its output is in {self._file})"
