"""Several sources in fixed proportions."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.config.load import load_config
from rlft.data.mixture import Mixture
from rlft.data.order import MAX_PERIOD, Interleaving, row_indices, source_seed, whole_shares
from rlft.data.sources import all_examples, all_prompts
from rlft.errors import UserError
from rlft.samples import Group, Prompt
from tests.unit.byte_model import folder as folder  # the fixtures
from tests.unit.byte_model import tokenizer as tokenizer


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def data_of(keys: dict[str, Any]) -> Any:
    return load_config({"model": {"tiny": {}}, "algorithm": {"type": "sft"}, "data": keys}).data


def test_whole_shares() -> None:
    assert whole_shares([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert whole_shares([1, 1.0]) == [1, 1] and whole_shares([3]) == [1]
    assert whole_shares([30, 10]) == [3, 1]
    assert whole_shares([1e-9, 1]) == [1, 99_999]  # a share that is too small for whole numbers is not lost
    # 200001 in all: halves of 100000 are 49999.75..., 50000.24..., and the larger remainder is rounded up
    assert whole_shares([100_000, 100_001]) == [1, 1]
    for weights in ([], [1, 0], [1, -1]):
        with pytest.raises(ValueError, match="weights"):
            whole_shares(weights)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8))
def test_whole_shares_are_near(weights: list[float]) -> None:
    shares = whole_shares(weights)
    assert min(shares) >= 1 and sum(shares) <= MAX_PERIOD + len(weights)
    for share, weight in zip(shares, weights, strict=True):
        wanted = Fraction(str(weight)) / sum(Fraction(str(w)) for w in weights)
        assert abs(Fraction(share, sum(shares)) - wanted) <= Fraction(len(weights), MAX_PERIOD)


def test_the_order_of_sources() -> None:
    # 3 beside 1, P = 4, 2k - 2 = 2. Place 1: source 0 is 3 - 0 = 3 behind, at least 4 / 2, source 1 only 1: 0. Place 2:
    # 6 - 4 = 2 and 2 - 0 = 2, both may; overdue at (4 - 2 + 4) / 3 = 2 and (4 - 2) / 1 = 2: the first of equals, 0.
    # Place 3: 9 - 8 = 1 and 3: 1. Place 4: 12 - 8 = 4 and 4 - 4 = 0: 0. These must never change.
    assert Interleaving([3, 1]).pattern.tolist() == [0, 0, 1, 0]
    assert Interleaving([7, 2, 1]).pattern.tolist() == [0, 0, 1, 0, 0, 2, 0, 0, 1, 0]
    assert Interleaving([1, 1, 1]).pattern.tolist() == [0, 1, 2]
    assert Interleaving([1]).pattern.tolist() == [0]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7))
@settings(deadline=None)
def test_proportions_are_exact(shares: list[int]) -> None:
    """After n places each source came up within 1 of n * share; two sources keep that for every stretch."""
    order = Interleaving(shares)
    total = sum(shares)
    sources, _ = order.stretch(0, 2 * total + 7)
    for source, share in enumerate(shares):
        excess, seen = [0], 0  # times `total`
        for n, other in enumerate(sources, start=1):
            seen += other == source
            excess.append(seen * total - n * share)
        assert max(map(abs, excess)) < total
        assert max(excess) - min(excess) <= (total if len(shares) == 2 else 2 * total)


SHARES, COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=5), st.lists(st.integers(0, 30), max_size=6)


@given(SHARES, COUNTS, st.integers(0, 50))
def test_stretches_join(shares: list[int], counts: list[int], first: int) -> None:
    """However a sequence is cut, each source's own order is taken from the front, without a gap."""
    order = Interleaving(shares)
    whole, parts = order.stretch(first, sum(counts))
    joined, begin, at = list[int](), {source: part[0] for source, part in parts.items()}, first
    for count in counts:
        sources, own = order.stretch(at, count)
        joined, at = joined + sources, at + count
        for source, (place, size) in own.items():
            assert place == begin[source] and size == sources.count(source)
            begin[source] += size
    assert joined == whole


