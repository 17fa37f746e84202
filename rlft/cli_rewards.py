"""`rlft rewards` on the command line. It calls actors.rescore, which is imported only then."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlft.errors import UserError

if TYPE_CHECKING:
    from actors.rescore import Scored

ABOUT = """\
Look at reward functions before a run, and at what others would have said of a run. Nothing is trained; no model
draws. The functions run in this process, as many groups at a time as rewards.num_actors."""
TEST = """\
examples:
  rlft rewards test configs/x.yaml answers.jsonl                       columns of the run's data, and `completion`
  rlft rewards test configs/x.yaml answers.jsonl --completions drafts  the texts are in the column drafts
  rlft rewards test configs/x.yaml answers.jsonl --rewards.functions '[{function: math}]' --out scored.jsonl

A row's completions are a text or a list of texts, which are scored as one group."""
REPLAY = """\
examples:
  rlft rewards replay runs/x                                       the same functions again: does anything differ?
  rlft rewards replay runs/x --steps 10-20 --rewards.functions '[{function: my_rewards.py:stricter}]'

The samples are those that the run has kept (tracking.rollouts_every)."""


def add_rewards(commands: Any, shape: dict[str, Any]) -> None:
    """Add `rewards` to the command line. `shape`: arguments that all parsers share."""
    parser = commands.add_parser("rewards", help="try reward functions", description=ABOUT, **shape)
    parser.set_defaults(parser=parser)
    parts = parser.add_subparsers(title="commands", metavar="COMMAND")
    test = parts.add_parser("test", help="score the completions in a file", epilog=TEST, **shape)
    test.usage = (
        "rlft rewards test CONFIG DATA [--completions COLUMN] [--rows N] [--out FILE] [--section.key VALUE ...]"
    )
    test.add_argument("config", metavar="CONFIG", help="YAML file with rewards.functions")
    test.add_argument("data", metavar="DATA", help="rows as the run's data.path has them, with completions")
    test.add_argument("--completions", metavar="COLUMN", help="the column with the completions")
    test.set_defaults(command=_test, takes_overrides=True, parser=test)
    replay = parts.add_parser("replay", help="score a run's samples again", epilog=REPLAY, **shape)
    replay.usage = "rlft rewards replay RUN [--steps N-M] [--rows N] [--out FILE] [--section.key VALUE ...]"
    replay.add_argument("run", metavar="RUN", help="a run's folder")
    replay.add_argument("--steps", metavar="N-M", help="of these steps alone; a step or a range")
    replay.set_defaults(command=_replay, takes_overrides=True, parser=replay)
    for part in (test, replay):
        part.add_argument("--rows", metavar="N", type=int, default=20, help="samples to show (default: 20)")
        part.add_argument("--out", metavar="FILE", help="write every sample with all parts to this JSONL file")


def _test(args: argparse.Namespace, overrides: list[str]) -> int:
    _check(args)
    from actors.rescore import score_file

    return _show(score_file(args.config, args.data, args.completions, overrides), args)


def _replay(args: argparse.Namespace, overrides: list[str]) -> int:
    _check(args)
    from actors.rescore import score_run

    return _show(score_run(args.run, args.steps, overrides, shown=args.rows), args)


def _check(args: argparse.Namespace) -> None:
    if args.rows < 0:
        raise UserError(f"--rows: found {args.rows}, expected at least 0")
    if args.out is not None and (Path(args.out).is_dir() or not Path(args.out).absolute().parent.is_dir()):
        raise UserError(f"--out {args.out}: expected the name of a file in a folder that is there")
    from actors.process import set_environment

    set_environment()


def _show(scored: Scored, args: argparse.Namespace) -> int:
    from rich.console import Console

    if args.rows:
        Console().print(scored.table(args.rows))
        print()
    print("\n".join(scored.lines))
    if args.out is not None:
        scored.write(args.out)
        print(f"every sample is in {args.out}")
    return 0
