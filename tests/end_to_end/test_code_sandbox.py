"""The code reward in its sandbox, in every tier that this machine allows: nothing fools it, nothing gets out, nothing
honest is refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rewards.code.box import frames
from rewards.code.executor import executor_for
from rewards.code.pool import TIERS, Pool, Settings
from rewards.code.remote import TOKEN, RemoteExecutor
from rewards.code.reward import Options, code_reward
from rewards.code.serve import make_server
from rewards.combine import RewardSet
from rlft.config.roles import RewardsConfig
from rlft.errors import UserError
from tests.code_sets import judge_all, read_rows
from tests.hostile import MARK, run_corpus
from tests.hostile_rows import ROWS
from tests.leaks import LEAKS, leaky_python
from tests.running import ROOT

DATA = ROOT.parent / "shared" / "data"
CHOSEN = {  # of each class of attack, those that take no time
    "always_equal", "ends_the_loop", "empties_its_argument", "own_module_of_tests", "forges_verdict", "forges_fault",
    "says_that_it_emptied_its_argument",
    "searches_memory", "skips_the_case", "dies_and_is_forgiven", "sockets", "permissions_of_others", "shared_memory",
    "executes", "spawns", "signals_by_owner", "freezes_the_parent", "later_thread", "fills_the_disk", "makes_files",
    "memory_of_the_parent", "in_place", "types", "raises_what_is_expected", "takes_a_function", "without_end",
    "a_class", "linked_lists", "the_same_object", "allocates_at_once", "deep_recursion", "own_folder", "event_loop",
    "bare_clone", "clone3", "named_memory", "queued_signal", "empties_the_library", "whole_library",
    "written_at_exit", "exits_well",
}  # fmt: skip
ADD = {"tests": ["assert add(1, 2) == 3\nassert add(2, 2) == 4\nassert add(0, 0) == 0"], "entry_point": ["add"]}
RIGHT, HALF = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return max(a + b, 4)\n"


def holds(tier: str) -> bool:
    """Whether this machine allows it."""
    pool = Pool(Settings(tier=tier, parallel=1))
    with contextlib.suppress(UserError):
        pool.facts()
        pool.close()
        return True
    return False


@pytest.fixture(scope="module", params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    """Each of the tiers."""
    if not holds(request.param):
        pytest.skip(f"this machine does not allow the tier {request.param}")
    return request.param


@pytest.fixture(scope="module")
def pool(tier: str) -> Iterator[Pool]:
    """Two sandboxes of that tier."""
    pool = Pool(Settings(tier=tier, parallel=2))
    yield pool
    pool.close()


def test_some_tier_holds_here() -> None:
    """Otherwise everything below is skipped. On another system than Linux that is as it should be."""
    assert any(map(holds, TIERS)) or not sys.platform.startswith("linux")


def test_nothing_fools_or_leaves_the_sandbox(tier: str) -> None:
    rows = [row for row in ROWS if row["name"] in CHOSEN]
    assert len(rows) == len(CHOSEN)
    found = {
        row["name"]: (result, effects)
        for row, result, wrong, effects in run_corpus(rows, tier, 5.0)
        if wrong or effects
    }
    assert found == {}


def test_what_does_not_end_is_0(pool: Pool) -> None:
    for code, columns in (
        ("import os, signal\ndef add(a, b):\n    os.kill(os.getpid(), signal.SIGSTOP)\n", ADD),
        ("while True: pass", ADD),
        ("while True: pass", {"tests": [[{"stdin": "", "stdout": "1"}]]}),
    ):
        (result,) = code_reward([code], Options(timeout_s=0.3), pool, **columns)
        assert (result.value, result.status) == (0.0, "timeout"), result


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason=f"no corpus at {DATA}")
def test_the_shared_corpus() -> None:
    rows = [json.loads(line) for line in (DATA / "hostile_programs.jsonl").read_text().splitlines()]
    found = {
        row["name"]: (result, effects)
        for row, result, wrong, effects in run_corpus(rows, "auto", 1.0)
        if wrong or effects
    }
    assert len(rows) > 50 and found == {}


@pytest.mark.skipif(not DATA.exists(), reason=f"no published sets at {DATA}")
@pytest.mark.parametrize(
    ("name", "some"), [("HumanEval.jsonl.gz", slice(30, 54)), ("mbpp_sanitized.jsonl", slice(72, 100))]
)
def test_published_solutions_pass_and_stubs_fail(pool: Pool, name: str, some: slice) -> None:
    rows = read_rows(DATA / name)[some]
    found = list(judge_all(rows, pool))
    assert [(name, result) for name, result, _ in found if result.value != 1.0] == []
    assert [(name, stub) for name, _, stub in found if stub.value != 0.0] == []


def test_programs_see_nothing_of_ours_and_draw_what_their_tests_do_not(pool: Pool) -> None:
    program = (
        "import random, sys\ndef drawn(theirs):\n    return random.random()\n"
        "def ours():\n    return [name for name in sys.modules if name.startswith('rewards')]\n"
    )
    tests = [
        "import random, sys\nassert not any(name.startswith('rewards') for name in sys.modules)\nassert ours() == []\n"
        "assert drawn(random.random()) is None"
    ]
    results = code_reward([program] * 2, Options(), pool, tests=tests * 2, entry_point=["drawn"] * 2)
    details = [result.detail.removeprefix("assert drawn(random.random()) is None; drawn(") for result in results]
    given, drawn = zip(*(detail.split(") gave ") for detail in details), strict=True)
    assert drawn[0] == drawn[1]  # by whichever process
    assert given[0] != given[1] and not {*given} & {*drawn}


def test_the_share_of_tests_and_why(pool: Pool) -> None:
    (result,) = code_reward([HALF], Options(partial=True), pool, **ADD)
    assert result.value == pytest.approx(1 / 3) and result.status == "wrong"
    assert result.detail == "assert add(1, 2) == 3; add(1, 2) gave 4"
    cases = {"tests": [[{"stdin": str(n), "stdout": str(n)} for n in (1, 2, 3)]]}
    (result,) = code_reward(["print(min(int(input()), 2))"], Options(partial=True), pool, **cases)
    assert result.value == pytest.approx(2 / 3) and "input 3: printed '2'; expected '3'" in result.detail
    (result,) = code_reward(["import sys\nprint(1)\nsys.exit(3)"], Options(), pool, **cases)
    assert (result.value, result.detail) == (0.0, "input 1: exit code 3")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("double", "assert double(2) == 4 and double(3) == 6"),
        ("sum", "def check(candidate):\n    assert candidate(3) == sum([2, 4])"),  # which Python has, too
    ],
)
def test_methods_of_leetcode(pool: Pool, name: str, code: str) -> None:
    solution = f"```python\nclass Solution:\n    def {name}(self, x):\n        return 2 * x\n```"
    pairs = {"inputs": [[2], [3]], "outputs": [4, 6]}
    for row in (
        {"input_output": {"fn_name": name, **pairs}},
        {"input_output": pairs, "entry_point": f"Solution().{name}"},
        {"test": code, "entry_point": name},
        {"test": code, "entry_point": f"Solution().{name}"},
    ):
        columns = {column: [value, value] for column, value in row.items()}
        right, wrong = code_reward([solution, solution.replace("2 * x", "x")], Options(), pool, **columns)
        assert (right.status, wrong.status) == ("ok", "wrong"), (row, right)


def test_what_leetcode_imports_is_there(pool: Pool) -> None:
    """Its programs use these names as they are; pow stays Python's own."""
    code = (
        "class Solution:\n"
        "    def most(self, xs: List[int], base: int) -> int:\n"
        "        best = max(deque(xs), default=-inf)\n"
        "        return pow(base, Counter(xs)[best], 7) + reduce(lambda a, b: a + b, accumulate(xs), 0)\n"
    )
    row = {"fn_name": "most", "inputs": [[[1, 2, 2], 3]], "outputs": [11]}  # 3**2 % 7 + (1 + 3 + 5)
    (result,) = code_reward([f"```python\n{code}```"], Options(), pool, input_output=[row])
    assert result.status == "ok", result


