"""The command line. It reads the arguments and calls the library; everything heavy is imported by the command that
needs it, so that `rlft --help` is instant."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlft import __version__, cli_export, cli_judge, cli_plan, cli_rewards, cli_synth
from rlft.cli_data import add_data
from rlft.errors import RunError, UserError

if TYPE_CHECKING:
    from rlft.config import Config

ABOUT = """\
Fine-tune language models with reinforcement learning.

  rlft quickstart                     train a small model on this machine in minutes; nothing is downloaded
  rlft train configs/x.yaml           train as the file says
  rlft eval runs/x                    accuracy and pass@k of a run's newest checkpoint; perplexity, golden sets, a judge
  rlft export runs/x --to models/x    a model that transformers, PEFT or vLLM load
  rlft plan configs/x.yaml            the memory that a run needs, before it takes any
  rlft data inspect train.jsonl       what a run would make of a data file, and which rows it would refuse
  rlft rewards test configs/x.yaml answers.jsonl      what its reward functions say, before any training
  rlft synth distill configs/synthesis/distill.yaml     data made by another model
  rlft config show configs/x.yaml     the complete configuration, defaults included
"""
OVERRIDES = """\
Any key of the configuration can be changed on the command line:
  rlft train configs/x.yaml --loop.steps 3 --data.path=my.jsonl --rewards.functions.0.weight 2
`rlft config show --all-keys` lists the keys."""
TRAIN = f"""\
examples:
  rlft train configs/grpo_gsm8k_smoke.yaml --data.path questions.jsonl
  rlft train configs/x.yaml --cluster.mode inline          all in one process, no Ray; a debugger works
  rlft train configs/x.yaml --resume auto                  go on where the run was stopped

{OVERRIDES}"""
EVAL = """\
examples:
  rlft eval runs/x                                          the data that the run evaluates on
  rlft eval runs/x --data test.jsonl
  rlft eval runs/x/checkpoints/step-000100 --samples 8 --temperature 1.0     pass@8, @4 and @2
  rlft eval runs/x --perplexity --data held_out.jsonl       of worked examples or documents, rows as for SFT
  rlft eval models/base --perplexity --data held_out.jsonl  of a Hugging Face folder
  rlft eval runs/x --golden golden.yaml                     against the model that training started from
  rlft eval runs/x --golden golden.yaml --against runs/y
  rlft eval runs/x --judge judge.yaml --data prompts.jsonl  win rate against that model, as another model sees it

Any key of the run's configuration can be changed too, e.g. --evaluation.max_rows 50.
docs/evaluation.md has what is measured, and what a golden set looks like.

