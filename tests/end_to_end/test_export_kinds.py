"""`rlft export` of reward models and of tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from actors.export import export, find_saved
from rlft.models.attention import PackedLayout
from rlft.models.reward import load_trained_reward_model
from rlft.models.tasks import load_task_model
from tests.end_to_end.test_export import IDS, trained
from tests.end_to_end.test_tasks import APART, TASKS
from tests.end_to_end.test_tasks import tasks as tasks  # the fixture
from tests.running import DPO, changed

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's own calls into torch


REWARDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"model.adapter": {"rank": 4}},
    "pissa": {"model.adapter": {"type": "pissa", "rank": 4}},
    "dora-nf4": {"model.adapter": {"type": "dora", "rank": 4}, "model.quantization": {"type": "nf4"}},
    "vera-int8": {"model.adapter": {"type": "vera", "rank": 8}, "model.quantization": {"type": "int8"}},
    "lora-bfloat16": {"model.adapter": {"rank": 4}, "model.dtype": "bfloat16"},
    "pissa-bfloat16": {"model.adapter": {"type": "pissa", "rank": 4}, "model.dtype": "bfloat16"},
}


@pytest.mark.parametrize("name", list(REWARDS))
def test_reward_models(task: Path, tmp_path: Path, name: str, told: list[str]) -> None:
    """Expected is what the reward function reward_model says, in float32."""
    changes = REWARDS[name]
    base = str(find_saved(trained(task, "full")).config.model.path)  # of float32, whatever the run computes in
    fixed = {"algorithm.type": "reward", "evaluation": {}, "model.path": base, "model.tiny": None}
    run = trained(task, f"reward-{name}", {**DPO, "model": {}}, **(fixed | changes))
    told.clear()
    asked = load_trained_reward_model(str(find_saved(run).checkpoint), "float32")
    layout = PackedLayout([IDS.shape[1]])
    with torch.no_grad():
        expected = asked.model.score(asked.hidden(IDS[0], layout.position_ids(), layout)[-1:])  # pyright: ignore[reportCallIssue]
    done = export(str(run), str(tmp_path / "x"))
    if changes:
        assert "Loads in PEFT." in done.lines[1]
        adapted = done.folder
        done = export(str(run), str(tmp_path / "merged"), merge=True, dtype="float32")
    assert "Loads in transformers." in done.lines[1]
    assert told == [], "no word of a head that is missing: it is the adapter's"
    model = AutoModelForSequenceClassification.from_pretrained(done.folder)
    assert model.config.num_labels == 1
    assert "attn" not in (done.folder / "config.json").read_text().replace("num_attention_heads", "")
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=0, atol=1e-4)
    if name in ("lora", "pissa", "lora-bfloat16"):
        kind = torch.bfloat16 if "bfloat16" in name else torch.float32
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=kind)
        again = PeftModel.from_pretrained(plain, str(adapted)).float()
        with torch.no_grad():
            torch.testing.assert_close(again(input_ids=IDS).logits, expected, rtol=0, atol=1e-4)


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What transformers logs."""
    logger, lines = logging.getLogger("transformers"), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_tasks_of_bfloat16_merge_in_float32(tasks: Path, tmp_path: Path) -> None:
    """Plain PEFT on plain transformers says what the merged model says."""
    changes = {"evaluation": {}, "model.adapter": {"rank": 4}, "model.dtype": "bfloat16"}
    run = trained(tasks, "tasks-bfloat16", TASKS, **changes)
    saved = find_saved(run)
    merged = export(str(run), str(tmp_path / "merged"), merge=True, dtype="float32").folder
    rounded = export(str(run), str(tmp_path / "rounded"), merge=True).folder
    for name, kind in (("mood", AutoModelForSequenceClassification), ("words", AutoModelForTokenClassification)):
        source = saved.checkpoint / "tasks" / name
        config = AutoConfig.from_pretrained(source)
        base = kind.from_pretrained(str(saved.config.model.path), config=config, dtype=torch.bfloat16)
        model = kind.from_pretrained(merged / "tasks" / name)
        with torch.no_grad():
            expected = PeftModel.from_pretrained(base, str(source)).float()(input_ids=IDS).logits
            torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=0, atol=1e-4)
        weight = model.state_dict()["model.layers.0.self_attn.q_proj.weight"]
        assert weight.dtype == torch.float32 and not torch.equal(weight, weight.bfloat16().float())
        once = load_file(rounded / "tasks" / name / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
        assert torch.equal(once, weight.bfloat16()), "rounded once"


@pytest.mark.parametrize("adapted", [False, True])
def test_tasks(tasks: Path, tmp_path: Path, adapted: bool) -> None:
    run = trained(tasks, f"tasks-{adapted}", changed(TASKS, APART if adapted else {}), **{"evaluation": {}})
    checkpoint = find_saved(run).checkpoint

    def logits(folder: Path) -> list[torch.Tensor]:
        with torch.no_grad():
            output = load_task_model(folder)(input_ids=IDS)
        return [value for name, value in output.items() if "logits" in name]

    done = export(str(run), str(tmp_path / "x"))
    merged = [export(str(run), str(tmp_path / "merged"), merge=True).folder] if adapted else []
    for folder in [done.folder, *merged]:
        assert sorted(path.name for path in (folder / "tasks").iterdir()) == ["mood", "where", "words"]
        for name in ("mood", "words", "where"):
            for found, expected in zip(
                logits(folder / "tasks" / name), logits(checkpoint / "tasks" / name), strict=True
            ):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert (folder / "tasks" / "mood" / "adapter_config.json").exists() == (adapted and folder not in merged)
        assert (folder / "tasks" / "mood" / "tokenizer.json").exists()
    if not adapted:
        body = {(done.folder / "tasks" / n / "body.safetensors").stat().st_ino for n in ("mood", "words", "where")}
        assert len(body) == 1, "one body on the disk"