def test_tests_at_fault_have_no_value(pool: Pool) -> None:
    for tests, why in (
        ("assert add(1, 2) == ", "cannot be read"),
        ("x = 1 / 0\nassert add(1, 2) == 3", "ZeroDivisionError"),
        ("assert 1 == 1", "no test called the solution"),
        ("class A: ...\nassert add(1, 2) == 3\ntry:\n    add(A(), 2)\nexcept:\n    0", "A objects of the tests"),
        ("assert add(1, 2) == 3\nassert add(iter([1]), 2) == 3", "list_iterator objects of the tests cannot"),
    ):
        (result,) = code_reward([RIGHT], Options(), pool, tests=[tests], entry_point=["add"])
        assert (result.value, result.status) == (None, "error") and why in result.detail


def test_installed_modules_on_request() -> None:
    code = "import numpy as np\ndef add(a, b):\n    return np.array(a) + np.array(b)\n"
    columns = {"tests": ["assert (add([1], [2]) == np.array([3])).all()"], "entry_point": ["add"]}
    without, with_numpy = Pool(Settings(parallel=1)), Pool(Settings(parallel=1, modules=("numpy",)))
    try:
        assert code_reward([code], Options(), without, **columns)[0].value == 0.0
        (result,) = code_reward([code], Options(), with_numpy, **columns)
        assert result.value == 1.0, result
    finally:
        without.close()
        with_numpy.close()
    with pytest.raises(UserError, match="modules names 'no_such_thing'"):
        Pool(Settings(modules=("no_such_thing",)))


