"""A run of a benchmark in a process of its own, so that runs share no memory and no caches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def result_of(module: str, words: list[str], name: str) -> dict[str, Any]:
    """What `python -m MODULE WORDS` prints behind RESULT. Ends this process when it prints none; `name` says whose."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    results = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        sys.exit(f"{name}: no result\n{done.stdout}\n{done.stderr}")
    return json.loads(results[-1])
