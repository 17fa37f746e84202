"""Reading a configuration: YAML, overrides, and errors that teach, all at once."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.config.keys import schema_keys, suggest
from rlft.config.load import describe_schema, dump_config, load_config
from rlft.config.yaml_text import read_yaml, write_yaml
from rlft.errors import UserError

GOOD = """\
model:
  tiny: {}
rewards:
  functions:
    - function: exact_match
"""


def write(folder: Path, text: str, name: str = "my_run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def error_of(source, overrides=()) -> str:
    with pytest.raises(UserError) as caught:
        load_config(source, overrides)
    return str(caught.value)


def test_the_run_is_named_after_its_file(tmp_path):
    assert load_config(write(tmp_path, GOOD)).run.name == "my_run"
    assert load_config(write(tmp_path, GOOD + "run: {name: other}")).run.name == "other"
    assert load_config(write(tmp_path, GOOD + "run: {seed: 3}")).run.name == "my_run"


@pytest.mark.parametrize("text", ["1e-6", "1.0e-06", "0.000001", "1E-6", ".000001"])
def test_floats_in_every_spelling(tmp_path, text):
    assert load_config(write(tmp_path, GOOD + f"learner: {{lr: {text}}}")).learner.lr == 1e-6


def test_yaml_words_are_text_as_in_yaml_1_2():
    data, _, _ = read_yaml("[no, on, 1:30, 2026-11-22, 012, true, null, 0x10, 1_000, 1e5, .inf]")
    assert data == ["no", "on", "1:30", "2026-11-22", "012", True, None, 16, 1000, 1e5, float("inf")]


def test_overrides_in_every_spelling(tmp_path):
    words = ["--loop.steps", "7", "--loop.max-staleness=2", "rewards.functions.0.weight=2.5", "--data.path", "10"]
    words += ["--rewards.functions.1.function", "finished", "--rewards.functions.1.timeout-s=3", "--run.name=7"]
    config = load_config(write(tmp_path, GOOD), words)
    assert (config.loop.steps, config.loop.max_staleness, config.data.path, config.run.name) == (7, 2, "10", "7")
    assert [(item.function, item.weight) for item in config.rewards.functions] == [
        ("exact_match", 2.5),
        ("finished", 1.0),
    ]
    assert config.rewards.functions[1].timeout_s == 3
    same = load_config(write(tmp_path, GOOD), {"loop.steps": 7, "loop.max_staleness": 2})
    assert (same.loop.steps, same.loop.max_staleness) == (7, 2)


def test_a_later_override_wins_and_null_clears(tmp_path):
    path = write(tmp_path, GOOD + "data: {prompt_column: question}")
    config = load_config(path, ["--loop.steps", "3", "--loop.steps", "4", "--data.prompt_column", "null"])
    assert config.loop.steps == 4
    assert config.data.prompt_column is None


def test_overrides_open_sections_that_are_not_in_the_file(tmp_path):
    config = load_config(write(tmp_path, GOOD), ["--model.tiny.num_layers", "2", "--model.adapter.rank=8"])
    assert config.model.tiny and config.model.tiny.num_layers == 2
    assert config.model.adapter and config.model.adapter.rank == 8


def test_free_mappings_keep_their_names():
    config = load_config(
        {"model": {"tiny": {}}, "rewards": {"functions": [{"function": "math"}]}},
        ["--rewards.functions.0.args.my-key", "3", "--learner.resources.big-node", "1"],
    )
    assert config.rewards.functions[0].args == {"my-key": 3}
    assert config.learner.resources == {"big-node": 1}


def test_all_problems_come_at_once_each_with_its_place(tmp_path):
    path = write(
        tmp_path,
        """\
group_size: 4
algorithm:
  groupsize: 8
  num_minibatches: 3
model:
  tiny: {}
loop:
  steps: many
  steps: 3
rewards:
  functions:
    - weight: 2
