"""A chat-completions server in a thread, over real HTTP, that answers or misbehaves as a test says.

A test gives a function of the request's body; what it returns is said (text, a message) or done (a Fault).
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What to do instead of answering."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_s: float = 0.0  # before anything is sent
    drip_s: float = 0.0  # between one byte and the next
    cut: bool = False  # the connection, half-way through the reply


Answer = str | dict[str, Any] | Fault


@dataclass
class ChatServer:
    """`requests` and `headers` are what came in, in order."""

    url: str
    answer: Callable[[dict[str, Any]], Answer]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    under_way: int = 0
    closed: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


def in_turn(*answers: Answer) -> Callable[[dict[str, Any]], Answer]:
    """Says or does these one after the other, the last for ever."""
    left = list(answers)
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> Answer:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer


def completion(message: str | dict[str, Any], finish_reason: str = "stop", **more: Any) -> dict[str, Any]:
    """The body of a reply: 10 prompt tokens and 5 of the completion."""
    if isinstance(message, str):
        message = {"role": "assistant", "content": message}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage, **more}


@contextlib.contextmanager
def chat_server(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[ChatServer]:
    """Serves until the block ends."""
    http = _Server(("127.0.0.1", 0), _Handler)
    server = ChatServer(f"http://127.0.0.1:{http.server_address[1]}/v1", answer)
    http.chat = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closed.set()
        http.shutdown()
        http.server_close()
        thread.join(10)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # of 5, some of many connections at once are reset


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: ChatServer = self.server.chat  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(body)
            server.headers.append(dict(self.headers))
            server.under_way += 1
            server.most_at_once = max(server.most_at_once, server.under_way)
        try:
            answer = server.answer(body) if self.path == "/v1/chat/completions" else Fault(404, b"no such path")
        finally:
            with server.lock:
                server.under_way -= 1
        if isinstance(answer, Fault):
            return self._misbehave(answer, server)
        reply = answer if isinstance(answer, dict) and "choices" in answer else completion(answer)
        self._send(200, json.dumps(reply).encode(), {})

    def _misbehave(self, fault: Fault, server: ChatServer) -> None:
        if fault.hang_s and server.closed.wait(fault.hang_s):
            return
        if fault.cut:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._send(fault.status, fault.body, fault.headers, fault.drip_s)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], drip_s: float = 0.0) -> None:
        server: ChatServer = self.server.chat  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):  # the other side may be gone
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
                self.send_header(name, value)
            self.end_headers()
            for i in range(0, len(body), 1 if drip_s else max(1, len(body))):
                self.wfile.write(body[i : i + 1] if drip_s else body)
                if drip_s and server.closed.wait(drip_s):
                    return

    def log_message(self, format: str, *args: Any) -> None:
        pass
