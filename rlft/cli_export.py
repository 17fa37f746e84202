"""`rlft export` on the command line. It calls actors.export, which is imported only then."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLES = """\
examples:
  rlft export runs/x --to models/x                          full weights, or the adapter, as the run trained them
  rlft export runs/x --to models/x --merge --dtype bfloat16 the adapter merged into its base
  rlft export runs/x --to models/x --step 100
  rlft export runs/x --to models/x --push me/x              to the Hugging Face Hub too, private

What is written is loaded again with transformers and peft and must say what the checkpoint says. docs/export.md has
what each kind of adapter becomes and who can load it."""


def add_export(commands: Any, shape: dict[str, Any]) -> None:
    """Add `export` to the command line. `shape`: arguments that all parsers share."""
    about = "Write a checkpoint as a folder that transformers, PEFT or vLLM load, with a model card."
    parser = commands.add_parser(
        "export", help="write a model that others load", description=about, epilog=EXAMPLES, **shape
    )
    parser.usage = "rlft export CHECKPOINT_OR_RUN --to DIR [--merge] [--dtype TYPE] [--step N] [--push REPO]"
    parser.add_argument("target", metavar="CHECKPOINT_OR_RUN", help="a run's folder (its newest), or a checkpoint's")
    parser.add_argument("--to", metavar="DIR", required=True, help="a folder that is not there yet, or empty")
    parser.add_argument(
        "--merge", action="store_true", help="an adapter's run: a plain model, the adapter merged into it"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: as in the checkpoint)"
    )
    parser.add_argument("--step", metavar="N", type=int, help="the checkpoint of this step")
    parser.add_argument("--push", metavar="REPO", help="upload it to this repository on the Hugging Face Hub too")
    parser.set_defaults(command=_export, takes_overrides=False, parser=parser)


def _export(args: argparse.Namespace, overrides: list[str]) -> int:
    from actors.process import set_environment

    set_environment()
    from actors.export import export

    done = export(args.target, args.to, args.merge, args.dtype, args.step, args.push)
    print("\n".join(done.lines))
    return 0
