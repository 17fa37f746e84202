"""Looking at rows in tests."""

from __future__ import annotations

from typing import Any

from rlft.config.data import DataConfig
from rlft.data.inspect import Inspection, inspect_rows
from rlft.data.inspect_rows import ModelLimits
from rlft.data.reading import rows_in_memory

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}


def inspect(rows: list[dict[str, Any]], tokenizer: Any = None, window: int = 99, **more: Any) -> Inspection:
    keys = {key: more.pop(key) for key in ("purpose", "num_examples", "uses") if key in more}
    model = ModelLimits(tokenizer, window, more.pop("max_new_tokens", 0)) if tokenizer else None
    return inspect_rows(rows_in_memory(rows), (), DataConfig.model_validate(more), model=model, **keys)


def texts(inspection: Inspection) -> list[tuple[str, bool]]:
    """The first part of the first example, without what is no token."""
    return [(segment.text, segment.learned) for segment in inspection.examples[0].parts[0].segments]
