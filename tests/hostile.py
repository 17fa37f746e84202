"""Runs a corpus of programs that try to fool, break or escape the code reward, with canaries set up around it.

    python -m tests.hostile FILE [--tier namespaces|landlock] [--only NAME ...]

A row: name, mode (call: `tests` is code against `entry`; stdio: `tests` is a list of {stdin, stdout}), entry, code,
tests, must (pass, fail, any). Canaries: a secret in the environment and one in a file, listeners on loopback and on an
abstract and a path socket, files and processes before and after each program. Prints one line for each finding and at
the end: programs, wrong verdicts, side effects. Exit code 1 when there is any.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from rewards.code.pool import Pool, Settings
from rewards.code.reward import Options, code_reward
from rlft.errors import UserError
from rlft.samples import RewardResult

SECRET_NAME, SECRET = "CANARY_API_KEY", "sk-canary-123"
TCP_PORT, UDP_PORT, CLOSED_PORT = 47801, 47802, 47803  # the last: nobody may listen there
HELPERS = (
    "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n"  # the tests' own, as HumanEval/32 has
)
MARK = "rewards.code.box.supervisor"  # in the command line of every process of the sandbox: forks keep it


class Canaries:
    """What no program may touch. Use as a context manager."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.gettempdir())
        self._own = {self._folder / "canary_secret", self._folder / "canary_unix.sock"}
        self._looked_in = [self._folder, Path("/tmp"), Path("/dev/shm"), Path("/var/tmp"), Path.home(), Path("/root")]
        self._looked_in += [Path.cwd(), Path.cwd().parent]
        self._sockets: dict[str, socket.socket] = {}

    def __enter__(self) -> Canaries:
        os.environ[SECRET_NAME] = SECRET
        stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
        for name, family, kind, address in (
            ("tcp", socket.AF_INET, stream, ("127.0.0.1", TCP_PORT)),
            ("udp", socket.AF_INET, datagram, ("127.0.0.1", UDP_PORT)),
            ("abstract socket", socket.AF_UNIX, stream, "\0canary_abs"),
            ("path socket", socket.AF_UNIX, stream, str(self._folder / "canary_unix.sock")),
        ):
            if name == "udp":  # the port before it is ours now, so no other run is under way here
                self._put_files()
            listener = self._sockets[name] = socket.socket(family, kind)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind(listener, address)
            listener.setblocking(False)
            if kind is stream:
                listener.listen()
        return self

    def _put_files(self) -> None:
        for path in self._own:
            path.unlink(missing_ok=True)
        self._secret = self._folder / "canary_secret"
        self._secret.write_text("TOPSECRET")
        self._secret_facts = _facts(self._secret)

    def __exit__(self, *exc: object) -> None:
        for listener in self._sockets.values():
            listener.close()
        for path in self._own:
            path.unlink(missing_ok=True)
        del os.environ[SECRET_NAME]

    def touched(self) -> list[str]:
        """What was, since the last time; put right again."""
        found = [f"file {path}" for path in self._strangers()]
        for path in self._strangers():
            path.unlink()
        for name, listener in self._sockets.items():
            with contextlib.suppress(BlockingIOError):
                listener.recv(1) if name == "udp" else listener.accept()
                found.append(f"came in by {name}")
        if self._secret.read_text() != "TOPSECRET" or _facts(self._secret) != self._secret_facts:
            found.append("the secret file was changed")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", CLOSED_PORT), 0.2):
            found.append(f"somebody listens on {CLOSED_PORT}")
        return found

    def _strangers(self) -> list[Path]:
        found = []
        for folder in dict.fromkeys(self._looked_in):
            with contextlib.suppress(OSError):
                found += [path for path in folder.glob("canary_*") if path not in self._own]
        return found


def _bind(listener: socket.socket, address: Any) -> None:
    """Bind to what the corpus names; waits for another run of it on this machine, at most five minutes."""
    for tries_left in reversed(range(300)):
        try:
            return listener.bind(address)
        except OSError as error:
            if not tries_left:
                raise UserError(f"the canary's place {address!r} is taken: {error}. Is another run stuck?") from None
            time.sleep(1)


