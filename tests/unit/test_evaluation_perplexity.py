"""Perplexity by hand, and by a plain forward pass of transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlft.config.data import DataConfig
from rlft.config.model import ModelConfig
from rlft.data.examples import load_examples
from rlft.engines.scoring import FrozenScorer
from rlft.errors import RunError
from rlft.evaluation.perplexity import count_bytes, perplexity
from rlft.models.tiny import make_tiny_model
from rlft.samples import Group, Prompt, Sample
from tests.unit.byte_model import SMALL, encoded, folder, tokenizer

__all__ = ["folder", "tokenizer"]  # fixtures


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that finds some tokens much likelier than others."""
    path = tmp_path_factory.mktemp("sharp")
    make_tiny_model(SMALL, path, seed=0)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20 if parameter.ndim > 1 else 1)
    model.save_pretrained(path)
    return path


class Fixed:
    """A scorer that finds every trained token of an example equally likely."""

    def __init__(self, *chances: float) -> None:
        self.chances = chances

    def logprobs(self, groups: Any) -> Any:
        return [
            [np.where(group.samples[0].loss_mask, math.log(chance), 0).astype(np.float32)]
            for group, chance in zip(groups, self.chances, strict=True)
        ]


def example(text: str, num_seen: int, row: dict[str, Any] | None = None) -> Group:
    """All of a text's bytes but the first `num_seen` are scored."""
    ids = np.array(encoded(text), dtype=np.int32)
    prompt = Prompt("x.jsonl:1", ids[:1], "", None, {} if row is None else row)
    return Group(prompt, (Sample.given(ids, np.arange(len(ids)) >= num_seen, ""),))


def test_by_hand(tokenizer: Any) -> None:
    # 3 tokens of chance 1/2 and 1 of chance 1/8: -L = (3 + 3) ln 2 over 4 tokens, which are 4 bytes
    found = perplexity(Fixed(1 / 2, 1 / 8), [example("abcd", 1), example("ef", 1)], tokenizer)  # type: ignore[arg-type]
    assert found == {
        "eval/examples": 2,
        "eval/tokens": 4,
        "eval/nll": pytest.approx(6 * math.log(2) / 4),
        "eval/perplexity": pytest.approx(2**1.5),
        "eval/log_likelihood": pytest.approx(-3 * math.log(2)),
        "eval/bits_per_byte": pytest.approx(6 / 4),
    }


def test_pieces_of_a_document_are_one_example_and_bytes_are_those_of_characters(tokenizer: Any) -> None:
    row = {"text": "aé"}  # a, and é of two bytes; the second piece begins with the last token of the first
    whole = encoded("aé")
    pieces = [whole[:2], whole[1:]]
    groups = [
        Group(
            Prompt(f"x.jsonl:1#{i}", np.array(piece[:1], dtype=np.int32), "", None, row),
            (Sample.given(np.array(piece, dtype=np.int32), np.arange(len(piece)) > 0, ""),),
        )
        for i, piece in enumerate(pieces)
    ]
    assert count_bytes(groups, tokenizer) == 2
    found = perplexity(Fixed(1 / 4, 1 / 4), groups, tokenizer)  # type: ignore[arg-type]
    assert (found["eval/examples"], found["eval/tokens"]) == (1, 2)
    assert found["eval/bits_per_byte"] == pytest.approx(2)
    assert found["eval/log_likelihood"] == pytest.approx(2 * math.log(1 / 4))


def test_a_character_that_is_scored_in_part_counts_its_scored_bytes(tokenizer: Any) -> None:
    assert count_bytes([example("é!", 1)], tokenizer) == 2
    assert count_bytes([example("你!", 1)], tokenizer) == 3


def test_what_is_no_logprob_stops_it(tokenizer: Any) -> None:
    with pytest.raises(RunError, match=r"the log-probs of 1 of 2 examples are not finite, first of x.jsonl:1"):
        perplexity(Fixed(0.5, float("nan")), [example("ab", 1), example("cd", 1)], tokenizer)  # type: ignore[arg-type]


ROWS = {
    "plain": [{"prompt": "1+1=", "completion": "two"}, {"prompt": "a", "completion": "longer answer"}],
    "chat": [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        {"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "dé"},
        ]},
    ],
    "documents": [{"text": "some text that is cut into pieces, because the window is short"}, {"text": "short"}],
}  # fmt: skip


@pytest.mark.parametrize("train_on", ["assistant", "last", "everything"])
@pytest.mark.parametrize("rows", ROWS)
def test_it_is_what_a_plain_forward_pass_gives(sharp: Path, tokenizer: Any, rows: str, train_on: Any) -> None:
    if rows == "documents" and train_on != "assistant":
        return
    data = DataConfig(train_on=train_on)
    examples = load_examples(data, tokenizer, window=30 if rows == "documents" else 200, seed=0, rows=ROWS[rows])
    scorer = FrozenScorer(ModelConfig(path=str(sharp)), 1.0, 64, 8)
    found = perplexity(scorer, examples.examples, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(sharp)
    loss, count = 0.0, 0
    for group in examples.examples:
        ids = torch.tensor(group.samples[0].token_ids[None].astype(np.int64))
        labels = torch.where(torch.tensor(group.samples[0].loss_mask)[None], ids, -100)
        num = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            loss += float(model(input_ids=ids, labels=labels).loss) * num  # the mean over the labels
        count += num
    assert found["eval/tokens"] == count
    assert found["eval/examples"] == 2
    assert abs(found["eval/nll"] - math.log(260)) > 1, "not a model that finds all 260 tokens equally likely"
    assert found["eval/nll"] == pytest.approx(loss / count, rel=1e-5)
    assert found["eval/perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-4)
