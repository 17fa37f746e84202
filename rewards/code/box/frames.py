"""Messages over a stream socket: four bytes of length, then JSON in ASCII. Their length is looked at before they are
read."""

from __future__ import annotations

import json
import socket
from typing import Any

MAX_BYTES = 32 << 20


class FrameError(Exception):
    """The other side has closed, or says what no message is."""


_write = json.JSONEncoder(separators=(",", ":")).encode


def packed(message: Any) -> bytes:
    """As it is sent. Raises FrameError for a message above MAX_BYTES."""
    data = _write(message).encode("ascii")
    if len(data) > MAX_BYTES:
        raise FrameError(f"a message of {len(data)} bytes, more than {MAX_BYTES}")
    return len(data).to_bytes(4, "little") + data


def send(sock: socket.socket, message: Any) -> None:
    """Raises FrameError for a message above MAX_BYTES, OSError when the other side is gone."""
    sock.sendall(packed(message))


def receive(sock: socket.socket, max_bytes: int = MAX_BYTES) -> Any:
    """The next message. Raises FrameError at the end of the stream and for what is none."""
    size = int.from_bytes(_exactly(sock, 4), "little")
    if size > max_bytes:
        raise FrameError(f"a message of {size} bytes, more than {max_bytes}")
    try:
        return json.loads(_exactly(sock, size))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"no JSON: {error}") from None


def _exactly(sock: socket.socket, count: int) -> bytes:
    parts, missing = [], count
    while missing:
        part = sock.recv(min(missing, 1 << 20))
        if not part:
            raise FrameError("the other side has closed")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
