"""`rlft plan` on the command line: the memory that a run needs, before it takes any. It calls rlft.planning, which is
imported only then."""

from __future__ import annotations

import argparse
import json
from typing import Any

EXAMPLES = """\
examples:
  rlft plan configs/grpo_gsm8k.yaml --gpu-memory 80
  rlft plan configs/x.yaml --sequence-tokens 4096 --learner.num_ranks 4 --learner.zero_stage 3
  rlft plan configs/x.yaml --json

The model's configuration is read, its weights are not. docs/plan.md says what is counted, and how well.

exit codes: 0 it fits, or nobody knows how much memory there is; 2 bad input; 3 it does not fit."""
DOES_NOT_FIT = 3


def add_plan(commands: Any, shape: dict[str, Any]) -> None:
    """Add `plan` to the command line. `shape`: arguments that all parsers share."""
    about = "Say how much memory each role of a run needs, whether it fits, and what to change if it does not."
    parser = commands.add_parser("plan", help="the memory a run needs", description=about, epilog=EXAMPLES, **shape)
    parser.usage = "rlft plan CONFIG [--gpu-memory GiB] [--sequence-tokens N] [--json] [--section.key VALUE ...]"
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument("--gpu-memory", metavar="GiB", type=float, help="of each device (default: what is here)")
    parser.add_argument(
        "--sequence-tokens", metavar="N", type=int,
        help="tokens of a sample, prompt and completion (default: 512 and a completion; 2048 from data)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")
    parser.set_defaults(command=_plan, takes_overrides=True, parser=parser)


def _plan(args: argparse.Namespace, overrides: list[str]) -> int:
    from actors.process import set_environment
    from rlft.config.load import load_config
    from rlft.errors import UserError

    for name, value in (("--gpu-memory", args.gpu_memory), ("--sequence-tokens", args.sequence_tokens)):
        if value is not None and value <= 0:
            raise UserError(f"{name} {value}: expected more than 0")
    mode = load_config(args.config, overrides, purpose="inspect").cluster.mode
    config = load_config(args.config, [*overrides, "--cluster.mode=ray"])  # all checks but those for GPUs here
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"mode": mode})})
    set_environment()
    from rlft.planning.fitting import advise, as_json, devices
    from rlft.planning.plan import plan
    from rlft.planning.show import show

    given = None if args.gpu_memory is None else int(args.gpu_memory * (1 << 30))
    planned = plan(config, args.sequence_tokens)
    found = devices(planned, given)
    advice = advise(config, planned, given, args.sequence_tokens)
    if args.json:
        print(json.dumps(as_json(planned, found, advice), indent=1))
    else:
        show(planned, found, advice)
    return DOES_NOT_FIT if any(device.fits is False for device in found) else 0
