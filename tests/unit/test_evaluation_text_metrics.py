"""Text metrics by hand; ROUGE and BLEU through their packages."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlft.config.load import load_config
from rlft.errors import UserError
from rlft.evaluation import text_metrics
from rlft.evaluation.text_metrics import METRICS, TextMetrics, is_match, normalize, references_of, token_f1
from rlft.samples import Group
from tests.helpers import make_prompt, make_sample

BASE = {"model": {"tiny": {}}, "rewards": {"functions": [{"function": "exact_match"}]}, "evaluation": {"path": "org/x"}}


def value(name: str, texts: list[str], references: list[list[str]]) -> float:
    return METRICS[name].compute(texts, references)


def test_normalisation_is_squads():
    assert normalize("  The Eiffel-Tower, in\tan  (old) Paris! ") == "eiffeltower in old paris"
    assert normalize("Theatre") == "theatre"


def test_exact_match():
    assert is_match("the answer.", "Answer") == 1
    assert is_match("answers", "answer") == 0


def test_token_f1_by_hand():
    # eiffel tower in paris / eiffel tower: 2 common words of 4 and of 2, so 2 * 2 / (4 + 2)
    assert token_f1("The Eiffel Tower, in Paris", "Eiffel tower") == pytest.approx(4 / 6)
    # a word counts as often as it is in both: 1 common of 3 and of 2
    assert token_f1("no no no", "no way") == pytest.approx(2 / 5)
    assert token_f1("", "no") == token_f1("yes", "no") == 0


def test_the_best_of_several_references_counts_and_completions_are_averaged():
    texts, references = ["eiffel tower in paris", "no"], [["paris", "eiffel tower"], ["yes"]]
    assert value("f1", texts, references) == pytest.approx((4 / 6 + 0) / 2)
    assert value("exact_match", ["b", "no"], [["a.", "b"], ["yes"]]) == 0.5


def test_rouge_by_hand():
    text, right = "the cat on a mat", "the cat sat on the mat"
    # words: the, cat, on, mat are common, of 5 and of 6; the longest common sequence is the same four
    assert value("rouge1", [text], [[right]]) == pytest.approx(2 * 4 / (5 + 6))
    assert value("rougeL", [text], [[right]]) == pytest.approx(2 * 4 / (5 + 6))
    # pairs of words: "the cat" is common, of 4 and of 5
    assert value("rouge2", [text], [[right]]) == pytest.approx(2 * 1 / (4 + 5))
    # in another order all words are common, but only one stands in sequence
    assert value("rouge1", ["c b a"], [["a b c"]]) == pytest.approx(1)
    assert value("rougeL", ["c b a"], [["a b c"]]) == pytest.approx(1 / 3)
    assert value("rougeL", ["x", "a b"], [["y"], ["a c", "a b"]]) == pytest.approx((0 + 1) / 2)


def test_bleu_is_of_the_corpus():
    texts, references = ["the cat sat on the mat", "yes it is so"], [["the cat sat on a mat"], ["yes it is so"]]
    # runs of 1 to 4 words that are in the reference too: 5/6, 3/5, 2/4, 1/3 in the first, all 4, 3, 2, 1 in the second
    assert value("bleu", texts[:1], references[:1]) == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert value("bleu", texts, references) == pytest.approx(100 * (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25)


def test_bleu_with_more_references_for_some():
    assert value("bleu", ["a b c d", "e f g h"], [["x", "a b c d"], ["e f g h"]]) == pytest.approx(100)


def test_a_value_for_each_metric_over_all_samples():
    prompts = [make_prompt([1], "x.jsonl:1", right="Paris"), make_prompt([1], "x.jsonl:2", right=["4", "four"])]
    metrics = TextMetrics(["exact_match", "rougeL"], "right", prompts)
    said = [["paris", "in paris"], ["four", "five"]]
    groups = [
        Group(prompt, tuple(make_sample(prompt, [2], text=text) for text in texts))
        for prompt, texts in zip(prompts, said, strict=True)
    ]
    # rougeL: 1 and 2 * 1 / (2 + 1) for Paris, 1 and 0 for four
    assert metrics(groups) == {
        "eval/exact_match": pytest.approx(2 / 4),
        "eval/rougeL": pytest.approx((1 + 2 / 3 + 1 + 0) / 4),
    }


def test_what_a_tool_said_does_not_count():
    prompt = make_prompt([1], "x.jsonl:1", right="four")
    turns = ({"role": "assistant", "content": "2+2?"}, {"role": "tool", "content": "four"})
    group = Group(prompt, (replace(make_sample(prompt, [2], text="2+2?four"), turns=turns),))
    assert TextMetrics(["f1"], "right", [prompt])([group]) == {"eval/f1": 0}


def test_references():
    assert references_of(make_prompt([1], right=7), "right") == ["7"]
    assert references_of(make_prompt([1], right=["a", 2.5]), "right") == ["a", "2.5"]


@pytest.mark.parametrize(
    ("names", "right", "said"),
    [
        (["f1"], None, "x.jsonl:3: column 'right' (evaluation.reference_column) is empty. Expected a text or a list"),
        (["f1"], [], "is empty"),
        (["f1"], {"text": ["a"]}, "is a mapping with text"),
        (["f1"], True, "is 'True' (a bool)"),
        (["bleu", "f1"], "A", "holds 'A', of which f1 has nothing to compare with: SQuAD's normalisation leaves"),
        (["rougeL"], "\u4f60\u597d", "of which rougeL has nothing to compare with: rouge-score's tokenizer leaves"),
        (["bleu"], " ", "of which bleu has nothing to compare with"),
    ],
)
def test_rows_that_cannot_be_compared_with_are_named(names, right, said):
    with pytest.raises(UserError) as error:
        TextMetrics(names, "right", [make_prompt([1], "x.jsonl:3", right=right)])
    assert said in str(error.value)


def test_a_reference_that_counts_for_nothing_is_no_match_beside_one_that_does():
    assert value("exact_match", ["the"], [["the", "cat"]]) == 0


def test_a_missing_column_is_named_with_a_near_one():
    with pytest.raises(UserError, match=r"no column 'rigth'. Did you mean 'right'\? Columns there: right, other."):
        TextMetrics(["f1"], "rigth", [make_prompt([1], right="a", other="b")])


def test_a_missing_package_is_named_before_anything_starts(monkeypatch):
    monkeypatch.setattr(text_metrics, "find_spec", lambda module: None)
    text_metrics.check_installed(["f1", "exact_match"])
    with pytest.raises(UserError) as error:
        text_metrics.check_installed(["f1", "rouge1", "rougeL", "bleu"])
    assert "rouge1, rougeL, bleu cannot be computed, because rouge-score and sacrebleu are not" in str(error.value)
    assert "pip install 'rlft[eval]' or pip install rouge-score sacrebleu" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation.metrics": ["f1"]}, "evaluation.reference_column: is empty, but evaluation.metrics (f1) compare"),
        ({"evaluation.reference_column": "a"}, "has no effect, because evaluation.metrics is empty; name some"),
        (
            {"evaluation.metrics": ["f1", "f1"], "evaluation.reference_column": "a"},
            "evaluation.metrics: f1 is there twice",
        ),
        (
            {"evaluation.metrics": ["rougel"], "evaluation.reference_column": "a"},
            "expected a list of any of exact_match, f1, rouge1, rouge2, rougeL, bleu",
        ),
        (
            {"evaluation.metrics": ["f1"], "evaluation.reference_column": "a", "evaluation.path": None},
            "evaluation.metrics: has no effect, because evaluation.path is empty",
        ),
    ],
)
def test_keys_that_do_not_go_together(changes, said):
    with pytest.raises(UserError) as error:
        load_config(BASE, changes)
    assert said in str(error.value)


def test_a_misspelt_metric_is_one_problem():
    changes = {"evaluation.metrics": ["rougel"], "evaluation.reference_column": "a"}
    with pytest.raises(UserError) as error:
        load_config(BASE, changes)
    assert "has no effect" not in str(error.value) and "problems" not in str(error.value)


def test_who_only_evaluates_may_do_without_rewards():
    changes = {"rewards.functions": [], "evaluation.metrics": ["f1"], "evaluation.reference_column": "a"}
    assert load_config(BASE, changes, purpose="evaluate").evaluation.metrics == ["f1"]
    with pytest.raises(UserError, match="no reward function"):
        load_config(BASE, changes)
    with pytest.raises(UserError, match="no reward function"):
        load_config(BASE, {"rewards.functions": []}, purpose="evaluate")
