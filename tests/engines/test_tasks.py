"""Several heads on one decoder: an update is plain PyTorch's, the same however it is computed; what is saved is what
transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from rlft.algorithms.surgery import pcgrad, surgery_orders
from rlft.config import Config
from rlft.config.load import load_config
from rlft.data.tasks import load_tasks
from rlft.data.tokenizer import load_tokenizer
from rlft.engines.task_learner import RankedTasks, task_of
from rlft.models.tasks import MultiTaskModel, inner, load_task_model, load_tasks_model
from rlft.samples import Group, count_totals
from tests.engines.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's own calls into torch

Pool = dict[int, Ranks]
WEIGHTS = {"mood": 1.0, "ner": 0.5, "where": 2.0}
APART = {"model__adapter": {"rank": 4}, "tasks__2__adapter": "own"}
PCGRAD = {"algorithm__gradient_surgery": "pcgrad", "run__seed": 1}  # with whose heads two of three pairs disagree


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows of each kind."""
    folder, words = tmp_path_factory.mktemp("tasks"), ["ab", "cd", "efg", "h1"]
    write(folder / "mood.jsonl", [{"text": f"{w} {w[0]}{i}", "label": "np"[i % 2]} for i, w in enumerate(words)])
    tagged = [{"tokens": [w, "xy", str(i)], "tags": ["B-x", "O", "I-x"]} for i, w in enumerate(words)]
    write(folder / "ner.jsonl", tagged)
    asked = [
        {"context": f"{w} in {i}", "question": w[0], "answers": {"text": [str(i)], "answer_start": [len(w) + 4]}}
        for i, w in enumerate(words)
    ]
    write(folder / "where.jsonl", asked)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def loaded(model: Path, files: Path, num_ranks: int = 1, stage: int = 0, **changes: Any) -> tuple[Config, list[Group]]:
    """A configuration whose tasks know their labels, and all twelve rows."""
    kinds = {"mood": "sequence_classification", "ner": "token_classification", "where": "question_answering"}
    tasks = [
        {"name": name, "kind": kind, "path": str(files / f"{name}.jsonl"), "weight": WEIGHTS[name]}
        for name, kind in kinds.items()
    ]
    base = {
        "model": {"path": str(model)}, "algorithm": {"type": "tasks"}, "tasks": tasks, "loop": {"steps": 4},
        "learner": {
            "lr": 1e-3, "eps": 1e-4, "num_ranks": num_ranks, "zero_stage": stage, "weight_decay": 0.1,
            "max_grad_norm": 0.2,
        },
    }  # fmt: skip
    config = load_config(base, {k.replace("__", "."): v for k, v in changes.items()})
    mixture, _ = load_tasks(config, load_tokenizer(model), 64)
    return config.model_copy(update={"tasks": [rows.task for rows in mixture.rows]}), mixture.examples


def updated(pool: Pool, config: Config, groups: list[Group], count: int = 3) -> tuple[list[dict], np.ndarray]:
    """Metrics of a few updates, and what all heads say after them."""
    model = pool[config.learner.num_ranks].tasks(config)
    return [update(model, groups, step) for step in range(count)], said(model, groups)


def update(model: RankedTasks, groups: list[Group], step: int) -> dict[str, float]:
    return model.update(groups, count_totals(groups, 8), step)


def said(model: RankedTasks, groups: list[Group]) -> np.ndarray:
    return np.concatenate([logits.ravel() for logits in model.outputs(groups)])


def plain_logits(body: Any, head: Any, group: Group) -> torch.Tensor:
    """By an ordinary pass over one row, in the places that its head reads."""
    (sample,) = group.samples
    ids = torch.from_numpy(sample.token_ids[:-1].astype(np.int64))
    places = torch.from_numpy(np.flatnonzero(sample.loss_mask) - 1)
    return head(body(input_ids=ids[None]).last_hidden_state[0, places])


def plain_losses(body: Any, heads: dict[str, Any], groups: list[Group]) -> dict[str, torch.Tensor]:
    """Each task's mean over its rows, or words."""
    found: dict[str, list[torch.Tensor]] = {}
    for group in groups:
        name, labels = task_of(group), group.samples[0].labels
        assert labels is not None
        logits, values = plain_logits(body, heads[name], group), torch.from_numpy(labels.values)
        if name == "where":
            loss = [(F.cross_entropy(logits[:, 0], values[0]) + F.cross_entropy(logits[:, 1], values[1])) / 2]
        else:
            loss = list(F.cross_entropy(logits, values, reduction="none"))
        found.setdefault(name, []).extend(loss)
    return {name: torch.stack(each).mean() for name, each in found.items()}


def plain_model(config: Config) -> tuple[Any, dict[str, Any], MultiTaskModel]:
    model = load_tasks_model(config.model, config.tasks, seed=config.run.seed)
    body = inner(model.body)
    body.set_attn_implementation("eager")
    return body, {task.name: head for task, head in zip(config.tasks, model.heads, strict=True)}, model


