"""The sandbox attacks itself before it is used: what really holds on this machine, not what its version promises."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

from rewards.code.box import frames
from rewards.code.box.children import BoxError, Start, Zygote

_SECRET = "not for a program's eyes"
_MEMORY_MB, _SECONDS = 256, 20


def probe(zygote: Zygote, folder: str) -> list[str]:
    """What got through of attacks.py, as seen from inside and from outside; empty when the sandbox holds. Raises
    BoxError when the attacks could not be run."""
    with tempfile.TemporaryDirectory(prefix="rlft-probe-") as targets, contextlib.ExitStack() as stack:
        given, listeners = _targets(targets, stack)
        before = (_shared_memory(), sorted(os.listdir(targets)), os.stat(given["secret"]))
        inside = _attack(zygote, given)
        outside = _damage(given, targets, listeners, before)
    return [*inside, *outside]  # what they got is nobody's business: it may be a secret


def _targets(targets: str, stack: contextlib.ExitStack) -> tuple[dict[str, Any], list[socket.socket]]:
    secret = Path(targets, "secret")
    secret.write_text(_SECRET)
    abstract = f"rlft-probe-{secrets.token_hex(8)}"
    tcp, udp, hidden, path = (
        stack.enter_context(socket.socket(*kind))
        for kind in (
            (socket.AF_INET, socket.SOCK_STREAM),
            (socket.AF_INET, socket.SOCK_DGRAM),
            (socket.AF_UNIX, socket.SOCK_STREAM),
            (socket.AF_UNIX, socket.SOCK_STREAM),
        )
    )
    tcp.bind(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    udp.bind(("127.0.0.1", port))
    hidden.bind("\0" + abstract)
    path.bind(f"{targets}/socket")
    for listener in (tcp, hidden, path):
        listener.listen()
    victim = os.fork()
    if victim == 0:
        signal.pause()
        os._exit(0)
    stack.callback(_end, victim)
    given = {"secret": str(secret), "victim": victim, "tcp": port, "abstract": abstract, "path": f"{targets}/socket"}
    return {**given, "memory_mb": _MEMORY_MB}, [tcp, udp, hidden, path]


def _attack(zygote: Zygote, given: dict[str, Any]) -> list[str]:
    """Names of the attacks that got something, as the program says itself."""
    ours, theirs = socket.socketpair()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    with ours:
        with theirs:
            limits = {"memory_mb": _MEMORY_MB, "cpu_s": _SECONDS}
            (child,) = zygote.start(Start("calls", limits, [null] * 3, theirs.fileno()))
        os.close(null)
        try:
            child.tell({"program": Path(__file__).with_name("attacks.py").read_text()})
            child.confirmed()
            ours.settimeout(_SECONDS)
            answer: Any = frames.receive(ours)
            if answer == ["ready"]:
                pairs = ["d", *[[name, value] for name, value in given.items()]]
                frames.send(ours, ["call", ["name", "attack"], [pairs], {}])
                answer = frames.receive(ours)
        except (frames.FrameError, OSError) as error:
            answer = [str(error)]
        finally:
            (ended,) = zygote.end(child)
    if answer[0] != "ok" or answer[1][0] != "d":
        raise BoxError(f"the probes did not come to their end: {answer}, exit code {ended['code']}")
    return [name for name, _ in answer[1][1:]]


def _damage(given: dict[str, Any], targets: str, listeners: list[socket.socket], before: tuple[Any, ...]) -> list[str]:
    """What has changed outside."""
    found, (shared, files, state) = [], before
    for listener, name in zip(listeners, ("TCP", "UDP", "abstract socket", "path socket"), strict=True):
        listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            listener.recv(1) if name == "UDP" else listener.accept()
            found.append(f"something came in by {name}")
    if os.waitpid(given["victim"], os.WNOHANG)[0]:
        found.append("another process was killed")
    if sorted(os.listdir(targets)) != files:
        found.append("files appeared or went")
    elif Path(given["secret"]).read_text() != _SECRET or _facts(os.stat(given["secret"])) != _facts(state):
        found.append("a file was changed")
    if _shared_memory() != shared:
        found.append("shared memory was made")
    return found


def _facts(state: os.stat_result) -> tuple[Any, ...]:
    return state.st_mode, state.st_uid, state.st_gid, state.st_mtime, state.st_size, state.st_nlink


def _shared_memory() -> int:
    try:
        return len(Path("/proc/sysvipc/shm").read_text().splitlines())
    except OSError:
        return 0


def _end(victim: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
