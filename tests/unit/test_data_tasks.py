"""Rows of tasks: what becomes of them, in which order they come, and what is said of bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlft.config import Config
from rlft.config.load import load_config
from rlft.data.tasks import TaskMixture, load_tasks
from rlft.errors import UserError
from tests.unit.byte_model import encoded, folder, tokenizer  # noqa: F401  # fixtures

SEQUENCE, TOKENS, QUESTION = "sequence_classification", "token_classification", "question_answering"
MOODS = [{"text": "good", "label": "+"}, {"text": "bad", "label": "-"}]
TAGGED = [{"tokens": ["Ann", "is"], "tags": ["B-P", "O"]}]
ASKED = [{"context": "It is in Rome.", "question": "Where?", "answers": {"text": ["Rome"], "answer_start": [9]}}]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config_of(model: Path, tasks: list[dict[str, Any]], **changes: Any) -> Config:
    base = {"model": {"path": str(model)}, "algorithm": {"type": "tasks"}, "tasks": tasks, "loop": {"steps": 3}}
    return load_config(base, {k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture
def load(folder: Path, tokenizer: Any, tmp_path: Path) -> Any:  # noqa: F811
    """Loads one task of these rows, called x.jsonl."""

    def loaded(kind: str, rows: list[dict[str, Any]], window: int = 100, **more: Any) -> TaskMixture:
        data = {f"data__{k.removeprefix('data_')}": more.pop(k) for k in list(more) if k.startswith("data_")}
        settings = {"name": "t", "kind": kind, "path": write(tmp_path / "x.jsonl", rows), **more}
        return load_tasks(config_of(folder, [settings], **data), tokenizer, window)[0]

    return loaded


def test_a_text_is_read_at_its_last_token(load):
    mixture = load(SEQUENCE, MOODS)
    (sample,) = mixture.examples[0].samples
    assert sample.token_ids.tolist() == [*encoded("good"), 0], "and one more, that is never fed"
    assert sample.loss_mask.tolist() == [False] * 4 + [True]
    assert mixture.rows[0].task.labels == ["+", "-"] and sample.labels.values.tolist() == [0]
    assert "labels: +, -" in mixture.description


def test_pairs_many_labels_and_numbers(load):
    rows = [{"a": "p", "b": "q", "l": ["y", "x"]}, {"a": "r", "b": "s", "l": []}]
    mixture = load(SEQUENCE, rows, problem="many_labels", columns={"text": "a", "pair": "b", "label": "l"})
    first, second = (group.samples[0] for group in mixture.examples)
    assert first.token_ids.tolist() == [*encoded("p\nq"), 0]
    assert (first.labels.values.tolist(), second.labels.values.tolist()) == ([[1.0, 1.0]], [[0.0, 0.0]])
    mixture = load(SEQUENCE, [{"text": "a", "label": 1}, {"text": "b", "label": 2.5}], problem="number")
    assert [g.samples[0].labels.values.tolist() for g in mixture.examples] == [[1.0], [2.5]]


def test_numbers_are_places_in_the_labels(load):
    mixture = load(SEQUENCE, [{"text": "a", "label": 1}, {"text": "b", "label": "no"}], labels=["no", "yes"])
    assert [g.samples[0].labels.values.tolist() for g in mixture.examples] == [[1], [0]]
    mixture = load(SEQUENCE, [{"text": str(i), "label": i} for i in (10, 2)])
    assert mixture.rows[0].task.labels == ["2", "10"]


def test_a_word_is_labelled_on_its_last_token(load):
    mixture = load(TOKENS, TAGGED)
    (sample,) = mixture.examples[0].samples
    assert sample.token_ids.tolist() == [*encoded("Ann is"), 0]
    assert np.flatnonzero(sample.loss_mask).tolist() == [3, 6], "behind the n of Ann and the s of is"
    assert mixture.rows[0].task.labels == ["O", "B-P"] and sample.labels.values.tolist() == [1, 0]


def test_spans_become_tags_of_words(load):
    rows = [{"text": "New York, now", "spans": [[0, 8, "L"]]}]
    mixture = load(TOKENS, rows)
    (sample,) = mixture.examples[0].samples
    labels = mixture.rows[0].task.labels
    assert [labels[i] for i in sample.labels.values] == ["B-L", "I-L", "O", "O"]
    assert np.flatnonzero(sample.loss_mask).tolist() == [3, 8, 9, 13]


def test_an_answer_is_places_of_the_context(load):
    (group,) = load(QUESTION, ASKED).examples
    (sample,) = group.samples
    assert group.prompt.text == "Where?\nIt is in Rome."
    assert np.flatnonzero(sample.loss_mask).tolist() == list(range(8, 22))
    assert sample.labels.values.tolist() == [9, 12]
    assert group.prompt.text[sample.labels.spans[9, 0] : sample.labels.spans[12, 1]] == "Rome"


def test_each_step_has_its_shares_and_is_the_same_again(folder, tokenizer, tmp_path):  # noqa: F811
    rows = [{"text": f"{i}", "label": "ab"[i % 2]} for i in range(10)]
    both = [
        {"name": name, "kind": SEQUENCE, "path": write(tmp_path / f"{name}.jsonl", rows[:count]), "share": share}
        for name, count, share in (("many", 10, 3), ("few", 4, 1))
    ]
    mixture, held_out = load_tasks(config_of(folder, both), tokenizer, 64)
    assert held_out == []
    steps = [mixture.batch(step, 8) for step in range(20)]
    names = [[group.samples[0].labels.task for group in step] for step in steps]
    assert all(each.count("few") == 2 for each in names)
    few = [g.prompt.id for step in steps for g in step if g.samples[0].labels.task == "few"]
    assert all(sorted(few[i : i + 4]) == [f"few.jsonl:{n}" for n in range(1, 5)] for i in range(0, 40, 4)), "epochs"
    ids = [[g.prompt.id for g in step] for step in steps]
    again, _ = load_tasks(config_of(folder, both), tokenizer, 64)
    assert [[g.prompt.id for g in again.batch(step, 8)] for step in range(20)] == ids
    mixture, _ = load_tasks(
        config_of(folder, [dict(t, share=1.0) for t in both], algorithm__task_temperature=1.0), tokenizer, 64
    )
    counts = [[g.samples[0].labels.task for g in mixture.batch(step, 7)].count("few") for step in range(10)]
    assert counts == [2] * 10, "4 of 14 rows"


def test_held_out_rows_have_the_labels_of_those_that_are_learned(folder, tokenizer, tmp_path):  # noqa: F811
    path, held_out = write(tmp_path / "x.jsonl", MOODS), tmp_path / "h.jsonl"
    task = {"name": "t", "kind": SEQUENCE, "path": path, "held_out": write(held_out, MOODS[1:])}
    _, (rows,) = load_tasks(config_of(folder, [task]), tokenizer, 64)
    assert rows.groups[0].samples[0].labels.values.tolist() == [1]
    write(held_out, [{"text": "so", "label": "?"}])
    with pytest.raises(UserError, match=r"task t: h\.jsonl:1: label '\?' is none of \+, - \(the labels of the rows"):
        load_tasks(config_of(folder, [task]), tokenizer, 64)


@pytest.mark.parametrize(
    ("kind", "rows", "more", "said"),
    [
        (SEQUENCE, [{"txt": "a", "label": "x"}], {}, r"columns\.text: .* has no column 'text'\. Did you mean 'txt'"),
        (SEQUENCE, [*MOODS, {"text": " ", "label": "+"}], {}, r"task t: x\.jsonl:3: column 'text' is .*Expected text"),
        (SEQUENCE, [*MOODS, {"text": "a", "label": None}], {}, r"x\.jsonl:3: column 'label' has the label None"),
        (SEQUENCE, [*MOODS, {"text": "a", "label": ["+"]}], {}, r"is a list\. Expected one label, or set problem"),
        (SEQUENCE, MOODS[:1], {}, r"x\.jsonl has only the label '\+', so there is nothing to learn"),
        (SEQUENCE, MOODS, {"labels": ["+", "0"]}, r"x\.jsonl:2: label '-' is none of \+, 0 \(the task's labels"),
        (SEQUENCE, MOODS, {"problem": "number"}, r"x\.jsonl:1: column 'label' is '\+'\. Expected a number"),
        (SEQUENCE, MOODS, {"window": 3}, r"1 of 2 rows are too long: x\.jsonl:1 \(4 tokens\)"),
        (TOKENS, [{"tokens": [], "tags": []}], {}, r"x\.jsonl:1: column 'tokens' is empty\. Expected a list of words"),
        (TOKENS, [{"tokens": ["a", "b"], "tags": ["O"]}], {}, r"'tags' has 1 tags\. Expected one for each of 2"),
        (TOKENS, [{"text": "abc", "spans": [[1, 3, "x"]]}], {}, r"span \[1, 3, 'x'\] \('bc'\) begins or ends within"),
        (TOKENS, [{"text": "a b", "spans": [[0, 9, "x"]]}], {}, r"'spans' is .*with characters of the text \(3 long"),
        (TOKENS, [{"text": "a b", "spans": [[0, 3, "x"], [2, 3, "y"]]}], {}, r"overlaps another"),
        (QUESTION, [{**ASKED[0], "answers": {"text": ["Rom"], "answer_start": [3]}}], {}, r"'Rom' is not where .*'is "),
        (QUESTION, [{**ASKED[0], "answers": {"text": ["e."], "answer_start": [-2]}}], {}, r"answer_start -2 says"),
        (QUESTION, [{**ASKED[0], "answers": {"text": [], "answer_start": []}}], {}, r"column 'answers' has no answer"),
        (QUESTION, [{**ASKED[0], "answers": "Rome"}], {}, r"column 'answers' is 'Rome'\. Expected \{text: "),
        (QUESTION, [{**ASKED[0], "context": ""}], {}, r"column 'context' is empty\. Expected text"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(load, kind, rows, more, said):
    with pytest.raises(UserError, match=said):
        load(kind, rows, **more)


def test_a_task_without_rows_is_named(load):
    with pytest.raises(UserError, match=r"task t: .*x\.jsonl has no rows"):
        load(SEQUENCE, [])


def test_long_rows_may_be_dropped(load):
    mixture = load(SEQUENCE, [*MOODS, {"text": "long text", "label": "+"}], window=4, data_too_long="drop")
    assert len(mixture.examples) == 2 and "1 dropped as too long" in mixture.description
