"""`rlft eval --judge` on the command line. It calls actors.judge, which is imported only then."""

from __future__ import annotations

import argparse

from rlft.cli_synth import until_stopped


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Add its options to those of `rlft eval`."""
    parser.add_argument("--judge", metavar="FILE", help="YAML: a model behind an endpoint that compares answers")
    parser.add_argument("--out", metavar="FILE", help="for --judge: the JSONL file of verdicts (run.out)")


def run_judge(args: argparse.Namespace, overrides: list[str]) -> int:
    """Compare, print the report, and give the exit code."""

    def compare() -> None:
        from actors import judge

        print(judge.compare(args.target, args.judge, args.against, overrides, args.out).text())

    return until_stopped(compare)