@pytest.mark.parametrize("surgery", ["none", "pcgrad"])
def test_an_update_is_the_one_of_plain_pytorch(rank_pool: Pool, wide_folder: Path, files: Path, surgery: str) -> None:
    changes: dict[str, Any] = {**PCGRAD, "algorithm__gradient_surgery": surgery, "tasks__0__lr": 5e-3}
    config, groups = loaded(wide_folder, files, **changes)
    body, heads, model = plain_model(config)
    means = plain_losses(body, heads, groups)
    weighted = {name: loss * WEIGHTS[name] for name, loss in means.items()}
    if surgery == "none":
        sum(weighted.values()).backward()  # type: ignore[union-attr]
    else:
        shared, own = list(body.parameters()), [p for head in model.heads for p in head.parameters()]
        by_task = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in weighted.values()]
        flat = torch.stack([torch.cat([g.flatten() for g in gradients]) for gradients in by_task])
        at = 0
        whole = pcgrad(flat, surgery_orders(1, 0, 3))
        assert float((whole - flat.sum(0)).norm()) > 1e-3, "some gradients must be against each other"
        for parameter in shared:
            parameter.grad = whole[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        for parameter, gradient in zip(own, torch.autograd.grad(sum(weighted.values()), own)):  # type: ignore[arg-type]
            parameter.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
    mood = [*heads["mood"].parameters()]
    others = [p for p in model.parameters() if all(p is not q for q in mood)]
    parts = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        {"params": mood, "weight_decay": 0.1, "lr": 5e-3},
    ]
    torch.optim.AdamW(parts, lr=1e-3, eps=1e-4).step()

    (metrics,), outputs = updated(rank_pool, config, groups, count=1)
    assert metrics["policy/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert norm > 0.2, "the limit must bite"
    assert metrics.get("tasks/conflicts") == (pytest.approx(2 / 3) if surgery == "pcgrad" else None)
    for name, loss in means.items():
        assert metrics[f"tasks/{name}/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["policy/loss"] == pytest.approx(sum(loss.item() for loss in weighted.values()), rel=1e-5)
    with torch.no_grad():
        expected = [plain_logits(body, heads[task_of(group)], group).numpy().ravel() for group in groups]
    np.testing.assert_allclose(outputs, np.concatenate(expected), atol=2e-5)


@pytest.mark.parametrize("changes", [{}, APART, PCGRAD, APART | PCGRAD], ids=["mixed", "adapters", "pcgrad", "both"])
def test_same_update_however_it_is_computed(rank_pool: Pool, wide_folder: Path, files: Path, changes: dict) -> None:
    config, groups = loaded(wide_folder, files, **changes)
    expected, outputs = updated(rank_pool, config, groups)
    assert expected[-1]["policy/loss"] < expected[0]["policy/loss"]
    cut = {**changes, "learner__tokens_per_micro_batch": 16}
    stages = [(1, 0), (2, 0)] if changes else [(1, 0), (2, 0), (2, 2), (2, 3)]
    for num_ranks, stage in stages:
        config, groups = loaded(wide_folder, files, num_ranks, stage, **cut)
        found, others = updated(rank_pool, config, groups[::-1])
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-6), (num_ranks, stage)
        np.testing.assert_allclose(_reversed(others, groups), outputs, atol=1e-5)


def _reversed(outputs: np.ndarray, groups: list[Group]) -> np.ndarray:
    """What was said of the rows backwards, forwards."""
    widths = [{"mood": 2, "ner": 3, "where": 2}[task_of(g)] * g.samples[0].num_trained for g in groups[::-1]]
    return np.concatenate(np.split(outputs, np.cumsum(widths)[:-1])[::-1])


@pytest.mark.parametrize(("num_ranks", "stage", "changes"), [(1, 0, {}), (2, 3, {}), (2, 0, APART)])
def test_what_is_saved_is_what_transformers_loads(rank_pool, wide_folder, files, tmp_path, num_ranks, stage, changes):
    config, groups = loaded(wide_folder, files, num_ranks, stage, **changes)
    model = rank_pool[num_ranks].tasks(config)
    for step in range(3):
        update(model, groups, step)
    outputs = said(model, groups)
    load_tokenizer(wide_folder).save_pretrained(tmp_path)
    model.save(tmp_path)
    found = []
    for name, kind in (
        ("mood", "SequenceClassification"),
        ("ner", "TokenClassification"),
        ("where", "QuestionAnswering"),
    ):
        auto, folder = getattr(transformers, f"AutoModelFor{kind}"), tmp_path / "tasks" / name
        whole = load_task_model(folder)
        assert type(whole) is type(auto.from_config(whole.config))
        if not changes:
            whole, info = auto.from_pretrained(folder, output_loading_info=True)
            assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        assert load_tokenizer(folder).get_vocab() == load_tokenizer(wide_folder).get_vocab()
        assert whole.config.num_labels == {"mood": 2, "ner": 3, "where": 2}[name]
        found += [_by_transformers(whole.eval(), name, group) for group in groups if task_of(group) == name]
    np.testing.assert_allclose(np.concatenate(found), outputs, atol=1e-5)
    if not changes:
        body = tmp_path / "model.safetensors"
        assert body.stat().st_ino == (tmp_path / "tasks" / "ner" / "body.safetensors").stat().st_ino
        assert transformers.AutoConfig.from_pretrained(tmp_path / "tasks" / "mood").id2label == {0: "n", 1: "p"}

    before = update(model, groups, 3)
    model.restore(tmp_path)
    np.testing.assert_allclose(said(model, groups), outputs, atol=1e-6)
    assert update(model, groups, 3) == before


def _by_transformers(model: Any, name: str, group: Group) -> np.ndarray:
    (sample,) = group.samples
    with torch.no_grad():
        answer = model(input_ids=torch.from_numpy(sample.token_ids[None, :-1].astype(np.int64)))
    if name == "mood":
        return answer.logits[0].numpy().ravel()
    both = answer.logits[0] if name == "ner" else torch.stack([answer.start_logits[0], answer.end_logits[0]], -1)
    return both[torch.from_numpy(np.flatnonzero(sample.loss_mask) - 1)].numpy().ravel()


@pytest.mark.parametrize("changes", [{}, APART, APART | PCGRAD], ids=["mixed", "adapters", "both"])
def test_a_task_or_a_rank_without_rows(rank_pool: Pool, wide_folder: Path, files: Path, changes: dict) -> None:
    """Steps with one row: the other tasks' heads and adapters, with momentum and without, go on alike on all ranks."""

    def outcome(num_ranks: int, stage: int) -> tuple[list[dict], np.ndarray]:
        config, groups = loaded(wide_folder, files, num_ranks, stage, **changes)
        model = rank_pool[num_ranks].tasks(config)
        metrics = [update(model, part, step) for step, part in enumerate([groups[:1], groups, groups[:1]])]
        return metrics, said(model, groups)

    expected, outputs = outcome(1, 0)
    assert "tasks/ner/loss" not in expected[0] and "tasks/mood/loss" in expected[0]
    for num_ranks, stage in [(2, 0)] if changes else [(2, 0), (2, 2)]:
        found, others = outcome(num_ranks, stage)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-6)
        np.testing.assert_allclose(others, outputs, atol=1e-5)


