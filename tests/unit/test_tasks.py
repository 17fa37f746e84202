"""Losses of heads, gradient surgery and what is measured on held-out rows, with numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rlft.algorithms.surgery import conflicts, pcgrad, surgery_orders
from rlft.algorithms.tasks import answer_span, many_labels, number, one_label
from rlft.config.tasks import TaskConfig
from rlft.data.task_rows import make_group, read_question, read_tagged
from rlft.data.tasks import TaskRows, shares_of
from rlft.engines.task_learner import task_counts
from rlft.evaluation.tasks import HeldOutTasks, best_span, tagged_spans


def task(kind: str = "sequence_classification", name: str = "t", **more: Any) -> TaskConfig:
    return TaskConfig.model_validate({"name": name, "kind": kind, "path": "x.jsonl", **more})


def test_surgery_takes_out_what_is_against_another():
    """g1 = (1, 0), g2 = (-1, 1): g1 . g2 = -1. g1 less (-1 / 2) g2 is (0.5, 0.5); g2 less (-1 / 1) g1 is (0, 1)."""
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    torch.testing.assert_close(pcgrad(gradients, [[1], [0]]), torch.tensor([0.5, 1.5]))
    assert conflicts(gradients) == (1, 1)


def test_surgery_leaves_gradients_that_agree_and_zeros():
    agree = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(pcgrad(agree, [[1, 2], [0, 2], [0, 1]]), torch.tensor([2.0, 1.0]))
    assert conflicts(agree) == (0, 3)


def test_surgery_depends_on_the_order_of_three():
    """g1 = (1, 0), g2 = (-1, 1), g3 = (-1, -1), of g1 alone (the others do not change when they look at no one).
    Order 2, 3: (0.5, 0.5), then . g3 = -1: + (1 / 2) g3 is (0, 0). So the sum is that of g2 and g3, (-2, 0).
    Order 3, 2 of g1: (1, 0) + (1 / 2) g3 is (0.5, -0.5), . g2 = -1: + (1 / 2) g2 is (0, 0), the same here; with
    g2 = (-1, 2) it is (0.8, 0.4), . g3 = -1.2: (0.2, -0.2), and in the other order (0.5, -0.5), . g2 = -1.5:
    + (1.5 / 5) g2 is (0.2, 0.1)."""
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [-1.0, -1.0]])
    others = torch.tensor([-2.0, 1.0])
    torch.testing.assert_close(pcgrad(gradients, [[1, 2], [], []]), others + torch.tensor([0.2, -0.2]))
    torch.testing.assert_close(pcgrad(gradients, [[2, 1], [], []]), others + torch.tensor([0.2, 0.1]))


def test_orders_are_random_and_the_same_again():
    orders = [surgery_orders(0, step, 4) for step in range(50)]
    assert orders == [surgery_orders(0, step, 4) for step in range(50)]
    assert all(sorted([i, *order]) == [0, 1, 2, 3] for each in orders for i, order in enumerate(each))
    assert len({tuple(each[0]) for each in orders}) == 6, "all orders of three others come up"
    assert orders != [surgery_orders(1, step, 4) for step in range(50)]


def test_losses():
    log3 = math.log(3.0)
    judged = one_label(torch.tensor([[0.0, log3], [0.0, log3]]), torch.tensor([1, 0]))  # probabilities 1/4, 3/4
    torch.testing.assert_close(judged.loss, torch.tensor([math.log(4 / 3), math.log(4.0)]))
    assert judged.right is not None and judged.right.tolist() == [True, False]

    judged = many_labels(torch.tensor([[log3, -log3], [log3, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    expected = [math.log(4 / 3), (math.log(4.0) + math.log(2.0)) / 2]
    torch.testing.assert_close(judged.loss, torch.tensor(expected))
    assert judged.right is not None and judged.right.tolist() == [True, False]

    judged = number(torch.tensor([[1.0], [3.0]]), torch.tensor([0.5, 3.0]))
    assert judged.loss.tolist() == [0.25, 0.0] and judged.right is None


def test_loss_of_answers_in_rows_of_different_lengths():
    """The first row has 2 places, the second 3: with equal logits each end costs log 2, or log 3."""
    ends = torch.tensor([[0, 1], [2, 2]])
    logits = torch.zeros(5, 2, requires_grad=True)
    judged = answer_span(logits, ends, [2, 3])
    torch.testing.assert_close(judged.loss, torch.tensor([math.log(2.0), math.log(3.0)]))
    judged.loss.sum().backward()
    torch.testing.assert_close(logits.grad[:2], torch.tensor([[-0.25, 0.25], [0.25, -0.25]]))
    sure = torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0], [0.0, 0.0], [9.0, 0.0]])
    assert answer_span(sure, ends, [2, 3]).right.tolist() == [True, False]


def test_shares():
    tasks = [task(name="a", share=2.0), task(name="b", share=0.5)]
    assert shares_of(tasks, [10, 90], None) == [4, 1]
    assert shares_of(tasks, [10, 90], 1.0) == [1, 9]
    one, other = shares_of(tasks, [10, 90], 2.0)  # in proportion to the square roots, 1 to 3
    assert one / (one + other) == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-x I-x O B-x", {(0, 2, "x"), (3, 4, "x")}),
        ("B-x B-x", {(0, 1, "x"), (1, 2, "x")}),
        ("I-x I-x I-y", {(0, 2, "x"), (2, 3, "y")}),
        ("O O", set()),
    ],
)
def test_spans_of_tags(tags, spans):
    assert tagged_spans(tags.split()) == spans


def test_the_best_span_does_not_end_before_it_begins():
    """Start 2 and end 1 are the largest, but not in this order: (0, 1) has 3 + 2, (2, 2) has 4 + 0."""
    assert best_span(np.array([[3.0, 1.0], [0.0, 2.0], [4.0, 0.0]])) == (0, 1)
    assert best_span(np.array([[3.0, 9.0], [0.0, 2.0], [4.0, 0.0]])) == (0, 0)


def characters(text: str) -> np.ndarray:
    """Of a tokenizer that makes a token of each character."""
    return np.array([[i, i + 1] for i in range(len(text))])


def group_of(settings: TaskConfig, read: Any, columns: dict[str, Any], labels: dict[str, int] | None = None) -> Any:
    ids = np.arange(len(read.text), dtype=np.int32)
    return make_group(settings, read, columns, "x:1", labels or {}, ids, characters(read.text))[0]


class Says:
    """A learner whose heads say what they are told."""

    def __init__(self, outputs: list[np.ndarray]) -> None:
        self._outputs = outputs

    def outputs(self, groups: Any) -> list[np.ndarray]:
        assert len(groups) == len(self._outputs)
        return self._outputs


def test_held_out_words_and_questions():
    """Words: O B I against O B O: 2 of 3 right; the span (1, 3) for (1, 2): none found. Question: `a b` for `b`."""
    labels = {"O": 0, "B-x": 1, "I-x": 2}
    words = task("token_classification", "words", labels=list(labels))
    row = {"tokens": ["p", "qq", "r"], "tags": ["O", "B-x", "O"]}
    tagged = group_of(words, read_tagged(words, row, "x:1", ["tokens", "tags"]), row, labels)
    assert np.flatnonzero(tagged.samples[0].loss_mask).tolist() == [1, 4, 6], "behind p, the last q and r"
    asked = task("question_answering", "asked")
    row = {"question": "?", "context": "a b c", "answers": {"text": ["b", "c"], "answer_start": [2, 4]}}
    question = group_of(asked, read_question(asked, row, "x:1", []), row)
    assert question.samples[0].labels.values.tolist() == [2, 2]
    ends = np.array([[9.0, 0], [0, 0], [0, 9], [0, 0], [0, 0]])  # from `a` to `b`, of which a is an article
    held_out = HeldOutTasks([TaskRows(words, [tagged], ""), TaskRows(asked, [question], "")])
    found = held_out(Says([np.eye(3)[[0, 1, 2]], ends]), None)
    assert found == {
        "eval/words/accuracy": pytest.approx(2 / 3), "eval/words/f1": 0.0, "eval/asked/exact_match": 1.0,
        "eval/asked/f1": 1.0,
    }  # fmt: skip
    assert task_counts([tagged, question, question], [words, asked]) == (3, 2)
