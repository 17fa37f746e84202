"""What a model writes may be meant to hang, to fill the memory or to be run. It may cost its time, and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewards.killable.process import GRACE_S
from rewards.math import math_reward
from rewards.math.limits import too_large
from rewards.math.symbolic import Comparer
from rlft.samples import RewardResult

DEADLINE_S = 1.5
CODE = [
    "__import__('os').system('touch {}')",
    "\\boxed{{__import__('os').system('touch {}')}}",
    "\\boxed{{\\text{{__import__}}(os).system(touch {})}}",
    "$eval(open('{}','w'))$",
    "lambda: open('{}', 'w')",
    "\\boxed{{x.__class__.__base__.__subclasses__()}} {}",
]
BOMBS = [
    "9^9^9^9", "9^{9^{9^{9}}}", "\\boxed{10^{10^{10}}}", "100000000!", "5!!!!!!", "((99!)!)!", "1e999999999",
    "2**99999999", "(x+1)^{9999}", "\\prod_{k=1}^{10^8} k", "\\sum_{k=1}^{999999} \\frac{1}{k}",
    "\\int_0^1 x^{x^{x^{x}}} dx", "(" * 400 + "1" + ")" * 400, "\\sqrt{" * 60 + "2" + "}" * 60,
    "\\boxed{" + "1+" * 20_000 + "1}", "9" * 5_000, "\\frac{1}{" * 25 + "x" + "}" * 25, "\u0663\u0663", "NaN",
    "\\boxed{nan}", "inf", "-\\infty", "\\frac{0}{0}", "0^{-1}", "\\boxed{}", "\x00", "\\" * 3_000, "$" * 3_000,
    "{" * 3_000, "1," * 3_000, "\\frac" * 200, "\\begin{pmatrix}" * 30,
]  # fmt: skip


def one(completion: str, gold: str) -> RewardResult:
    return math_reward([completion], answer=[gold], deadline_s=DEADLINE_S)[0]


@pytest.fixture(scope="module", autouse=True)
def comparer_is_there() -> None:
    assert one("x+1", "1+x").value == 1.0


@pytest.mark.parametrize("code", CODE)
def test_text_is_never_run(code: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    result = one(code.format(canary), "5")
    assert result.status in ("wrong", "unparsed") and result.value == 0.0 and not canary.exists()


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: repr(bomb[:24]))
def test_a_bomb_costs_its_deadline_and_a_status(bomb: str) -> None:
    begin = time.monotonic()
    result = one(bomb, "3")
    assert time.monotonic() - begin < DEADLINE_S + GRACE_S
    assert (result.status, result.value) in (("wrong", 0.0), ("unparsed", 0.0), ("timeout", None))
    assert result.detail


def test_a_hang_harms_no_other_completion_of_its_group() -> None:
    slow = "\\sum_{k=1}^{999999} \\frac{\\sin(k)}{k^{2}+1}"  # lets the limits pass, and sympy never ends
    assert too_large(slow) is None
    results = math_reward([slow, "\\boxed{(x+1)^2}", "no"], answer=["x^2+2x+1"] * 3, deadline_s=DEADLINE_S)
    assert [result.status for result in results] == ["timeout", "ok", "wrong"]
    assert results[0].value is None and "longer than deadline_s 1.5" in results[0].detail
    assert results[0].seconds >= DEADLINE_S


def test_a_group_of_hangs_ends_and_its_numbers_are_judged_all_the_same() -> None:
    slow = [f"\\boxed{{\\sum_{{k=1}}^{{99999{i}}} \\frac{{\\sin(k)}}{{k^{{2}}+1}}}}" for i in range(10)]
    begin = time.monotonic()
    results = math_reward([*slow, "5", "6"], answer=["5"] * 12, deadline_s=0.3)
    assert time.monotonic() - begin < 6 * 0.3 + GRACE_S
    assert [result.status for result in results] == [*["timeout"] * 10, "ok", "wrong"]
    assert "the group's time" in results[9].detail and "deadline_s 0.3" in results[0].detail


def test_a_row_without_a_right_answer_is_an_error_for_itself() -> None:
    results = math_reward(["5", "5", "5"], answer=["5", "", None])
    assert [(result.value, result.status) for result in results] == [(1.0, "ok"), (None, "error"), (None, "error")]
    assert "no right answer" in results[1].detail


def test_the_fence_holds_where_a_library_would_evaluate(tmp_path: Path) -> None:
    """The worker's audit hook, with a judge that does hand text to sympify."""
    canary = tmp_path / "canary"
    program = f"""
import json, os
import sympy  # as the keeper does before it forks
from rewards.killable import fence
read, write = os.pipe()
if os.fork() == 0:
    keep = {{write}}
    fence.confine(keep, os.getppid(), 512)
    said = []
    attempts = (
        lambda: sympy.sympify("__import__('os').system('touch {canary}')"),
        lambda: eval("1+1"),
        lambda: open({str(canary)!r}, "w"),
        lambda: os.system("touch {canary}"),
        lambda: os.fork(),
    )
    for attempt in attempts:
        try:
            attempt()
            said.append("done")
        except Exception as error:
            said.append(type(error).__name__)
    os.write(write, json.dumps(said).encode())
    os._exit(0)
os.close(write)
print(os.read(read, 4096).decode())
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    errors = json.loads(said.stdout)
    assert len(errors) == 5 and "done" not in errors and set(errors) <= {"SympifyError", "PermissionError"}
    assert not canary.exists()


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()] if tasks.exists() else []


def _is_gone(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_the_processes_end_with_their_user_even_when_it_is_killed() -> None:
    program = """
import time
from rewards.math.symbolic import Comparer
comparer = Comparer()
comparer.compare("x+1", "1+x", 60)
print(comparer.pid, flush=True)
time.sleep(600)
"""
    user = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None
    keeper = int(user.stdout.readline())
    processes = [keeper, *_children(keeper)]
    assert len(processes) == 2
    user.kill()
    user.wait(10)
    end = time.monotonic() + 20
    while not all(map(_is_gone, processes)) and time.monotonic() < end:
        time.sleep(0.05)
    assert all(map(_is_gone, processes))


def test_a_process_that_takes_too_much_memory_or_is_killed_is_replaced() -> None:
    comparer = Comparer(memory_mb=64)
    try:
        greedy = comparer.compare("1", "(x+y+z+w)^{300}-(w+z+y+x)^{300}+2^{9999999999}", 20)
        assert greedy.word in ("memory", "died")
        first = comparer.pid
        assert comparer.compare("x+1", "1+x", 20).word == "equal"
        assert first is not None
        (worker,) = _children(first)
        os.kill(worker, signal.SIGKILL)
        assert comparer.compare("x+1", "1+x", 20).word == "died"  # this one was lost
        assert comparer.compare("x+1", "1+x", 20).word == "equal" and comparer.pid == first
        os.kill(first, signal.SIGKILL)
        assert comparer.compare("x+1", "1+x", 20).word in ("equal", "died")
        assert comparer.compare("x+1", "1+x", 20).word == "equal" and comparer.pid != first
    finally:
        comparer.close()