""",
    )
    message = error_of(path, ["--learner.lr", "-1", "--data.paht=x"])
    assert "7 problems" in message
    for line in (
        f"{path}:1: group_size: unknown key; did you mean algorithm.group_size?",
        f"{path}:3: algorithm.groupsize: unknown key; did you mean algorithm.group_size?",
        f"{path}:4: algorithm.num_minibatches: 3 does not divide loop.prompts_per_step 16",
        f"{path}:9: loop.steps: is there twice, first in line 8",
        f"{path}:12: rewards.functions.0.function: is required",
        "--learner.lr: found -1 (a number), expected a number, above 0",
        "--data.paht: unknown key; did you mean data.path?",
    ):
        assert line in message


@pytest.mark.parametrize("wrong", ["betas: [0.9, x]", "betas: [0.9]", "zero_stage: 7", "resources: {big: x}"])
def test_a_wrong_key_does_not_hide_what_is_wrong_between_others(tmp_path, wrong):
    message = error_of(write(tmp_path, GOOD + f"learner: {{{wrong}, min_lr_ratio: 0.5}}"))
    assert "2 problems" in message
    assert "learner.min_lr_ratio: has no effect" in message


def test_a_wrong_key_is_not_told_twice(tmp_path):
    message = error_of(write(tmp_path, "model: {pth: x}\nrewards: {functions: [{name: x}]}"))
    assert "2 problems" in message  # neither "no model" nor "no reward function" on top


@pytest.mark.parametrize(
    ("section", "found", "expected"),
    [
        ("loop: {steps: many}", '"many" (text)', "an integer, at least 1"),
        ("loop: {steps: 2.5}", "2.5 (a number)", "an integer"),
        ("loop: {steps: true}", "true", "an integer"),
        ('loop: {steps: "3"}', '"3" (text)', "an integer"),
        ("learner: {lr: .nan}", "nan", "a number, above 0"),
        ("learner: {betas: [0.9]}", "[0.9]", "a list of 2 numbers"),
        ("learner: {betas: [0.9, x]}", '"x"', "a list of 2 numbers"),
        ("learner: {schedule: cosin}", '"cosin"', "one of constant, linear, cosine"),
        ("run: {name: 3}", "3 (a number)", 'put quotes around it: "3"'),
        ("tracking: {tensorboard: 1}", "1 (a number)", "true or false"),
        ("generator: {stop: x}", '"x"', "a list of texts"),
        ("generator: {stop: [x, 3]}", "3 (a number)", "a list of texts"),
        ("model: {adapter: {target_modules: 3}}", "3 (a number)", "text or a list of texts"),
        ("learner: {resources: {big: x}}", '"x"', "a mapping of names to numbers"),
        ("algorithm: 3", "3 (a number)", "a section"),
    ],
)
def test_wrong_types_say_what_was_found_and_expected(tmp_path, section, found, expected):
    key = section.split(":")[0]
    path = write(tmp_path, GOOD if key != "model" else "")
    message = error_of(write(tmp_path, path.read_text() + section))
    assert found in message
    assert expected in message
    assert f"{path}:" in message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("group_size", "algorithm.group_size"),
        ("generator.group_size", "algorithm.group_size"),
        ("algorithm.groupsize", "algorithm.group_size"),
        ("algorithm.group-sise", "algorithm.group_size"),
        ("algoritm", "algorithm"),
        ("rewards.functions.1.wieght", "rewards.functions.1.weight"),
        ("learner.cpu", "learner.cpus"),
        ("generator.cpu", "generator.cpus"),
        ("algorithm.num_generations", "algorithm.group_size"),
        ("learning_rate", "learner.lr"),
        ("max_completion_length", "generator.max_new_tokens"),
        ("loop.num_steps", "loop.steps"),
        ("algorithm.zzzqqq", None),
    ],
)
def test_suggestions_search_the_whole_schema(typed, meant):
    assert suggest(typed) == meant


def test_an_unknown_key_without_a_near_one_lists_the_section(tmp_path):
    message = error_of(write(tmp_path, GOOD + "data: {zzzqqq: 1}"))
    assert "unknown key; data has path, split, prompt_column" in message


def test_yaml_syntax_errors_name_the_line(tmp_path):
    assert "my_run.yaml:2: this is not YAML" in error_of(write(tmp_path, "loop:\n\tsteps: 3\n"))
    assert "does not allow tabs" in error_of(write(tmp_path, "loop:\n\tsteps: 3\n"))
    assert "my_run.yaml:3: this is not YAML" in error_of(write(tmp_path, "a: 1\nb: 2\nc: *nothing\n"))
    assert "contain itself" in error_of(write(tmp_path, "a: &a\n  b: *a\n"))


@pytest.mark.parametrize("text", ["- 1\n", "hello\n", "3\n"])
def test_a_file_without_sections(tmp_path, text):
    assert "expected sections" in error_of(write(tmp_path, text))


def test_an_empty_file_says_what_is_missing(tmp_path):
    message = error_of(write(tmp_path, ""))
    assert "no model" in message
    assert "no reward function" in message


def test_empty_sections_take_their_defaults(tmp_path):
    config = load_config(write(tmp_path, GOOD + "generator:\nloop:\n"))
    assert config.loop.steps == 100


def test_a_missing_file_names_those_near_it(tmp_path):
    write(tmp_path, GOOD, "grpo_gsm8k.yaml")
    assert "Near it" in error_of(tmp_path / "grpo_gsm8.yaml")
    assert "grpo_gsm8k.yaml" in error_of(tmp_path / "grpo_gsm8.yaml")
    assert "does not exist" in error_of(tmp_path / "nowhere" / "x.yaml")
    assert "is a folder" in error_of(tmp_path)


def test_unreadable_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"run: \xff\xfe")
    assert "not a UTF-8 text file" in error_of(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--loop.steps"], "--loop.steps: needs a value"),
        (["--loop.steps", "--loop.save_every", "3"], "--loop.steps: needs a value"),
        (["loop.steps"], "is no override"),
        (["--rewards.functions.5.weight=1"], "a list of 1; expected an index, 0 to 1"),
        (["--rewards.functions.x.weight=1"], "a list of 1; expected an index, 0 to 1"),
        (["--data.path.x=1"], "--data.path.x: data.path: found {'x': 1} (a mapping), expected text"),
        (["--loop.steps=[1"], "--loop.steps: the value"),
    ],
)
def test_overrides_that_cannot_be_read(tmp_path, words, said):
    assert said in error_of(write(tmp_path, GOOD), words)


def test_an_override_cannot_replace_a_value_by_a_section_in_silence(tmp_path):
    path = write(tmp_path, GOOD + "data: x.jsonl\n")
    message = error_of(path, ["--data.path", "y"])
    assert 'data is "x.jsonl" (text) and holds no keys' in message


def test_a_complete_dump_loads_again_to_the_same(tmp_path):
    source = {
        "run": {"name": "1e-6"},
        "model": {"tiny": {"num_layers": 2}, "adapter": {"target_modules": ["a", "b"]}},
        "rewards": {"functions": [{"function": "math", "args": {"x": None, "y": "no"}}]},
        "generator": {"stop": ["\n", "010", "# x", "ü", "1e5"]},
        "learner": {"betas": [0.9, 0.95], "lr": 1e-7},
    }
    config = load_config(source)
    again = load_config(write(tmp_path, dump_config(config)))
    assert again == config
    assert again.learner.betas == (0.9, 0.95)


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists))
def test_yaml_round_trip(value):
    assert read_yaml(write_yaml({"key": value}))[0] == {"key": value}


def test_every_key_is_described_with_a_sentence():
    text = describe_schema()
    for path, key in schema_keys().items():
        assert path in text
        assert key.field.description or key.section, f"{path} has no sentence under it"
    assert "algorithm.group_size: an integer, at least 1; default 8\n    Samples per prompt." in text
