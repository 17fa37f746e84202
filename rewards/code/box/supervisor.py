"""One judgement after the other: the process between whoever wants something judged and the sandbox.

Started with a socket as its only descriptor and an environment of its own. It ends, and all below it, when the other
end of the socket is closed, however that comes.
"""

from __future__ import annotations

import socket
from typing import Any

from rewards.code.box import frames
from rewards.code.box.calls import judge_calls
from rewards.code.box.children import BoxError, Zygote
from rewards.code.box.scratch import remove_folder
from rewards.code.box.scripts import judge_scripts


def main(descriptor: int) -> None:
    """Read the settings {"tier", "disk_mb", "modules", "folder"}, answer {"ready": true} or {"refused": why}, then
    answer jobs with outcomes. `folder` is empty, and removed at the end."""
    sock = socket.socket(fileno=descriptor)
    settings = frames.receive(sock)
    try:
        _serve(sock, settings, settings["folder"])
    except (frames.FrameError, OSError):
        pass  # nobody is there any more
    finally:
        remove_folder(settings["folder"])


def _serve(sock: socket.socket, settings: dict[str, Any], folder: str) -> None:
    try:
        zygote = Zygote(settings["tier"], folder, settings["disk_mb"], settings["modules"], [sock.fileno()])
    except BoxError as error:
        frames.send(sock, {"refused": str(error)})
        return
    try:
        if settings["tier"] != "none":
            from rewards.code.box.probes import probe  # not before: the zygote has, and forks, all that is imported

            through = probe(zygote, folder)
            if through:
                frames.send(sock, {"refused": f"attacks got through: {'; '.join(through)}"})
                return
        frames.send(sock, {"ready": True})
        while True:
            frames.send(sock, _outcome(zygote, frames.receive(sock), sock))
    except BoxError as error:
        frames.send(sock, {"refused": str(error)})
    finally:
        zygote.close()


def _outcome(zygote: Zygote, job: dict[str, Any], sock: socket.socket) -> dict[str, Any]:
    judge = judge_calls if job["mode"] == "call" else judge_scripts
    return judge(zygote, job, sock)
