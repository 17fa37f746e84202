"""`rlft synth` on the command line: data made by another model. It reads the arguments and calls rlft.synthesis, which
is imported only then."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any

ABOUT = """\
Make training data with another model, behind any OpenAI-compatible endpoint (chat completions).

  rlft synth revise configs/synthesis/revise.yaml      answers, criticised and rewritten by a constitution
  rlft synth prefer configs/synthesis/prefer.yaml      which of two answers follows a principle better
  rlft synth distill configs/synthesis/distill.yaml    a teacher's answers that a reward function accepts
"""
COMMANDS = {
    "revise": "answers, criticised and rewritten by the principles of a constitution",
    "prefer": "pairs of answers, labelled by a judge that is asked in both orders",
    "distill": "a teacher's answers, kept where the reward functions accept them",
}
EXAMPLES = """\
examples:
  rlft synth {name} configs/synthesis/{name}.yaml --out made.jsonl
  rlft synth {name} configs/synthesis/{name}.yaml --endpoint.base_url http://localhost:8000/v1 --data.max_rows 10
  rlft synth {name} --all-keys

The same command goes on where it was stopped. OUT is the data; OUT.summary.json says what happened."""


def add_synth(commands: Any, shape: dict[str, Any]) -> None:
    """Add `synth` to the command line. `shape`: arguments that all parsers share."""
    parser = commands.add_parser("synth", help="make data with another model", description=ABOUT, **shape)
    parser.set_defaults(parser=parser)
    parts = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, about in COMMANDS.items():
        part = parts.add_parser(
            name, help=about, description=f"Make {about}.", epilog=EXAMPLES.format(name=name), **shape
        )
        part.usage = f"rlft synth {name} CONFIG [--out FILE] [--all-keys] [--section.key VALUE ...]"
        part.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file")
        part.add_argument("--out", metavar="FILE", help="the JSONL file to make (run.out)")
        part.add_argument("--all-keys", action="store_true", help="list every key: its type, its default, what it does")
        part.set_defaults(command=_synth, name=name, takes_overrides=True, parser=part)


def suggest(name: str, key: str) -> str | None:
    """The key of that command's configuration which `key` probably means."""
    from rlft.config.keys import suggest
    from rlft.synthesis.config import COMMANDS

    return suggest(key, COMMANDS[name])


def _synth(args: argparse.Namespace, overrides: list[str]) -> int:
    from rlft.config.load import describe_schema
    from rlft.errors import UserError
    from rlft.synthesis.config import COMMANDS
    from rlft.synthesis.run import run_job

    if args.all_keys:
        print(describe_schema(COMMANDS[args.name]), end="")
        return 0
    if args.config is None:
        raise UserError(f"name a YAML file, for instance configs/synthesis/{args.name}.yaml; see --help")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    out = [f"--run.out={args.out}"] if args.out is not None else []
    return until_stopped(lambda: print(run_job(args.name, args.config, [*overrides, *out]).text()))


def until_stopped(job: Callable[[], object]) -> int:
    """Do a job that goes on when it is started again. Gives the exit code; where Ctrl-C or SIGTERM (which raises
    SystemExit) stops it, a line says so."""
    try:
        job()
    except (KeyboardInterrupt, SystemExit) as stop:
        is_term = isinstance(stop, SystemExit)
        if is_term and stop.code != signal.SIGTERM:
            raise
        print(
            f"{'terminated (SIGTERM)' if is_term else 'interrupted'}. The same command goes on from here",
            file=sys.stderr,
        )
        return 128 + (signal.SIGTERM if is_term else signal.SIGINT)
    return 0
