"""`rlft data`: looks at data before a run. Reads the arguments and calls rlft.data.inspect; imports it when asked."""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlft.errors import UserError

if TYPE_CHECKING:
    from rlft.config import Config
    from rlft.config.data import DataConfig
    from rlft.data.inspect_rows import ModelLimits, Purpose

ABOUT = """\
Look at a data file before a run: its columns, how a run understands them, what is learned of an example, token
lengths, duplicates, and every row that a run would drop or refuse, with its place. Exit code 0 when a run would take
the data, 2 when it would refuse them."""
EXAMPLES = """\
examples:
  rlft data inspect train.jsonl                                   without a tokenizer: texts, columns, duplicates
  rlft data inspect train.jsonl --model configs/sft.yaml          as that run would read it
  rlft data inspect train.jsonl --model Qwen/Qwen3-0.6B --algorithm.type sft --rows 3
  rlft data inspect --model configs/mix.yaml                      every source of its data.mixture

Keys of the configuration can be given too: --data.train_on last, --data.too_long drop, --data.max_rows 1000."""


def add_data(commands: Any, shape: dict[str, Any]) -> None:
    """Add `rlft data` to the parser's commands."""
    parser = commands.add_parser("data", help="look at data before a run", description="Look at data.", **shape)
    parser.set_defaults(parser=parser)
    parts = parser.add_subparsers(title="commands", metavar="COMMAND")
    inspect = parts.add_parser("inspect", help="look at a data file", description=ABOUT, epilog=EXAMPLES, **shape)
    inspect.usage = "rlft data inspect [FILE] [--model MODEL_OR_CONFIG] [--rows N] [--section.key VALUE ...]"
    inspect.add_argument("file", metavar="FILE", nargs="?", help="a data file; left out: what the configuration names")
    inspect.add_argument("--model", metavar="MODEL_OR_CONFIG", help="a model's folder or name, or a run's YAML file")
    inspect.add_argument("--rows", metavar="N", type=int, default=1, help="examples to show (default: 1)")
    inspect.set_defaults(command=_inspect, takes_overrides=True, parser=inspect)


def _inspect(args: argparse.Namespace, overrides: list[str]) -> int:
    if args.rows < 0:
        raise UserError(f"--rows: found {args.rows}, expected at least 0")
    is_config = args.model is not None and args.model.endswith((".yaml", ".yml"))
    config = _config(args, overrides, is_config)
    if config.algorithm.type == "tasks":
        if args.file is not None:
            raise UserError(
                f"{args.file}: algorithm.type is tasks, and each task reads rows of its own (tasks.N.path). Leave FILE "
                "out to look at all of them."
            )
        return _inspect_tasks(config)
    if config.data.path is None and not config.data.mixture:
        raise UserError("no data file: give one, rlft data inspect FILE, or a configuration with data.path as --model")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # data may have letters that the terminal does not know
    purpose, usable = _purpose(config, is_config), list[int]()
    with ExitStack() as stack:
        model = _limits(config, purpose, stack)
        for data, template in _sources(config):
            if usable:
                print(f"\n{'-' * 80}\n")
            usable.append(_look_at(data, purpose, _with_template(model, template), args.rows, config))
    if config.data.mixture and all(usable):
        from rlft.data.mixture import shares_of

        shares = shares_of(config.data, usable)
        parts = [f"{x.label} {share / sum(shares):.4g}" for x, share in zip(config.data.mixture, shares, strict=True)]
        by = "" if config.data.mixture_temperature is None else ", by usable rows"
        print(f"\nShares of the mixture{by}: {', '.join(parts)}")
    return 0 if all(usable) else 2


def _inspect_tasks(config: Config) -> int:
    """Read every task's rows as a run would, and say how they are understood. Raises UserError for rows that it would
    refuse."""
    from actors.process import prepare
    from rlft.data.tasks import load_tasks
    from rlft.data.tokenizer import load_tokenizer
    from rlft.models.load import window

    prepare(config, gpus=0)
    with ExitStack() as stack:
        path = _model_folder(config, stack)
        learned, held_out = load_tasks(config, load_tokenizer(path), window(path, config.model.adapter))
    print(learned.description)
    for rows in held_out:
        print(f"  {rows.task.name}, held out: {rows.description}")
    print("\nUsable. (Of tasks, the first row that a run would refuse is named, and there are no examples.)")
    return 0


