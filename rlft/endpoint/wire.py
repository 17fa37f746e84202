"""One HTTP POST with a bound on its whole time, over the standard library.

Knows nothing about chat, retries or keys. Redirects are not followed: they would carry the key to another host.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

MAX_BYTES = 64 * 1024 * 1024  # of a reply: far above any chat completion, far below what fills a memory
CONNECT_S = 20.0  # a host that has not accepted by then will not; less where a whole post may take less
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # no proxy can reach what is meant


class Response(NamedTuple):
    """What a server answered. `body` has at most MAX_BYTES + 1 bytes."""

    status: int
    retry_after: str | None
    body: bytes


class Wire:
    """Posts to one URL; may be used by several threads at once. `stop` ends all of it."""

    def __init__(self, url: str, timeout_s: float) -> None:
        """`timeout_s`: of one post, from when it is connected to the last byte; and of connecting, up to CONNECT_S."""
        self.url, self._timeout_s = url, timeout_s
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def post(self, body: bytes, headers: dict[str, str], timeout_s: float | None = None) -> Response:
        """`timeout_s`: for this one, where it is less. Raises TimeoutError when it took too long, ConnectionError for
        everything else that kept the whole answer from coming."""
        limit_s = min(self._timeout_s, self._timeout_s if timeout_s is None else timeout_s)
        connection, target, more = self._connection(limit_s)
        late, connected = threading.Event(), False
        try:
            connection.connect()
            connected = True
            connection.sock.settimeout(limit_s)
            with self._watched(connection.sock, late, limit_s):
                connection.request("POST", target, body=body, headers=headers | more)
                response = connection.getresponse()
                data = response.read(MAX_BYTES + 1)
                if response.length and len(data) <= MAX_BYTES:
                    raise ConnectionError(f"the connection ended {response.length} bytes before the reply did")
            if late.is_set():  # a reply without a length ends where the connection is cut
                raise TimeoutError
            return Response(response.status, response.getheader("Retry-After"), data)
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                where = "no whole reply" if connected else f"no connection to {self.url}"
                limit = limit_s if connected else connection.timeout
                raise TimeoutError(f"{where} within {limit:g} s") from None
            raise ConnectionError(str(error) or type(error).__name__) from None
        finally:
            connection.close()

    def stop(self) -> None:
        """Cut everything that is under way; further posts fail."""
        with self._lock:
            self._stopped = True
            for sock in self._open:
                _cut(sock)

    @contextlib.contextmanager
    def _watched(self, sock: socket.socket, late: threading.Event, limit_s: float):
        """Cut the connection when time is up: a socket's own timeout begins anew with each byte."""

        def time_is_up() -> None:
            late.set()
            _cut(sock)

        timer = threading.Timer(limit_s, time_is_up)
        timer.daemon = True
        with self._lock:
            if self._stopped:
                raise ConnectionError("stopped")
            self._open.add(sock)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(sock)

    def _connection(self, limit_s: float) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """Unconnected, with what to ask it for and headers; through the proxy that the environment names."""
        parts = urlsplit(self.url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        connect_s = min(limit_s, CONNECT_S)
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        proxy = getproxies().get(parts.scheme)
        if proxy is None or host in LOOPBACK or proxy_bypass(parts.netloc):
            return kind(host, parts.port, timeout=connect_s), parts.path, {}
        by = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        connection = kind(by.hostname or "", by.port or 80, timeout=connect_s)
        if not secure:
            return connection, self.url, {}
        connection.set_tunnel(host, parts.port or 443)
        return connection, parts.path, {}


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already; the plain socket's method: TLS may be in use by its thread
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