def _facts(path: Path) -> tuple[Any, ...]:
    state = path.stat()
    return state.st_mode, state.st_uid, state.st_gid, state.st_mtime, state.st_nlink


def processes() -> dict[int, float]:
    """The processes below this one, and those of sandboxes that have lost their parent, with their start times."""
    mine = {process.pid: process.create_time() for process in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter(["pid", "ppid", "cmdline", "create_time"]):
        facts = process.info
        if facts["ppid"] == 1 and any(MARK in word for word in facts["cmdline"] or []):
            mine[facts["pid"]] = facts["create_time"]
    return mine


def shared_memory() -> int:
    """Segments of System V shared memory, and files of the sandbox's user in /dev/shm."""
    try:
        return len(Path("/proc/sysvipc/shm").read_text().splitlines())
    except OSError:
        return 0


def row_columns(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The columns that the reward is given for a row of the corpus."""
    return {"tests": [row["tests"]], "entry_point": [row.get("entry")], "trusted": [HELPERS]}


def judge(row: Mapping[str, Any], pool: Pool, timeout_s: float) -> RewardResult:
    """The reward of the row's code."""
    mode = "stdio" if row["mode"] == "stdio" else "call"
    columns = row_columns(row)
    if mode == "stdio":
        columns.pop("entry_point")
    options = Options(mode=mode, setup_column="trusted", timeout_s=timeout_s)
    return code_reward([f"~~~~~~~~python\n{row['code']}\n~~~~~~~~"], options=options, runner=pool, **columns)[0]


def wrong_verdict(row: Mapping[str, Any], result: RewardResult) -> bool:
    """Whether the row must have had another one. No value is wrong for all of them."""
    if result.value is None:
        return True
    return {"pass": result.value != 1.0, "fail": result.value != 0.0, "any": False}[row["must"]]


def run_corpus(
    rows: Sequence[Mapping[str, Any]], tier: str, timeout_s: float
) -> Iterator[tuple[Mapping[str, Any], RewardResult, bool, list[str]]]:
    """Each row, what was said of it, whether that is wrong, and its side effects. All on one worker, in this order."""
    with Canaries() as canaries:
        before = processes()  # of other runs on this machine
        pool = Pool(Settings(tier=tier, parallel=1))
        try:
            pool.facts()
            worker = {pid: start for pid, start in processes().items() if before.get(pid) != start}
            memory = shared_memory()
            for row in rows:
                result = judge(row, pool, timeout_s)
                effects = canaries.touched()
                time.sleep(0.01)
                now = {pid: start for pid, start in processes().items() if before.get(pid) != start}
                effects += ["a process stayed"] if now.keys() - worker.keys() else []
                effects += ["the worker died"] if worker.keys() - now.keys() else []
                effects += ["shared memory grew"] if shared_memory() > memory else []
                worker = now
                yield row, result, wrong_verdict(row, result), effects
        finally:
            pool.close()


def main(words: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile")
    parser.add_argument("file", type=Path)
    parser.add_argument("--tier", default="auto", choices=("auto", "namespaces", "landlock"))
    parser.add_argument("--timeout", type=float, default=3.0)
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--verbose", action="store_true", help="a line for each program")
    options = parser.parse_args(words)
    rows = [json.loads(line) for line in options.file.read_text().splitlines() if line.strip()]
    rows = [row for row in rows if not options.only or row["name"] in options.only]
    num_wrong, num_effects, begin = 0, 0, time.monotonic()
    for row, result, wrong, effects in run_corpus(rows, options.tier, options.timeout):
        num_wrong, num_effects = num_wrong + wrong, num_effects + bool(effects)
        if wrong or effects or options.verbose:
            said = f"{result.status} {result.value} ({result.detail[:150]})"
            print(
                f"{row['name']}: must {row['must']}, {said}; side effects: {', '.join(effects) or 'none'}", flush=True
            )
    seconds = time.monotonic() - begin
    print(
        f"{len(rows)} programs, {num_wrong} wrong verdicts, {num_effects} side effects; tier {options.tier}, "
        f"user {os.getuid()}, {seconds:.0f} s"
    )
    return int(bool(num_wrong or num_effects))


if __name__ == "__main__":
    sys.exit(main())