def test_a_mixture_takes_from_each_source_in_its_own_order(tokenizer: Any, tmp_path: Path) -> None:
    a = write(tmp_path, "a.jsonl", [{"prompt": f"a{i}", "answer": "x"} for i in range(5)])
    b = write(tmp_path, "b.jsonl", [{"question": f"b{i}", "out": "y"} for i in range(2)])
    data = data_of(
        {
            "mixture": [
                {"path": a, "weight": 3},
                {"path": b, "name": "bees", "prompt_column": "question", "completion_column": "out"},
            ]
        }
    )
    mixture = all_examples(data, tokenizer, window=99, seed=7)
    assert isinstance(mixture, Mixture)
    groups = [group for step in range(4) for group in mixture.batch(step, 4)]
    assert [group.prompt.source for group in groups] == ["a", "a", "bees", "a"] * 4
    own = {name: [g.prompt.text for g in groups if g.prompt.source == name] for name in ("a", "bees")}
    for name, letter, size, count in (("a", "a", 5, 12), ("bees", "b", 2, 4)):
        order = row_indices(size, 0, count, seed=source_seed(7, name), shuffle=True)
        assert own[name] == [f"{letter}{i}" for i in order]
    assert sorted(own["a"][:5]) == sorted(own["a"][5:10]) == [f"a{i}" for i in range(5)]  # its epochs
    again = all_examples(data, tokenizer, window=99, seed=7)
    assert [g.prompt.id for g in again.batch(2, 4)] == [g.prompt.id for g in groups[8:12]], "a function of the step"
    assert len(mixture) == 7 and [first.prompt.source for first in mixture.firsts] == ["a", "bees"]
    # a, a, bees, a, a, a, bees, a: the sixth of a, which has 5 rows, is in place 8
    assert not mixture.repeats(7) and mixture.repeats(8)
    assert mixture.description.splitlines()[0] == "a mixture of 2"
    assert mixture.description.splitlines()[1].startswith("  a, 0.75 of the samples: ")


def test_sources_do_not_change_each_other(tokenizer: Any, tmp_path: Path) -> None:
    """The order inside a source depends on its name: neither on its place among others nor on their sizes."""
    paths = {name: write(tmp_path, f"{name}.jsonl", [{"prompt": f"{name}{i}"} for i in range(9)]) for name in "abc"}

    def texts(names: str) -> list[str]:
        data = data_of({"mixture": [{"path": paths[name]} for name in names], "completion_column": None})
        taken = all_prompts(data, tokenizer, window=99, max_new_tokens=1, seed=1).take(0, 9 * len(names))
        return [prompt.text for prompt in taken if prompt.source == "a"]

    assert texts("ab") == texts("ca") == texts("a")


def test_each_source_has_keys_of_its_own(tokenizer: Any, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    data = data_of(
        {
            "mixture": [
                {"path": write(tmp_path, "talk.jsonl", [{"messages": talk}]), "system_prompt": "S"},
                {"path": write(tmp_path, "own.jsonl", [{"messages": talk}]), "chat_template": str(own)},
                {"path": write(tmp_path, "text.jsonl", [{"text": "abc"}, {"text": "no"}]), "max_rows": 1},
                {"path": write(tmp_path, "all.jsonl", [{"prompt": "a", "answer": "b"}]), "train_on": "everything"},
            ],
            "train_on": "last",
        }
    )  # fmt: skip
    with pytest.raises(UserError, match=r"^source text of data\.mixture: data\.train_on has no effect"):
        all_examples(data, tokenizer, window=99, seed=0)
    data.mixture[2] = data.mixture[2].model_copy(update={"train_on": "assistant"})
    groups = {g.prompt.source: g for g in all_examples(data, tokenizer, window=99, seed=0).batch(0, 4)}
    assert groups["talk"].prompt.text.startswith("<|im_start|>system\nS<|im_end|>")
    assert groups["own"].prompt.text == "[hi]" and tokenizer.chat_template != "[hi]"
    assert groups["text"].samples[0].text == "abc"
    assert groups["all"].samples[0].loss_mask.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(None, [1, 1]), (1, [4, 1]), (2, [2, 1]), (1e9, [1, 1])],  # 16 and 4 rows: 16 : 4, then sqrt(16) : sqrt(4)
)
def test_temperature(tokenizer: Any, tmp_path: Path, temperature: float | None, expected: list[int]) -> None:
    paths = [write(tmp_path, f"{n}.jsonl", [{"prompt": "a", "answer": "b"}] * n) for n in (16, 4)]
    data = data_of({"mixture": [{"path": path} for path in paths], "mixture_temperature": temperature})
    mixture = all_examples(data, tokenizer, window=99, seed=0)
    taken = [group.prompt.source for group in mixture.take(0, sum(expected))]
    assert [taken.count("16"), taken.count("4")] == expected