def test_checkpointed_activations_change_nothing(rank_pool: Pool, wide_folder: Path, files: Path) -> None:
    runs = [
        updated(rank_pool, *loaded(wide_folder, files, **PCGRAD, learner__gradient_checkpointing=recompute), count=2)
        for recompute in (False, True)
    ]
    assert runs[0][0] == [pytest.approx(line, rel=1e-5) for line in runs[1][0]]
    np.testing.assert_allclose(runs[0][1], runs[1][1], atol=1e-6)


@pytest.mark.parametrize(
    ("problem", "labels"), [("many_labels", [["a"], [], ["a", "b"]]), ("number", [0.5, -1.0, 2.0])]
)
def test_other_problems_are_those_of_transformers(
    rank_pool: Pool, wide_folder: Path, tmp_path: Path, problem: str, labels: list
) -> None:
    """In bfloat16 on two ranks too."""
    write(tmp_path / "t.jsonl", [{"text": f"ab{i}", "label": label} for i, label in enumerate(labels)])
    task = {"name": "t", "kind": "sequence_classification", "path": str(tmp_path / "t.jsonl"), "problem": problem}
    base = {"model": {"path": str(wide_folder)}, "algorithm": {"type": "tasks"}, "tasks": [task]}
    config = load_config(base)
    mixture, _ = load_tasks(config, load_tokenizer(wide_folder), 64)
    config = config.model_copy(update={"tasks": [rows.task for rows in mixture.rows]})
    model, groups = rank_pool[1].tasks(config), mixture.examples
    model.save(tmp_path / "saved")
    metrics = update(model, groups, 0)
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "tasks" / "t")
    losses = []
    for group in groups:
        (sample,) = group.samples
        assert sample.labels is not None
        ids, values = torch.from_numpy(sample.token_ids[None, :-1].astype(np.int64)), sample.labels.values
        losses.append(whole(input_ids=ids, labels=torch.from_numpy(values)).loss.item())
    assert metrics["policy/loss"] == pytest.approx(np.mean(losses), rel=1e-5)

    half = load_config(base, {"model.dtype": "bfloat16", "learner.num_ranks": 2})
    half = half.model_copy(update={"tasks": config.tasks})
    assert update(rank_pool[2].tasks(half), groups, 0)["policy/loss"] == pytest.approx(np.mean(losses), rel=0.05)