CPP = '#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << a + b << "\\n"; }\n'
SUMS = {"tests": [[{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 5", "stdout": "10"}]]}


@pytest.mark.parametrize(
    ("language", "tool", "right", "wrong"),
    [
        ("cpp", "/usr/bin/g++", CPP, '#include "/etc/passwd"\nint main() {}\n'),
        ("bash", "/usr/bin/bash", "read a b; echo $((a + b))", "cat /etc/passwd & curl localhost; echo 3"),
        ("javascript", "/usr/bin/node",
         "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number); console.log(a + b)",
         "require('fs').readFileSync('/etc/passwd'); console.log(3)"),
    ],
)  # fmt: skip
def test_other_languages(pool: Pool, language: str, tool: str, right: str, wrong: str) -> None:
    if not Path(tool).exists():
        pytest.skip(f"{tool} is not installed")
    options = Options(language=language, timeout_s=10.0)
    good, bad = code_reward(
        [f"```{language}\n{code}\n```" for code in (right, wrong)], options, pool, tests=SUMS["tests"] * 2
    )
    assert good.value == 1.0, good
    assert bad.value == 0.0, bad
    starved = Options(language=language, memory_mb=32, timeout_s=10.0)
    if language == "javascript":  # no program of it would run, so none is judged
        (result,) = code_reward([f"```{language}\n{right}\n```"], starved, pool, tests=SUMS["tests"])
        assert result.value is None and "javascript does not work in the sandbox here, with 32 MB" in result.detail


def sandbox_processes() -> list[psutil.Process]:
    """Those below this process."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.is_running() and any(MARK in word for word in child.cmdline())]


def gone(processes: list[psutil.Process], within_s: float = 10.0) -> bool:
    _, alive = psutil.wait_procs(processes, within_s)
    return not alive


def test_a_dead_supervisor_is_an_error_and_is_replaced(
    tier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sandbox_processes()
    pool = Pool(Settings(tier=tier, parallel=1))
    try:
        pool.facts()
        own = [process for process in sandbox_processes() if process not in before]
        results: list[Any] = []
        sleeper = {**ADD, "tests": ["assert add(1, 2) == 3"]}
        code = "import time\ndef add(a, b):\n    time.sleep(60)\n"
        judging = threading.Thread(
            target=lambda: results.extend(code_reward([code], Options(timeout_s=30), pool, **sleeper))
        )
        judging.start()
        deadline = time.monotonic() + 20
        while len(sandbox_processes()) < len(before) + len(own) + 2:
            assert time.monotonic() < deadline, "the two processes of a judgement have not started"
            time.sleep(0.02)
        everyone = [process for process in sandbox_processes() if process not in before]
        own[0].kill()
        judging.join(30)
        assert [(result.value, result.status) for result in results] == [(None, "error")]
        assert gone(everyone), "what was below the supervisor ended with it"
        assert list(tmp_path.glob("rlft-code-*")) == []
        assert code_reward([RIGHT], Options(), pool, **ADD)[0].value == 1.0
    finally:
        pool.close()


def test_nothing_outlives_a_killed_worker(tier: str, tmp_path: Path) -> None:
    code = f"""
import time
from rewards.code.pool import Pool, Settings
from rewards.code.reward import Options, code_reward
pool = Pool(Settings(tier={tier!r}, parallel=1))
pool.facts()
print("ready", flush=True)
code_reward(["import time\\ndef add(a, b):\\n    time.sleep(60)"], Options(timeout_s=60), pool, **{ADD!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    worker = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    deadline, below = time.monotonic() + 20, []
    while len(below) < 4 and time.monotonic() < deadline:  # supervisor, zygote, solution, tests
        time.sleep(0.05)
        below = psutil.Process(worker.pid).children(recursive=True)
    assert len(below) >= 4
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(10)
    worker.stdout.close()
    assert gone(below)
    assert list(tmp_path.glob("rlft-code-*")) == []


@pytest.mark.parametrize(("leak", "attack"), LEAKS.items(), ids=LEAKS.values())
def test_the_sandbox_notices_that_it_leaks(
    leak: str, attack: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Then nothing is run, unless the user says so."""
    monkeypatch.setattr(sys, "executable", leaky_python(tmp_path, leak))
    pool = Pool(Settings(tier="landlock", parallel=1))
    (result,) = code_reward([RIGHT], Options(), pool, **ADD)
    assert (result.value, result.status) == (None, "refused")
    with pytest.raises(UserError, match=rf"no sandbox holds .*\b{attack}\b.*allow_unsandboxed: true"):
        pool.facts()


def test_without_a_sandbox_only_when_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", leaky_python(tmp_path, next(iter(LEAKS))))
    pool = Pool(Settings(tier="landlock", parallel=1, allow_unsandboxed=True))
    try:
        facts = pool.facts()
        assert (facts["tier"], facts["unsandboxed"]) == ("none", True) and "WITHOUT a sandbox" in facts["warning"]
        assert code_reward([RIGHT], Options(), pool, **ADD)[0].value == 1.0
    finally:
        pool.close()


def test_the_remote_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "a long word")
    pool = Pool(Settings(parallel=1))
    with pytest.raises(UserError, match=f"{TOKEN} is not set"):
        make_server(("127.0.0.1", 0), pool, "")
    server = make_server(("127.0.0.1", 0), pool, "a long word")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        there = RemoteExecutor(url)
        assert there.facts()["tier"] in TIERS and there.facts()["executor"] == url
        results = code_reward([RIGHT, HALF, "?"], Options(), there, tests=ADD["tests"] * 3, entry_point=["add"] * 3)
        assert [(one.value, one.status) for one in results] == [(1.0, "ok"), (0.0, "wrong"), (0.0, "unparsed")]
        evil = {"mode": "script", "program": "", "cases": [], "tolerance": 0, "timeout_s": 1, "memory_mb": 99}
        command = {"language": "sh -c 'touch /tmp/x'", "file": "x", "compile": ["/bin/true"], "run": ["/bin/true"]}
        assert "HTTP 400" in there.run([{**evil, "command": command}])[0]["detail"]
        monkeypatch.setenv(TOKEN, "another word")
        (result,) = code_reward([RIGHT], Options(), there, **ADD)
        assert (result.value, result.status) == (None, "error") and "HTTP 401 " in result.detail
    finally:
        server.shutdown()
        server.server_close()
        pool.close()
    with pytest.raises(UserError, match="does not answer"):
        RemoteExecutor(url).facts()


def test_a_reward_set_tells_what_holds() -> None:
    config = RewardsConfig.model_validate(
        {"functions": [{"function": "code", "args": {"parallel": 1}}, {"function": "math"}]}
    )
    rewards = RewardSet(config)
    facts = rewards.facts()
    assert list(facts) == ["code"] and facts["code"]["tier"] in TIERS and facts["code"]["unsandboxed"] is False
    assert executor_for(Options(parallel=1).choice()).facts() == facts["code"], "the same pool serves the reward"


def test_a_frame_is_bounded() -> None:
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((1 << 31).to_bytes(4, "little"))
        with pytest.raises(frames.FrameError, match="a message of 2147483648 bytes"):
            frames.receive(ours)