exit codes: 0 done, and with --golden all fine; 1 could not go on; 2 bad input; 3 with --golden: something got worse
than the base, a case that must pass does not, or a threshold was missed."""
CONFIG = f"""\
examples:
  rlft config check configs/*.yaml
  rlft config show configs/x.yaml --loop.steps 3
  rlft config show --all-keys

{OVERRIDES}"""


GOT_WORSE = 3  # exit code
_GO_ON = (
    "The same command with --resume auto goes on from the last checkpoint, if there is one (loop.save_every; without "
    "it only the end of a run is saved)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 the run could not go on, 2 bad input, 3 a golden set shows a
    model that got worse, 130 interrupted."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except (UserError, RunError) as error:
        if _wants_traceback():
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        if _wants_traceback():
            raise
        print(f"\ninterrupted. {_GO_ON}", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:
            raise
        print(f"terminated (SIGTERM). {_GO_ON}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except BrokenPipeError:  # `rlft config show x.yaml | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _wants_traceback() -> bool:
    return os.environ.get("RLFT_TRACEBACK", "") not in ("", "0")


def _run(argv: list[str]) -> int:
    overrides, words = _split_overrides(argv)
    parser = _parser()
    args, unknown = parser.parse_known_args(words)
    if unknown:
        raise UserError(_unknown(unknown[0], args))
    if args.command is None:
        args.parser.print_help()
        return 0
    if overrides and not args.takes_overrides:
        raise UserError(f"{args.parser.prog} takes no configuration keys, found {overrides[0]}; see its --help")
    return args.command(args, overrides)


def _split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    if not any(word.startswith("--") and "." in word.partition("=")[0] for word in argv):
        return [], argv
    from rlft.config.overrides import split_overrides

    return split_overrides(argv)


def _unknown(word: str, args: argparse.Namespace) -> str:
    name = word.partition("=")[0]
    if not name.startswith("--"):
        return f'unexpected argument "{word}"; see rlft --help'
    from rlft.config.keys import suggest

    options = [option for action in args.parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.75)
    key, job = name.removeprefix("--"), getattr(args, "name", None)
    meant = near[0].removeprefix("--") if near else cli_synth.suggest(job, key) if job else suggest(key)
    return f"unknown option {name}; " + (f"did you mean --{meant}?" if meant else "see rlft --help")


SHAPE: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlft", description=ABOUT, **SHAPE)
    parser.add_argument("--version", action="version", version=f"rlft {__version__}")
    parser.set_defaults(command=None, takes_overrides=False, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_quickstart(commands)
    _add_train(commands)
    _add_eval(commands)
    add_data(commands, SHAPE)
    _add_config(commands)
    cli_export.add_export(commands, SHAPE)
    cli_plan.add_plan(commands, SHAPE)
    cli_rewards.add_rewards(commands, SHAPE)
    cli_synth.add_synth(commands, SHAPE)
    return parser


def _add_quickstart(commands: Any) -> None:
    about = "Make a small model, warm it up with SFT and train it with GRPO on sorting digits. Offline, no GPU needed."
    parser = commands.add_parser("quickstart", help="train a small model in minutes", description=about, **SHAPE)
    parser.add_argument("--dir", help="where to put everything (default: the next free runs/quickstart-N)")
    parser.add_argument(
        "--mode",
        choices=("inline", "local"),
        default="local",
        help="local: Ray actors on this machine (default); inline: all in this process",
    )
    parser.add_argument("--seed", type=int, default=0, help="fixes weights, data and samples (default: 0)")
    parser.set_defaults(command=_quickstart, takes_overrides=False, parser=parser)


def _add_train(commands: Any) -> None:
    about = "Train a model as a configuration file says."
    parser = commands.add_parser("train", help="train a model", description=about, epilog=TRAIN, **SHAPE)
    parser.usage = "rlft train CONFIG [--resume auto|PATH] [--section.key VALUE ...]"
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument(
        "--resume", metavar="auto|PATH", help="go on from the run's newest good checkpoint (auto), or from a checkpoint"
    )
    parser.set_defaults(command=_train, takes_overrides=True, parser=parser)


def _add_eval(commands: Any) -> None:
    about = (
        "Measure a checkpoint with its run's generator and rewards (accuracy, pass@k, text metrics), the perplexity of "
        "texts, a golden set, or its win rate as a judge sees it."
    )
    parser = commands.add_parser("eval", help="measure a checkpoint", description=about, epilog=EVAL, **SHAPE)
    parser.usage = (
        "rlft eval CHECKPOINT_OR_RUN [--data FILE] [--samples K] [--temperature T] [--section.key VALUE ...]\n"
        "       rlft eval CHECKPOINT_OR_RUN_OR_MODEL --perplexity --data FILE [--section.key VALUE ...]\n"
        "       rlft eval CHECKPOINT_OR_RUN_OR_MODEL --golden FILE [--against BASE] [--section.key VALUE ...]\n"
        "       rlft eval CHECKPOINT_OR_RUN_OR_MODEL --judge FILE --data FILE [--against BASE] [--out FILE]\n"
        "                 [--section.key VALUE ...]"
    )
    parser.add_argument("target", metavar="CHECKPOINT_OR_RUN", help="a checkpoint's folder, or a run's (its newest)")
    parser.add_argument("--data", metavar="FILE", help="held-out prompts, or texts (evaluation.path)")
    parser.add_argument("--samples", metavar="K", help="completions per prompt (evaluation.samples_per_prompt)")
    parser.add_argument("--temperature", metavar="T", help="0 takes the likeliest token (evaluation.temperature)")
    parser.add_argument("--perplexity", action="store_true", help="how likely the model finds the texts of --data")
    parser.add_argument("--golden", metavar="FILE", help="cases that must not get worse, YAML or JSONL; exit code 3")
    parser.add_argument("--against", metavar="BASE", help="for --golden and --judge: what to compare with")
    cli_judge.add_judge(parser)
    parser.set_defaults(command=_eval, takes_overrides=True, parser=parser)


def _add_config(commands: Any) -> None:
    about = "Look at configurations without starting anything."
    parser = commands.add_parser("config", help="show or check a configuration", description=about, **SHAPE)
    parser.set_defaults(parser=parser)
    parts = parser.add_subparsers(title="commands", metavar="COMMAND")
    show = parts.add_parser("show", help="print the complete configuration", epilog=CONFIG, **SHAPE)
    show.usage = "rlft config show [CONFIG] [--all-keys] [--section.key VALUE ...]"
    show.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file")
    show.add_argument("--all-keys", action="store_true", help="list every key: its type, its default, what it does")
    show.set_defaults(command=_config_show, takes_overrides=True, parser=show)
    check = parts.add_parser("check", help="say everything that is wrong with files", epilog=CONFIG, **SHAPE)
    check.usage = "rlft config check CONFIG [CONFIG ...] [--section.key VALUE ...]"
    check.add_argument("configs", metavar="CONFIG", nargs="+", help="YAML files")
    check.set_defaults(command=_config_check, takes_overrides=True, parser=check)


def _quickstart(args: argparse.Namespace, overrides: list[str]) -> int:
    _prepare()
    from actors import quickstart

    quickstart.main(args.dir, args.mode, args.seed)
    return 0


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    from rlft.config.load import load_config

    config = load_config(args.config, overrides, need_data=True)
    _prepare()
    from actors import launch

    launch.train(config, resume=args.resume)
    return 0


def _eval(args: argparse.Namespace, overrides: list[str]) -> int:
    for folder in filter(None, (args.target, args.against)):
        if not Path(folder).is_dir():
            from rlft.config.problems import near_files

            raise UserError(f"{folder}: there is no such checkpoint or run folder{near_files(Path(folder))}")
    _check_eval(args)
    flags = {
        "evaluation.path": args.data,
        "evaluation.samples_per_prompt": args.samples,
        "evaluation.temperature": args.temperature,
    }
    given = [f"--{key}={value}" for key, value in flags.items() if value is not None] + overrides
    _prepare()
    if args.golden is not None:
        return _golden(args, given)
    if args.judge is not None:
        return cli_judge.run_judge(args, given)
    from actors.evaluate import evaluate, measure_perplexity

    for name, value in (measure_perplexity if args.perplexity else evaluate)(args.target, given).items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    return 0


_IDLE = {  # options that would do nothing, and why
    "--perplexity": (("--samples", "--temperature"), "which draws nothing"),
    "--golden": (
        ("--samples", "--temperature", "--data"), "which brings its own prompts and takes the likeliest tokens"
    ),
    "--judge": (("--samples",), "which compares one answer to each prompt"),
}  # fmt: skip


def _check_eval(args: argparse.Namespace) -> None:
    """No option beside what is measured that would do nothing."""
    asked = {"--perplexity": args.perplexity, "--golden": args.golden is not None, "--judge": args.judge is not None}
    found = [option for option, is_asked in asked.items() if is_asked]
    if len(found) > 1:
        raise UserError(f"{' and '.join(found)} measure different things; ask for one at a time")
    mode = found[0] if found else None
    if args.against is not None and mode not in ("--golden", "--judge"):
        raise UserError("--against has no effect without --golden FILE or --judge FILE; take it out")
    if args.out is not None and mode != "--judge":
        raise UserError("--out has no effect without --judge FILE; take it out")
    options = {"--samples": args.samples, "--temperature": args.temperature, "--data": args.data}
    for option, value in options.items():
        if mode is not None and value is not None and option in _IDLE[mode][0]:
            raise UserError(f"{option} has no effect with {mode}, {_IDLE[mode][1]}; take it out")


def _golden(args: argparse.Namespace, overrides: list[str]) -> int:
    from actors.golden import compare

    result = compare(args.target, args.golden, args.against, overrides)
    print(result.lines)
    for reason in result.reasons:
        print(f"NOT FINE  {reason}")
    if not result.reasons:
        print("fine: nothing got worse, nothing that must pass fails, no threshold was missed")
    return GOT_WORSE if result.reasons else 0


def _prepare() -> None:
    """Before torch is imported. SIGTERM (a scheduler's stop) unwinds like Ctrl-C; Ray's own handler does the same."""
    from actors.process import set_environment

    set_environment()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))


def _config_show(args: argparse.Namespace, overrides: list[str]) -> int:
    from rlft.config.load import describe_schema, dump_config, load_config

    if args.config is None and not args.all_keys:
        raise UserError("name a YAML file, or use --all-keys to list every key")
    if args.config is not None:
        print(dump_config(load_config(args.config, overrides)), end="")
    if args.all_keys:
        print(describe_schema(), end="")
    return 0


def _check_rewards(config: Config) -> None:
    """Whether reward functions and environment can be found (which runs the files that they are in)."""
    from rewards.load import resolve

    for function in config.rewards.functions:
        resolve(function)
    if config.environment is not None:
        from rlft.environments.load import load_environment

        load_environment(config.environment)


def _config_check(args: argparse.Namespace, overrides: list[str]) -> int:
    from rlft.config.checks import notes
    from rlft.config.load import load_config

    failed = False
    for path in args.configs:
        try:
            config = load_config(path, overrides)
            _check_rewards(config)
        except UserError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
            continue
        print(f"ok: {path}")
        for note in notes(config):
            print(f"  note: {note}")
    return 2 if failed else 0
