"""What each command makes of one prompt, with an asker that says what the test wants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest

from rlft.config.roles import RewardFunction
from rlft.endpoint.client import Asker, RequestFailed
from rlft.endpoint.replies import Reply
from rlft.errors import UserError
from rlft.synthesis.config import DistillConfig, PreferConfig, ReviseConfig
from rlft.synthesis.constitution import Constitution, Principle
from rlft.synthesis.critique import reviser
from rlft.synthesis.distill import Verifier, distiller
from rlft.synthesis.preferences import check_columns, labeller
from rlft.synthesis.rows import LeftOut, SourceRow
from rlft.synthesis.verdicts import read_verdict

TEXT = SourceRow("x.jsonl:1", "fp", "Why?", [{"role": "user", "content": "Why?"}], {"answer": "4", "draft": "old"})
TALK = SourceRow(
    "x.jsonl:2", "fp", [{"role": "user", "content": "Why?"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}], {},
)  # fmt: skip


class Says:
    """An asker that says these in turn, raises what is an exception, and keeps what it was asked."""

    def __init__(self, *replies: str | Reply | Exception) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[list[dict[str, str]], float | None]] = []

    def __call__(self, messages: Any, *, temperature: float | None = None) -> Reply:
        self.asked.append((list(messages), temperature))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Reply) else says(reply)


def says(text: str, reasoning: str = "", finish_reason: str = "stop") -> Reply:
    return Reply(text, reasoning, finish_reason, 1, 1)


def constitution(*names: str, **weights: float) -> Constitution:
    return Constitution(
        principles=[
            Principle(name=n, critique=f"crit {n}", revision=f"rev {n}", prefer=f"pref {n}", weight=weights.get(n, 1.0))
            for n in names
        ]
    )


def do(worker: Callable[[SourceRow, Asker], Any], row: SourceRow, ask: Says) -> Any:
    return worker(row, cast("Asker", ask))


# ---------------------------------------------------------------- constitution


def test_drawing_is_a_function_of_the_seed_and_never_twice_the_same():
    laws = constitution("a", "b", "c")
    drawn = [[p.name for p in laws.draw(2, seed)] for seed in range(200)]
    assert drawn == [[p.name for p in laws.draw(2, seed)] for seed in range(200)]
    assert all(len(set(names)) == 2 for names in drawn)
    assert {name for names in drawn for name in names} == {"a", "b", "c"}


def test_heavier_principles_are_drawn_more():
    laws = constitution("a", "b", b=3.0)
    counts = Counter(laws.draw(1, seed)[0].name for seed in range(4000))
    assert 0.72 < counts["b"] / 4000 < 0.78  # 3 of 4


# ---------------------------------------------------------------- revise


def revise(ask: Says, row: SourceRow = TEXT, **values: Any) -> Any:
    config = ReviseConfig.model_validate({"constitution": "c.yaml", **values})
    return do(reviser(config, constitution("p", "q"), 0), row, ask)


def test_draft_critique_revision_in_turn():
    ask = Says("draft", "bad", "better", "still bad", "best")
    (row,) = revise(ask, num_principles=2).rows
    first, second = row["principles"]
    assert {first, second} == {"p", "q"}
    assert row == {
        "prompt": "Why?", "completion": "best", "draft": "draft", "critiques": ["bad", "still bad"],
        "revisions": ["better", "best"], "principles": [first, second], "id": "x.jsonl:1",
        "answer": "4", "source_draft": "old",
    }  # fmt: skip
    turns = [[turn["content"] for turn in messages] for messages, _ in ask.asked]
    assert turns[0] == ["Why?"]
    assert turns[1][:2] == ["Why?", "draft"] and turns[1][2].startswith(f"crit {first}")
    assert turns[2][:2] == ["Why?", "draft"] and turns[2][3] == "bad" and turns[2][4].startswith(f"rev {first}")
    assert turns[3][:2] == ["Why?", "better"] and turns[3][2].startswith(f"crit {second}"), "from the newest answer"
    assert [turn["role"] for turn in ask.asked[2][0]] == ["user", "assistant", "user", "assistant", "user"]


def test_a_conversation_stays_one_and_its_system_prompt_is_the_endpoints():
    ask = Says("draft", "bad", "better")
    (row,) = revise(ask, TALK).rows
    assert [turn["role"] for turn in ask.asked[0][0]] == ["system", "user"]
    assert row["prompt"] == [{"role": "user", "content": "Why?"}]
    assert row["messages"] == [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "better"}]


def test_pairs():
    (row,) = revise(Says("draft", "bad", "better"), pairs=True).rows
    assert (row["chosen"], row["rejected"]) == ("better", "draft")
    with pytest.raises(LeftOut, match="unchanged"):
        revise(Says("draft", "fine", "draft"), pairs=True)
    assert revise(Says("draft", "fine", "draft")).rows[0]["completion"] == "draft"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (says("half", finish_reason="length"), "truncated"),
        (says("", finish_reason="content_filter"), "filtered"),
        (says("x", finish_reason="tool_calls"), "not_an_answer"),
        (says(" \n"), "empty"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_whole_is_left_out(reply, reason, place):
    replies: list[str | Reply] = ["draft", "bad", "better"]
    replies[place] = reply
    with pytest.raises(LeftOut, match=reason):
        revise(Says(*replies))


# ---------------------------------------------------------------- prefer

A, B, NONE = "Well.\nVERDICT: A", "Well.\nVERDICT: B\n", "VERDICT: A\nor not"


def label(ask: Says, row: SourceRow = TEXT, **values: Any) -> Any:
    config = PreferConfig.model_validate({"constitution": "c.yaml", **values})
    return do(labeller(config, constitution("p"), 0), row, ask)


@pytest.mark.parametrize(("verdicts", "chosen"), [((A, B), "one"), ((B, A), "two")])
def test_a_pair_counts_when_both_orders_agree(verdicts, chosen):
    ask = Says("one", "two", *verdicts)
    (row,) = label(ask).rows
    assert (row["chosen"], row["rejected"]) == ((chosen, "two") if chosen == "one" else (chosen, "one"))
    assert (row["prompt"], row["principle"], row["judgements"]) == ("Why?", "p", list(verdicts))
    questions = [messages[0]["content"] for messages, _ in ask.asked[2:]]
    assert "<answer_A>\none\n" in questions[0] and "<answer_B>\ntwo\n" in questions[0]
    assert "<answer_A>\ntwo\n" in questions[1] and "<answer_B>\none\n" in questions[1]
    assert "pref p" in questions[0] and "user: Why?" in questions[0]
    assert [temperature for _, temperature in ask.asked] == [None, None, 0.0, 0.0]


@pytest.mark.parametrize("verdicts", [(A, A), (B, B)])
def test_a_judge_that_likes_a_place_labels_nothing(verdicts):
    with pytest.raises(LeftOut, match="orders_disagree"):
        label(Says("one", "two", *verdicts))


def test_rubbish_is_asked_again_and_then_left_out():
    ask = Says("one", "two", NONE, NONE, A, NONE, B)
    assert label(ask).rows[0]["chosen"] == "one"
    assert len(ask.asked) == 7
    ask = Says("one", "two", A, NONE, NONE, NONE)
    with pytest.raises(LeftOut, match="unparsed"):
        label(ask)
    with pytest.raises(LeftOut, match="unparsed"):
        label(Says("one", "two", NONE), max_asks=1)


def test_identical_answers_are_not_judged():
    with pytest.raises(LeftOut, match="identical"):
        label(Says("one", " one\n"))


def test_answers_from_columns():
    row = SourceRow("x.jsonl:1", "fp", "Why?", TEXT.messages, {"a": "one {p}", "b": "two", "c": 3})
    (made,) = label(Says(B, A), row, first_column="a", second_column="b").rows
    assert (made["chosen"], made["rejected"], made["c"]) == ("two", "one {p}", 3)
    for column, said in (("d", "is not there"), ("c", "is 3")):
        config = PreferConfig(constitution="c", first_column="a", second_column=column)
        with pytest.raises(UserError, match=rf"x.jsonl:1: column '{column}' \(prefer.second_column\) {said}"):
            check_columns(config, row)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("VERDICT: A", "A"),
        ("B is better.\n\n VERDICT: B \n\n", "B"),
        ("VERDICT: A\nVERDICT: B", "B"),
        ("VERDICT: A.", None),
        ("**VERDICT: A**", None),
        ("Verdict: A", None),
        ("VERDICT: C", None),
        ("VERDICT: A or B", None),
        ("I say VERDICT: A", None),
        ("VERDICT: A\nBut I am not sure.", None),
        ("", None),
    ],
)
def test_verdicts_are_read_strictly(text, verdict):
    assert read_verdict(text) == verdict


# ---------------------------------------------------------------- distill


def distill(ask: Says, row: SourceRow = TEXT, verifier: Verifier | None = None, **values: Any) -> Any:
    return do(distiller(DistillConfig.model_validate(values), verifier), row, ask)


def verifier(function: str, **values: Any) -> Verifier:
    return Verifier([RewardFunction.model_validate({"function": function, **values})])


def test_reasoning_is_kept_or_dropped():
    assert distill(Says(says("4", "2+2"))).rows[0]["completion"] == "<think>\n2+2\n</think>\n\n4"
    assert distill(Says(says("4", "2+2")), reasoning="drop").rows[0]["completion"] == "4"
    (row,) = distill(Says(says("4", "2+2")), TALK).rows
    assert row["messages"][-1] == {"role": "assistant", "content": "<think>\n2+2\n</think>\n\n4"}


def test_the_verifier_filters_and_the_same_answer_counts_once():
    ask = Says(says("4", "a"), "5", says("4", "b"), says("4 ", finish_reason="length"))
    outcome = distill(ask, verifier=verifier("exact_match"), num_answers=4)
    assert [(row["completion"], row["reward"]) for row in outcome.rows] == [("<think>\na\n</think>\n\n4", 1.0)]
    assert outcome.left_out == {"rejected": 1, "duplicate": 1, "truncated": 1} and not outcome.failed


def test_accept_reward():
    half = verifier("exact_match", weight=0.5)
    assert not distill(Says("4"), verifier=half).rows
    assert distill(Says("4"), verifier=half, accept_reward=0.5).rows


def test_a_verifier_that_fails_is_not_a_zero(tmp_path):
    (tmp_path / "f.py").write_text("def f(completions, **columns):\n    raise ValueError('hm')")
    judge = verifier(f"{tmp_path}/f.py:f")
    outcome = distill(Says("4"), verifier=judge)
    assert outcome.failed == "unverified" and "ValueError: hm" in outcome.detail and not outcome.rows


def test_some_requests_that_fail_are_left_out_and_all_of_them_fail_the_row():
    timeout = RequestFailed("timeout", "slow")
    outcome = distill(Says("4", timeout), num_answers=2)
    assert len(outcome.rows) == 1 and outcome.left_out == {"timeout": 1} and not outcome.failed
    outcome = distill(Says(timeout, RequestFailed("5xx", "oops")), num_answers=2)
    assert (outcome.failed, outcome.detail) == ("timeout", "slow")


def test_functions_that_want_tokens_are_refused():
    with pytest.raises(UserError, match="'repetition' looks at tokens"):
        verifier("repetition")
    with pytest.raises(UserError, match="needs the parameter 'answer'"):
        verifier("exact_match").check_columns(TALK)
