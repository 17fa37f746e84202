"""Verdicts that were given before, by what was asked: in memory, or in a file that several processes may share.

Knows nothing about judges. The file is an SQLite database on a disk of this machine.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from typing import Any

from rlft.errors import UserError

MAX_IN_MEMORY = 200_000  # verdicts; at about half a kilobyte each far below what a worker has
WAIT_S = 30.0  # for another process that writes


class Cache:
    """For several threads at once."""

    def __init__(self, file: str | None) -> None:
        """`file`: None for memory. Raises UserError for a file that is no such database or cannot be written."""
        self._file, self._lock = file, threading.Lock()
        self._made = 0
        try:
            self._db = sqlite3.connect(file or ":memory:", timeout=WAIT_S, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS verdicts (asked TEXT PRIMARY KEY, verdict TEXT NOT NULL)")
            self._db.commit()
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def get(self, asked: str) -> dict[str, Any] | None:
        """The verdict, if there is one."""
        rows = self._run("SELECT verdict FROM verdicts WHERE asked = ?", asked)
        return json.loads(rows[0][0]) if rows else None

    def put(self, asked: str, verdict: dict[str, Any]) -> None:
        """Keep a verdict."""
        self._run("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", asked, json.dumps(verdict))
        self._made += 1
        if self._file is None and self._made > MAX_IN_MEMORY:
            self._run("DELETE FROM verdicts WHERE rowid IN (SELECT rowid FROM verdicts ORDER BY rowid LIMIT 1)")

    def _run(self, statement: str, *values: str) -> list[Any]:
        try:
            with self._lock, self._db:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _unusable(self, error: sqlite3.Error) -> UserError:
        return UserError(
            f"rewards: judge's cache {self._file or 'in memory'} cannot be used: {error}. Expected the name of a file "
            "that judge made, or of a new one in a folder that is there; delete it or give another."
        )
