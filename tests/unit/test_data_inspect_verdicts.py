"""What is refused before a run is what a run refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlft.config.data import DataConfig
from rlft.config.load import load_config
from rlft.data.examples import load_examples
from rlft.data.inspect import Uses, inspect_rows
from rlft.data.inspect_rows import ModelLimits
from rlft.data.learning import load_learning_rows
from rlft.data.pairs import load_labels, load_pairs
from rlft.data.prompts import load_prompts
from rlft.data.reading import rows_in_memory
from rlft.errors import UserError
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer
from tests.unit.inspecting import ANSWER, GPT, HUMAN, USER

VALUES = st.sampled_from(
    [None, "", " ", "ab", "a" * 9, 3, [], [USER], [ANSWER], [USER, ANSWER], [HUMAN, GPT], "\ud800"]
)


@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["prompt", "answer", "messages", "text"]), VALUES), min_size=1, max_size=3
    ),
    sft=st.booleans(),
    train_on=st.sampled_from(["assistant", "last", "everything"]),
    too_long=st.sampled_from(["error", "drop", "truncate"]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_refuses_what_a_run_refuses(
    tokenizer: Any, rows: list[dict[str, Any]], sft: bool, train_on: Any, too_long: Any
) -> None:
    data = DataConfig(train_on=train_on, too_long=too_long if sft or too_long != "truncate" else "drop")
    model = ModelLimits(tokenizer, 12 if sft else 20, 0 if sft else 8)
    read = rows_in_memory(rows)
    found = inspect_rows(read, (), data, purpose="sft" if sft else "prompts", model=model)
    try:
        if sft:
            load_examples(data, tokenizer, window=12, seed=0, rows=rows)
        else:
            load_prompts(data, tokenizer, window=20, max_new_tokens=8, seed=0, rows=rows)
    except UserError as error:
        assert not found.usable, error
    else:
        assert found.usable, found.problems


ANSWERS = st.sampled_from([None, "", "ab", "a c", "a" * 9, 3, [USER, ANSWER], [ANSWER], [USER]])


@given(
    rows=st.lists(
        st.fixed_dictionaries({}, optional={
            "prompt": ANSWERS, "chosen": ANSWERS, "rejected": ANSWERS, "completion": ANSWERS,
            "label": st.sampled_from([True, False, 0, 1, 2, None]),
        }),
        min_size=1, max_size=3,
    ),
    purpose=st.sampled_from(["pairs", "labels"]),
    too_long=st.sampled_from(["error", "drop"]),
    unusable=st.sampled_from(["error", "drop"]),
)  # fmt: skip
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_refuses_the_pairs_that_a_run_refuses(
    tokenizer: Any, rows: list[dict[str, Any]], purpose: Any, too_long: Any, unusable: Any
) -> None:
    data = DataConfig(too_long=too_long, unusable=unusable)
    found = inspect_rows(rows_in_memory(rows), (), data, purpose=purpose, model=ModelLimits(tokenizer, 12))
    try:
        if purpose == "pairs":
            load_pairs(data, tokenizer, window=12, seed=0, rows=rows)
        else:
            load_labels(data, tokenizer, window=12, seed=0, rows=rows, with_others=False)
    except UserError as error:
        assert not found.usable, error
    else:
        assert found.usable, found.problems


MARGINS = st.sampled_from([None, 0, 1.5, -2, "a", True, float("nan"), float("inf"), 10**400])
TEXTS = st.sampled_from([None, "", " ", "ab", "a\nb", "\nab\n", 3])


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"prompt": st.sampled_from(["a", "b"]), "chosen": st.sampled_from(["b", "", "c"])},
            optional={"margin": MARGINS},
        ),
        min_size=1, max_size=3,
    ),
    unusable=st.sampled_from(["error", "drop"]),
)  # fmt: skip
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_refuses_what_a_reward_model_refuses(
    tokenizer: Any, folder: Path, rows: list[dict[str, Any]], unusable: str
) -> None:
    pairs = [{**row, "rejected": "c"} for row in rows]
    same_verdict(tokenizer, folder, pairs, "reward", "pairs", Uses(margins=True), unusable)


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"prompt": st.sampled_from(["a", "b"]), "completion": st.sampled_from(["b", ""]), "label": st.booleans()}
        ),
        min_size=1, max_size=3,
    ),
    unusable=st.sampled_from(["error", "drop"]),
)  # fmt: skip
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_refuses_what_kto_refuses(tokenizer: Any, folder: Path, rows: list[dict[str, Any]], unusable: str) -> None:
    same_verdict(tokenizer, folder, rows, "kto", "labels", Uses(other_prompts=True), unusable)


@given(
    rows=st.lists(
        st.fixed_dictionaries({}, optional={
            "prompt": st.sampled_from(["a", "", None, [USER], 3]),
            "completions": st.one_of(st.lists(TEXTS, max_size=2), st.none(), st.just("ab")),
            "labels": st.one_of(st.lists(st.sampled_from([True, 0, 0.5, 2, None]), max_size=2), st.none()),
        }),
        min_size=1, max_size=3,
    ),
    unusable=st.sampled_from(["error", "drop"]),
)  # fmt: skip
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_refuses_the_steps_that_a_run_refuses(
    tokenizer: Any, folder: Path, rows: list[dict[str, Any]], unusable: str
) -> None:
    same_verdict(tokenizer, folder, rows, "process_reward", "steps", Uses(), unusable)


def same_verdict(
    tokenizer: Any, folder: Path, rows: list[dict[str, Any]], algorithm: str, purpose: Any, uses: Uses, unusable: str
) -> None:
    """Of the inspection, and of what loads the rows of a run."""
    changes = {"algorithm.type": algorithm, "model.path": str(folder), "data.unusable": unusable, "data.path": "x"}
    config = load_config({}, changes)
    model = ModelLimits(tokenizer, 24)
    found = inspect_rows(rows_in_memory(rows), (), config.data, purpose=purpose, model=model, uses=uses)
    try:
        loaded = load_learning_rows(config, tokenizer, 24, rows)
    except UserError as error:
        assert not found.usable, error
    else:
        assert found.usable, found.problems
        assert found.num_usable == len(loaded)
