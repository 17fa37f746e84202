"""rollouts/step-000012.parquet: every sample of a step with its reward, for people and for later analysis.

Knows nothing about training: it writes down what the samples say. Columns beside the fixed ones: reward/<name>,
status/<name> and detail/<name> for every reward function.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlft.errors import UserError
from rlft.runs.files import atomic_write, free_numbered
from rlft.samples import Group, Sample

_NEEDED = (
    "prompt_id",
    "sample",
    "prompt",
    "completion",
    "reward",
    "finish_reason",
    "token_ids",
    "loss_mask",
    "columns",
)


def rollouts_path(folder: Path, step: int) -> Path:
    """Where the samples of a step are."""
    return Path(folder) / f"step-{step:06d}.parquet"


def write_rollouts(folder: Path, step: int, groups: Sequence[Group]) -> Path:
    """Write the samples of one step into `folder` (the run's rollouts folder), one row a sample in the groups' order.
    `completion` leaves special tokens out; `advantages` are there where a sample's tokens have different ones;
    `token_ids`, `loss_mask` and `sampler_logprobs` cover everything behind the prompt. What an environment said is in
    all of them, with loss_mask false. `columns`, `messages` (of a chat prompt) and `turns` (with an environment) are
    JSON."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    text, real, whole = pa.string(), pa.float64(), pa.int64()
    types = {
        "step": whole,
        "prompt_id": text,
        "source": text,
        "sample": whole,
        "prompt": text,
        "completion": text,
        "reward": real,
        "advantage": real,
        "advantages": pa.list_(pa.float32()),
        "weight_version_min": whole,
        "weight_version_max": whole,
        "num_tokens": whole,
        "num_turns": whole,
        "finish_reason": text,
        "seed": whole,
        "token_ids": pa.list_(pa.int32()),
        "loss_mask": pa.list_(pa.bool_()),
        "sampler_logprobs": pa.list_(pa.float32()),
        "columns": text,
        "messages": text,
        "turns": text,
    }
    for name in sorted({name for group in groups for sample in group.samples for name in sample.reward_parts}):
        types |= {f"reward/{name}": real, f"counted/{name}": real, f"status/{name}": text, f"detail/{name}": text}
    rows = [_row(step, group, j, sample) for group in groups for j, sample in enumerate(group.samples)]
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))
    path = rollouts_path(folder, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: parquet.write_table(table, temporary, compression="zstd"))
    return path


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """The rows of a rollouts file, `columns` as a dict again."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; rollouts are in a run folder, rollouts/step-000001.parquet.")
    try:
        rows = parquet.ParquetFile(path).read().to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: expected a Parquet file of rollouts, cannot read it ({error}).") from error
    missing = [name for name in _NEEDED if rows and name not in rows[0]]
    if missing:
        raise UserError(f"{path}: expected a file of rollouts, which has a column {missing[0]!r}; this one has none.")
    for row in rows:
        row["columns"] = json.loads(row["columns"])
    return rows


def stored_steps(folder: Path) -> dict[int, Path]:
    """The rollouts that are there, by their step; without those that a resumed run has moved aside."""
    files = sorted(path for path in Path(folder).glob("step-*.parquet") if path.stem.removeprefix("step-").isdigit())
    return {int(path.stem.removeprefix("step-")): path for path in files}


def set_aside_rollouts(folder: Path, from_step: int) -> list[Path]:
    """Before a resumed run makes step `from_step` and later ones again: move their files to
    step-000012.before-resume-<n>.parquet. Returns the new paths."""
    return [
        path.rename(free_numbered(path, "before-resume"))
        for step, path in stored_steps(folder).items()
        if step >= from_step
    ]


def _row(step: int, group: Group, index: int, sample: Sample) -> dict[str, Any]:
    start = len(group.prompt.token_ids)
    versions = sample.weight_versions[sample.weight_versions >= 0]
    row: dict[str, Any] = {
        "step": step,
        "prompt_id": group.prompt.id,
        "source": group.prompt.source,
        "sample": index,
        "prompt": _text(group.prompt.text),
        "completion": _text(sample.text),
        "reward": sample.reward,
        **_advantages(sample),
        "weight_version_min": int(versions.min()) if len(versions) else None,
        "weight_version_max": int(versions.max()) if len(versions) else None,
        "num_tokens": len(sample.token_ids) - start,
        "num_turns": sample.num_turns,
        "finish_reason": sample.finish_reason,
        "seed": sample.seed,
        "token_ids": sample.token_ids[start:].tolist(),
        "loss_mask": sample.loss_mask[start:].tolist(),
        "sampler_logprobs": sample.logprobs[start:].tolist(),
        "columns": json.dumps(dict(group.prompt.columns), default=_for_json),
        "messages": json.dumps(group.prompt.messages) if group.prompt.messages is not None else None,
        "turns": json.dumps(sample.turns, default=_for_json) if sample.turns else None,
    }
    for name, part in sample.reward_parts.items():
        row |= {
            f"reward/{name}": part.value,
            f"counted/{name}": part.counted,
            f"status/{name}": part.status,
            f"detail/{name}": _text(part.detail) or None,
        }
    return row


def _advantages(sample: Sample) -> dict[str, Any]:
    """The advantage at the first trained token, and where they differ, as with a critic, all of them."""
    if sample.advantages is None or not sample.loss_mask.any():
        return {"advantage": None, "advantages": None}
    trained = sample.advantages[sample.loss_mask]
    return {"advantage": float(trained[0]), "advantages": None if (trained == trained[0]).all() else trained.tolist()}


def _text(text: str) -> str:
    """`text` with halves of surrogate pairs, which Parquet cannot hold, as question marks."""
    return text.encode("utf-8", "replace").decode()


def _for_json(value: Any) -> Any:
    """numpy's arrays and numbers as lists and numbers, anything else (dates, say) as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
