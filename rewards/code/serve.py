"""The remote executor: a small HTTP server around a pool of sandboxes.

    RLFT_CODE_TOKEN=... python -m rewards.code.serve [--host 127.0.0.1] [--port 8470] [--tier auto] [--parallel N]

POST /judge {"jobs": [...]} -> {"outcomes": [...]}, GET /facts -> what sandbox holds here; both only with the token. It
has no encryption of its own: put it behind what has, or on a network of your own.
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rewards.code.box.calls import TOLD_TO_TESTS
from rewards.code.languages import command_for
from rewards.code.pool import TIERS, Pool, Settings
from rewards.code.remote import TOKEN
from rlft.errors import UserError

MAX_BODY = 64 << 20
_KEYS = {
    "call": {"program", *TOLD_TO_TESTS},
    "script": {"program", "cases", "tolerance", "command"},
}
_BOUNDS = {"timeout_s": 300.0, "memory_mb": 16384.0}
_IDLE_S = 60.0  # a connection that says nothing


def main(words: list[str] | None = None) -> None:
    """Serve until stopped. Exit code 2 without a token, or where no sandbox holds."""
    parser = argparse.ArgumentParser(prog="python -m rewards.code.serve", description="Runs code rewards over HTTP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8470)
    parser.add_argument("--tier", choices=("auto", *TIERS), default="auto")
    parser.add_argument("--parallel", type=int, default=0, help="judgements at a time (default: cores + 1, at most 8)")
    parser.add_argument("--modules", nargs="*", default=[], help="installed modules that programs may import")
    options = parser.parse_args(words)
    try:
        server = make_server(
            (options.host, options.port),
            Pool(Settings(options.tier, options.parallel, modules=tuple(options.modules))),
            os.environ.get(TOKEN, ""),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"judging on http://{options.host}:{server.server_port}, tier {server.facts['tier']}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


class Server(ThreadingHTTPServer):
    """With the pool and the token. Each connection has a thread; the pool bounds what runs at a time."""

    daemon_threads = True
    pool: Pool
    token: str
    facts: dict[str, Any]


def make_server(address: tuple[str, int], pool: Pool, token: str) -> Server:
    """A server that is bound and not yet serving. Raises UserError without a token, for an address that cannot be used,
    or where no sandbox holds."""
    if not token:
        raise UserError(
            f"{TOKEN} is not set. Whoever may ask this server runs programs here: choose a long random word."
        )
    facts = dict(pool.facts())
    try:
        server = Server(address, _Handler)
    except OSError as error:
        raise UserError(f"cannot listen on {address[0]}:{address[1]}: {error}") from None
    server.pool, server.token, server.facts = pool, token, facts
    return server


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _IDLE_S

    def do_GET(self) -> None:
        if self._may():
            self._answer(200, self.server.facts) if self.path == "/facts" else self._answer(
                404, {"error": "no such page"}
            )

    def do_POST(self) -> None:
        if not self._may():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/judge" or not length.isdigit() or int(length) > MAX_BODY:
            self._answer(400, {"error": f"expected POST /judge with at most {MAX_BODY} bytes"})
            return
        try:
            jobs = _checked(json.loads(self.rfile.read(int(length))))
        except (ValueError, TypeError, RecursionError, UserError) as error:
            self._answer(400, {"error": str(error)})
            return
        self._answer(200, {"outcomes": self.server.pool.run(jobs)})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each judgement helps nobody."""

    def _may(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode()):
            return True
        self._answer(401, {"error": f"wrong token: {TOKEN} must be the same here and there"})
        return False

    def _answer(self, code: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _checked(body: Any) -> list[dict[str, Any]]:
    """The jobs. Raises ValueError for what is none, UserError for a language that is not here."""
    jobs = body.get("jobs") if isinstance(body, dict) else None
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise ValueError("expected {jobs: [...]}")
    for job in jobs:
        needed = _KEYS.get(job.get("mode"), set())
        if not needed or not needed <= job.keys():
            raise ValueError(f"a job of mode {job.get('mode')!r}; expected call or script, with {sorted(needed)}")
        for name, most in _BOUNDS.items():
            if not isinstance(job.get(name), int | float) or not 0 < job[name] <= most:
                raise ValueError(f"{name} is {job.get(name)!r}; expected above 0 and at most {most:g}")
        if job.get("command") is not None:
            named = job["command"].get("language") if isinstance(job["command"], dict) else ""
            job["command"] = command_for(str(named))  # this machine's own: never words from outside
    return jobs


if __name__ == "__main__":
    main()
