"""The built-in reward `code`: does the program in a completion pass the tests of its row? See docs/code_rewards.md.

Knows nothing about Ray or models, nor how a sandbox is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.code.executor import Choice, Executor, Job, executor_for
from rewards.code.extract import METHODS_CLASS, defines, find_program, parses
from rewards.code.languages import LANGUAGES, command_for
from rewards.code.pool import TIERS, Settings
from rewards.code.shapes import TEST_COLUMNS, Task, task_of
from rewards.texts import Completion, completion_text
from rlft.errors import UserError
from rlft.samples import RewardResult

MODES = ("auto", "call", "stdio")
_NUMBERS = {
    "timeout_s": (0.1, 300.0),
    "memory_mb": (32, 16384),
    "disk_mb": (1, 4096),
    "tolerance": (0, 1),
    "parallel": (0, 256),
}
_COLUMNS = ("tests_column", "entry_column", "setup_column")
_SERVERS = ("tier", "parallel", "disk_mb", "modules", "allow_unsandboxed")  # what an executor's server has chosen
_WHOLE = ("memory_mb", "disk_mb", "parallel")
_PROVIDED = ("prompts", "completion_ids", "finish_reasons")


@dataclass(frozen=True)
class Options:
    """The args of the reward."""

    mode: str = "auto"
    tests_column: str | None = None
    entry_column: str | None = None
    setup_column: str | None = None
    language: str = "python"
    timeout_s: float = 5.0
    memory_mb: int = 512
    disk_mb: int = 64
    partial: bool = False
    tolerance: float = 0.0
    tier: str = "auto"
    parallel: int = 0
    modules: tuple[str, ...] = ()
    executor: str | None = None
    allow_unsandboxed: bool = False

    def choice(self) -> Choice:
        """Which executor serves these."""
        settings = Settings(self.tier, self.parallel, self.disk_mb, self.modules, self.allow_unsandboxed)
        return Choice(settings, self.executor)


_LEETCODE = (  # there, such names need no import; in one line, and the built-ins last: math has a pow of its own
    "import bisect, collections, functools, heapq, itertools, math, re, string; from typing import *; "
    "from collections import *; from heapq import *; from bisect import *; from functools import *; "
    "from itertools import *; from math import *; from builtins import *\n"
)


def code_reward(
    completions: Sequence[Completion], options: Options | None = None, runner: Executor | None = None, **columns: Any
) -> list[RewardResult]:
    """1 for a completion whose program passes every test of its row, else 0; with `partial` the share that it passes.

    Statuses: `ok`, `wrong`, `unparsed` (no program in the completion), `timeout` (value 0: the program does not end).
    Without a value: `error` (the row's tests cannot be run, or the sandbox failed) and `refused` (no sandbox holds).

    Args, all of them optional: the fields of Options, by name (docs/code_rewards.md explains each). `runner` runs the
    jobs; without one an executor that this process keeps.
    """
    if options is None:
        given = {name: columns.pop(name) for name in Options.__dataclass_fields__ if _is_arg(name, columns)}
        options = make_options(**given)
    rows = [
        {name: values[i] for name, values in columns.items() if name not in _PROVIDED} for i in range(len(completions))
    ]
    results: list[RewardResult | None] = [None] * len(completions)
    jobs: dict[int, Job] = {}
    for i, (completion, row) in enumerate(zip(completions, rows, strict=True)):
        made = make_job(completion_text(completion), row, options)
        if isinstance(made, RewardResult):
            results[i] = made
        else:
            jobs[i] = made
    if jobs:
        outcomes = (runner or executor_for(options.choice())).run(list(jobs.values()))
        for i, outcome in zip(jobs, outcomes, strict=True):
            results[i] = result_of(outcome, options.partial)
    return [result for result in results if result is not None]


def make_job(text: str, row: Mapping[str, Any], options: Options) -> Job | RewardResult:
    """What is to be run for one completion, or the result when there is nothing to run."""
    try:
        task = task_of(row, options.tests_column, options.entry_column, options.setup_column, options.mode)
    except (ValueError, TypeError) as error:
        return RewardResult(None, "error", f"the row's tests: {error}")
    found = find_program(text, options.language, task.entry)
    if found is None:
        return RewardResult(0.0, "unparsed", "no program in the completion")
    limits = {
        "timeout_s": float(options.timeout_s), "memory_mb": options.memory_mb, "stop_at_first": not options.partial,
    }  # fmt: skip
    program, fenced = _assembled(found[0], task), found[1]
    if options.language == "python" and not fenced and not parses(program):
        return RewardResult(0.0, "unparsed", "no fenced block, and the text as a whole is no Python")
    if task.cases:
        command = None
        if options.language != "python":
            command = {"language": options.language} if options.executor else command_for(options.language)
        cases = [dict(case) for case in task.cases]
        return {
            "mode": "script", "program": program, "cases": cases, "tolerance": options.tolerance, "command": command,
            **limits,
        }  # fmt: skip
    if options.language != "python":
        return RewardResult(None, "error", f"tests of functions need Python, and language is {options.language}")
    entry = _entry(task, program)
    if entry and entry.startswith(f"{METHODS_CLASS}()") and "from __future__" not in program:
        program = _LEETCODE + program
    tests = {"setup": task.setup, "tests": list(task.tests), "entry": entry, "names": list(task.names)}
    return {"mode": "call", "program": program, **tests, **limits}


def _assembled(code: str, task: Task) -> str:
    """The program: of a row whose prompt is code, what comes before the function, or the prompt to go on from."""
    if not task.prompt or not task.entry:
        return code
    if not defines(code, task.entry):
        return task.prompt + code
    return f"{task.prompt.partition(f'def {task.entry}')[0]}\n{code}"


def _entry(task: Task, program: str) -> str | None:
    """As an expression in the program. Data of the form of LeetCode names a method of the class Solution."""
    entry = task.entry
    if entry and entry.isidentifier() and not defines(program, entry) and defines(program, METHODS_CLASS):
        return f"{METHODS_CLASS}().{entry}"
    return entry


def result_of(outcome: Mapping[str, Any], partial: bool) -> RewardResult:
    """An outcome of an executor as a result. Its words came from a program: one line of visible characters."""
    status, detail = outcome["status"], "".join(c if c.isprintable() else " " for c in str(outcome["detail"])[:300])
    seconds = float(outcome.get("seconds", 0.0))
    if status in ("error", "refused"):
        return RewardResult(None, status, detail, seconds)
    value = outcome["passed"] / max(outcome["total"], 1) if partial else float(status == "ok")
    if status not in ("ok", "wrong", "timeout"):
        return RewardResult(None, "error", f"an outcome that is none: {detail}", seconds)
    return RewardResult(value, status, detail, seconds)


def make_options(**args: Any) -> Options:
    """Options of these args. Raises UserError that names the arg, what it is, and what was expected."""
    for name, (least, most) in _NUMBERS.items():
        value = args.get(name, least)
        kinds = int if name in _WHOLE else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            raise UserError(f"reward 'code': {name} is {value!r}; expected a number from {least} to {most}")
    for name in ("partial", "allow_unsandboxed"):
        if not isinstance(args.get(name, False), bool):
            raise UserError(f"reward 'code': {name} is {args[name]!r}; expected true or false")
    for name, choices in {"mode": MODES, "tier": ("auto", *TIERS), "language": ("python", *LANGUAGES)}.items():
        if args.get(name, choices[0]) not in choices:
            raise UserError(f"reward 'code': {name} is {args[name]!r}; expected {', '.join(choices)}")
    for name in (*_COLUMNS, "executor"):
        if args.get(name) is not None and not isinstance(args[name], str):
            raise UserError(f"reward 'code': {name} is {args[name]!r}; expected a text")
    modules = args.get("modules", ())
    if not isinstance(modules, list | tuple) or not all(isinstance(name, str) for name in modules):
        raise UserError(f"reward 'code': modules is {modules!r}; expected a list of names, such as [numpy]")
    if args.get("executor"):
        _check_executor(args)
    return Options(**{**args, "modules": tuple(modules)})


def _check_executor(args: Mapping[str, Any]) -> None:
    url = args["executor"]
    if not url.startswith(("http://", "https://")):
        raise UserError(f"reward 'code': executor is {url!r}; expected http://host:port")
    if "@" in url:
        raise UserError("reward 'code': executor has a name or password in it; its word is in RLFT_CODE_TOKEN")
    ignored = [name for name in _SERVERS if name in args]
    if ignored:
        raise UserError(f"reward 'code': {ignored[0]} has no effect with an executor, whose server says; leave it out")


def check_columns(names: Iterable[str], **args: Any) -> None:
    """Raise UserError when the data lacks a column that args name, or has none with tests."""
    names = list(names)
    for key in _COLUMNS:
        if args.get(key) is not None and args[key] not in names:
            raise UserError(
                f"reward 'code': {key} is {args[key]!r}, and the data has no such column. Columns there: "
                f"{', '.join(names) or 'none'}."
            )
    if args.get("tests_column") is None and not {*TEST_COLUMNS} & {*names} and not {"inputs", "outputs"} <= {*names}:
        raise UserError(
            f"reward 'code': the data has no column with tests; looked for {', '.join(TEST_COLUMNS)}, inputs and "
            f"outputs. Columns there: {', '.join(names) or 'none'}. Name it with args: {{tests_column: ...}}."
        )


def check_code_reward(**args: Any) -> None:
    """For before a run starts: raise UserError for args that mean nothing, or a language whose tools are not here."""
    options = make_options(**args)
    if options.language != "python":
        if options.mode == "call":
            raise UserError(f"reward 'code': mode call needs Python, and language is {options.language}")
        if not options.executor:
            command_for(options.language)


def code_facts(**args: Any) -> Mapping[str, Any]:
    """For the run's records: the sandbox that holds where this is called, or the executor. Raises UserError when there
    is none."""
    return executor_for(make_options(**args).choice()).facts()


def _is_arg(name: str, columns: Mapping[str, Any]) -> bool:
    """Whether it comes from the config: a column of the data that has the name of an arg is a list."""
    return name in columns and (name == "modules" or not isinstance(columns[name], list))


code_reward.arg_names = tuple(Options.__dataclass_fields__)  # type: ignore[attr-defined]
code_reward.check_args = check_code_reward  # type: ignore[attr-defined]  # called when a run looks at its functions
code_reward.check_columns = check_columns  # type: ignore[attr-defined]  # called with the data's columns, and args
code_reward.facts = code_facts  # type: ignore[attr-defined]  # called where it will run, before the first step