A = {"path": "a.jsonl"}
RL = {"algorithm": {"type": "grpo"}, "rewards": {"functions": [{"function": "math"}]}}


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ({"path": "a.jsonl", "mixture": [A]}, {}, 'data.mixture: data.path is set too ("a.jsonl"); keep one'),
        ({"mixture": [{"path": "a.jsonl", "weight": 0}]}, {}, "data.mixture.0.weight: found 0 (a number), expected a"),
        ({"mixture": [A, A]}, {}, 'data.mixture.1.name: "a" is the name of data.mixture.0 too; give it another name'),
        ({"mixture": [{**A, "name": "x/y"}]}, {}, 'data.mixture.0.name: "x/y" cannot name metrics; expected a word'),
        ({"mixture": [{**A, "wieght": 2}]}, {}, "data.mixture.0.wieght: unknown key; did you mean"),
        ({"mixture": [{"weight": 1}]}, {}, "data.mixture.0.path: is required and not there; expected text"),
        ({"mixture": [{**A, "weight": 2}], "mixture_temperature": 2}, {}, "data.mixture.0.weight: 2 has no effect"),
        ({"mixture_temperature": 2}, {}, "data.mixture_temperature: has no effect, because data.mixture is empty"),
        ({"mixture": [{**A, "train_on": "last"}]}, RL, "data.mixture.0.train_on: has no effect, because"),
        ({"mixture": [{**A, "too_long": "truncate"}]}, RL, "data.mixture.0.too_long: truncate cuts completions"),
        ({"mixture": [{**A, "chat_template": "a.jsonl"}]}, RL | {"environment": {"function": "calculator"}},
         "data.mixture.0.chat_template: an environment, which writes prompts and answers too, knows one for all; exp"),
        ({"mixture": [{**A, "system_prompt": "S"}]}, RL | {"environment": {"function": "calculator"}},
         "data.mixture.0.system_prompt: an environment"),
        ({"mixture": [{"path": "b.jsonl"}]}, {}, 'data.mixture.0.path: "b.jsonl" does not exist. Near it: a.jsonl'),
        ({"mixture": [{**A, "chat_template": "x.jinja"}]}, {}, 'data.mixture.0.chat_template: "x.jinja" is no file'),
    ],
)  # fmt: skip
def test_bad_configurations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Any, more: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError) as caught:
        load_config({"model": {"tiny": {}}, "algorithm": {"type": "sft"}, "data": data} | more)
    assert str(caught.value).startswith(message), caught.value


def test_a_data_set_from_python_beside_a_mixture(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", [{"prompt": "a"}])
    config = {"model": {"tiny": {}}, "algorithm": {"type": "sft"}, "data": {"mixture": [{"path": path}]}}
    with pytest.raises(UserError, match=r"data\.mixture: would be ignored, because dataset= was passed"):
        load_config(config, has_dataset=True)
    load_config(config, need_data=True)


def test_overrides_reach_into_a_mixture(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", [{"prompt": "a"}])
    config = {"model": {"tiny": {}}, "algorithm": {"type": "sft"}, "data": {"mixture": [{"path": path}]}}
    assert load_config(config, ["--data.mixture.0.weight", "2"]).data.mixture[0].weight == 2


def test_names_on_prompts_and_groups(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", [{"prompt": "a", "answer": "b"}])
    data = data_of({"mixture": [{"path": path}]})
    (prompt,) = all_prompts(data, tokenizer, window=99, max_new_tokens=1, seed=0).take(0, 1)
    (group,) = all_examples(data, tokenizer, window=99, seed=0).batch(0, 1)
    assert isinstance(prompt, Prompt) and prompt.source == "a"
    assert isinstance(group, Group) and group.prompt.source == "a"


def test_inspecting_a_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rlft.cli import main

    a = write(tmp_path, "a.jsonl", [{"prompt": "1", "answer": "2"}])
    b = write(tmp_path, "b.jsonl", [{"prompt": "1", "answer": ""}])
    config = tmp_path / "mix.yaml"
    sources = "{path: %s, weight: 3}, {path: %s}" % (a, b)  # noqa: UP031
    config.write_text(f"model: {{tiny: {{}}}}\nalgorithm: {{type: sft}}\ndata: {{mixture: [{sources}]}}\n")
    assert main(["data", "inspect", "--model", str(config)]) == 2
    printed = capsys.readouterr().out
    assert "Usable: 1 of 1 rows." in printed and "b.jsonl:1: the completion in column 'answer' is empty" in printed
    assert main(["data", "inspect", a, "--model", str(config)]) == 0
    write(tmp_path, "b.jsonl", [{"prompt": "1", "answer": "3"}])
    assert main(["data", "inspect", "--model", str(config)]) == 0
    assert "Shares of the mixture: a 0.75, b 0.25" in capsys.readouterr().out
