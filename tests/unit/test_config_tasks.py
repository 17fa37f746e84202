"""What is wrong with a configuration of tasks is said, all of it, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlft.config.load import load_config
from rlft.errors import UserError

MOOD = {"name": "mood", "kind": "sequence_classification", "path": "mood.jsonl"}
WORDS = {"name": "words", "kind": "token_classification", "path": "words.jsonl"}
ASKED = {"name": "asked", "kind": "question_answering", "path": "asked.jsonl"}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for task in (MOOD, WORDS, ASKED):
        Path(task["path"]).write_text("{}\n")


def load(*tasks: dict[str, Any], **changes: Any) -> Any:
    base = {"model": {"tiny": {}}, "algorithm": {"type": "tasks"}, "tasks": list(tasks)}
    return load_config(base, {k.replace("__", "."): v for k, v in changes.items()}, need_data=True)


def test_no_data_path_is_needed():
    assert [task.name for task in load(MOOD, WORDS, ASKED).tasks] == ["mood", "words", "asked"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": []}, "tasks: is empty, but algorithm.type is tasks; expected at least one"),
        ({"tasks__0__nmae": "x"}, "unknown key; did you mean tasks.0.name?"),
        ({"tasks__1__name": "Mood"}, 'tasks.1.name: "Mood" is the name of tasks.0 too'),
        ({"tasks__1__name": "a/b"}, '"a/b" cannot name a folder'),
        ({"tasks__0__kind": "summary"}, "expected one of sequence_classification, token_classification"),
        ({"tasks__0__path": "mod.jsonl"}, '"mod.jsonl" does not exist. Near it: mood.jsonl'),
        ({"tasks__0__held_out": "no.jsonl"}, 'tasks.0.held_out: "no.jsonl" does not exist'),
        ({"tasks__0__columns": {"txt": "a"}}, 'has "txt", did you mean text? Expected any of text, pair, label'),
        ({"tasks__1__columns": {"tags": "a", "spans": "b"}}, "expected either tokens and tags, or text and spans"),
        ({"tasks__0__labels": ["a", "b", "a"]}, 'has "a" twice'),
        ({"tasks__0__labels": ["a"]}, 'has only "a", so there is nothing to learn'),
        ({"tasks__2__labels": ["a", "b"]}, "tasks.2.labels: has no effect, because kind is question_answering"),
        ({"tasks__1__problem": "number"}, "tasks.1.problem: has no effect, because kind is token_classification"),
        ({"tasks__0__held_out_split": "test"}, "tasks.0.held_out_split: has no effect, because held_out is empty"),
        ({"tasks__0__adapter": "own"}, "tasks.0.adapter: has no effect, because model.adapter is empty"),
        ({"tasks__0__share": 2.0, "algorithm__task_temperature": 1.0}, "tasks.0.share: has no effect"),
        ({"data__path": "mood.jsonl"}, "data.path: has no effect, because algorithm.type is tasks, and each"),
        ({"data__prompt_column": "x"}, "data.prompt_column: has no effect"),
        ({"evaluation__every": 3}, "evaluation.every: has no effect, because no task has held_out rows"),
        ({"algorithm__kl_coef": 0.1}, "algorithm.kl_coef: has no effect, because algorithm.type is tasks"),
        ({"algorithm__gradient_surgery": "pcgrad", "learner__num_ranks": 2}, "but ZeRO stage 2 splits it"),
        ({"algorithm__type": "sft"}, "tasks: has no effect, because algorithm.type is not tasks"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(changes, said):
    with pytest.raises(UserError) as error:
        load(MOOD, WORDS, ASKED, **changes)
    assert said in str(error.value)


def test_rows_from_python_are_not_ignored_in_silence():
    with pytest.raises(UserError, match=r"tasks: read their own paths, so the dataset= that was passed"):
        load_config({"model": {"tiny": {}}, "algorithm": {"type": "tasks"}, "tasks": [MOOD]}, has_dataset=True)


def test_an_adapter_of_its_own_needs_whole_gradients():
    own = {**MOOD, "adapter": "own"}
    assert load(own, model__adapter={}).tasks[0].adapter == "own"
    with pytest.raises(UserError, match=r"tasks\.0\.adapter: own: .*ZeRO stage 2"):
        load(own, model__adapter={}, learner__num_ranks=2)


def test_held_out_rows_give_evaluation_an_effect():
    assert load({**MOOD, "held_out": "mood.jsonl"}, evaluation__every=3).evaluation.every == 3


@pytest.mark.parametrize("purpose", ["evaluate", "score"])
def test_heads_are_not_what_eval_measures(purpose: Any) -> None:
    base = {"model": {"tiny": {}}, "algorithm": {"type": "tasks"}, "tasks": [MOOD]}
    with pytest.raises(UserError, match=r"^algorithm\.type: tasks: heads write no text, which is what rlft eval"):
        load_config(base, purpose=purpose)


def test_surgery_is_for_tasks_alone():
    grpo = {"model": {"tiny": {}}, "rewards": {"functions": [{"function": "math"}]}}
    with pytest.raises(UserError, match=r"gradient_surgery: has no effect, because algorithm\.type is not tasks"):
        load_config(grpo, {"algorithm.gradient_surgery": "pcgrad"})
