"""Rows that teach nothing: what becomes of them, as data.unusable says.

Knows nothing about how rows are read.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlft.config.data import DataConfig
from rlft.errors import UserError


def left_out(places: Sequence[str], count: int, data: DataConfig, what: str, why: str = "teach nothing") -> str:
    """What to add to the description of `count` rows, of which those at `places` (`what` says which those are) are
    left out. Raises UserError where they may not be left out, or nothing is left."""
    if not places:
        return ""
    if data.unusable == "drop" and len(places) < count:
        return f"; {len(places)} dropped {what}"
    first = ", ".join(places[:3]) + (" ..." if len(places) > 3 else "")
    way = "Mend them." if len(places) == count else "Mend or delete them, or set data.unusable to drop."
    raise UserError(f"{len(places)} of {count} rows {what} {why}: {first}. {way}")