def _sources(config: Config) -> list[tuple[DataConfig, str | None]]:
    """Each source as a data section of its own, and its chat template if that is not the model's."""
    if not config.data.mixture:
        return [(config.data, None)]
    from rlft.data.mixture import data_of

    return [(data_of(config.data, source), source.chat_template) for source in config.data.mixture]


def _look_at(
    data: DataConfig, purpose: Purpose | None, model: ModelLimits | None, num_examples: int, config: Config
) -> int:
    """Show one file; the number of rows that can be used, 0 when a run would refuse them."""
    from rlft.data.inspect import Uses, inspect_rows
    from rlft.data.inspect_text import print_inspection
    from rlft.data.lenient import read_leniently

    read, bad = read_leniently(str(data.path), split=data.split, max_rows=data.max_rows)
    check = partial(_check_columns, config) if purpose == "prompts" else None
    kind, knows = config.algorithm.type, "type" in config.algorithm.model_fields_set
    uses = Uses(knows and kind == "reward", knows and kind == "kto" and config.algorithm.preference_loss == "kto")
    found = inspect_rows(
        read, bad, data, purpose=purpose, model=model, num_examples=num_examples, check_columns=check, uses=uses
    )
    print_inspection(found, sys.stdout)
    return found.num_usable if found.usable else 0


def _check_columns(config: Config, columns: Mapping[str, Any]) -> None:
    """Raises UserError when a reward function is not there or needs another column. Runs the files that they are in."""
    from rewards.load import resolve

    for function in config.rewards.functions:
        resolve(function).check_columns(columns)


def _with_template(model: ModelLimits | None, template: str | None) -> ModelLimits | None:
    if model is None or template is None:
        return model
    from rlft.data.tokenizer import with_chat_template

    return replace(model, tokenizer=with_chat_template(model.tokenizer, template))


def _config(args: argparse.Namespace, overrides: list[str], is_config: bool) -> Config:
    from rlft.config.load import load_config

    source = args.model if is_config else {} if args.model is None else {"model": {"path": args.model}}
    given = [] if args.file is None else [f"--data.path={args.file}", "--data.mixture=[]"]
    return load_config(source, given + overrides, purpose="inspect")


def _purpose(config: Config, is_config: bool) -> Purpose | None:
    """What the data are for, where it was said; None to take the likeliest."""
    from rlft.config.derived import learns_from

    if not is_config and "type" not in config.algorithm.model_fields_set:
        return None
    purposes: dict[str | None, Purpose] = {
        "examples": "sft",
        "pairs": "pairs",
        "labels": "labels",
        "steps": "steps",
        None: "prompts",
    }
    return purposes[learns_from(config.algorithm)]


def _limits(config: Config, purpose: Purpose | None, stack: ExitStack) -> ModelLimits | None:
    """The tokenizer and the window of the configured model; None where there is none."""
    if config.model.path is None and config.model.tiny is None:
        return None
    from actors.process import prepare
    from rlft.config import derived
    from rlft.data.inspect_rows import ModelLimits
    from rlft.data.tokenizer import end_tokens, load_tokenizer
    from rlft.models.load import window

    prepare(config, gpus=0)
    path = _model_folder(config, stack)
    tokenizer = load_tokenizer(path, config.model.chat_template)
    size, tools = window(path, config.model.adapter), None
    if purpose == "prompts":
        size = derived.window(config, size)
        tools = _tools(config)
    return ModelLimits(tokenizer, size, config.generator.max_new_tokens, end_tokens(path, tokenizer), tools)


def _model_folder(config: Config, stack: ExitStack) -> str:
    """The configured model; a tiny one is made for the time of `stack`."""
    if config.model.path is not None:
        return config.model.path
    from rlft.models.tiny import make_tiny_model

    assert config.model.tiny is not None
    path = stack.enter_context(tempfile.TemporaryDirectory())
    make_tiny_model(config.model.tiny, Path(path), config.run.seed)
    return path


def _tools(config: Config) -> list[dict[str, Any]] | None:
    """What the environment shows in prompts. Runs the file that it is in."""
    from rlft.environments.build import configured_environment

    environment = configured_environment(config)
    return environment.tools if environment else None
