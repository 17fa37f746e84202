"""A remote executor that does what it should not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rewards.code.remote import TOKEN, RemoteExecutor


@contextmanager
def sending_on(target: str) -> Iterator[tuple[str, list[str]]]:
    """A server that sends everybody to `target`; its address, and what it was asked."""
    asked = list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(f"{self.command} {self.path} {self.headers['Authorization']}")
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the token would go wherever the server, or whoever stands in its place, says."""
    monkeypatch.setenv(TOKEN, "a-secret")
    with sending_on("http://127.0.0.1:9/") as (other, asked_there), sending_on(f"{other}/judge") as (url, asked):
        (outcome,) = RemoteExecutor(url).run([{"timeout_s": 1.0}])
    assert asked == ["POST /judge Bearer a-secret"] and asked_there == []
    assert outcome["status"] == "error" and "HTTP 302" in outcome["detail"]
