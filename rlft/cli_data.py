"""`rlft data`: looks at data before a run. Reads the arguments and calls rlft.data.inspect; imports it when asked."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlft.errors import UserError

if TYPE_CHECKING:
    from rlft.config import Config
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
    if config.data.path is None:
        raise UserError("no data file: give one, rlft data inspect FILE, or a configuration with data.path as --model")
    from rlft.data.inspect import inspect_rows
    from rlft.data.inspect_text import print_inspection
    from rlft.data.lenient import read_leniently

    with ExitStack() as stack:
        purpose = _purpose(config, is_config)
        model = _limits(config, purpose, stack)
        read, bad = read_leniently(config.data.path, split=config.data.split, max_rows=config.data.max_rows)
        found = inspect_rows(read, bad, config.data, purpose=purpose, model=model, num_examples=args.rows)
    print_inspection(found, sys.stdout)
    return 0 if found.usable else 2


def _config(args: argparse.Namespace, overrides: list[str], is_config: bool) -> Config:
    from rlft.config.load import load_config

    source = args.model if is_config else {} if args.model is None else {"model": {"path": args.model}}
    given = [] if args.file is None else [f"--data.path={args.file}"]
    return load_config(source, given + overrides, purpose="inspect")


def _purpose(config: Config, is_config: bool) -> Purpose | None:
    """What the data are for, where it was said; None to take the likeliest."""
    from rlft.config.algorithm import PRESETS

    name = config.algorithm.type
    if not is_config and "type" not in config.algorithm.model_fields_set:
        return None
    if name == "sft":
        return "sft"
    return "prompts" if name in PRESETS or ":" in name else None


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
    path = config.model.path
    if path is None:
        from rlft.models.tiny import make_tiny_model

        assert config.model.tiny is not None
        path = stack.enter_context(tempfile.TemporaryDirectory())
        make_tiny_model(config.model.tiny, Path(path), config.run.seed)
    tokenizer = load_tokenizer(path, config.model.chat_template)
    size = window(path)
    if purpose == "prompts":
        size = derived.window(config, size)
    return ModelLimits(tokenizer, size, config.generator.max_new_tokens, end_tokens(path, tokenizer))
