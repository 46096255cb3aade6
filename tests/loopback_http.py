"""An HTTP server on loopback whose answers a test chooses, and which keeps what it was asked."""

from __future__ import annotations

import dataclasses
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

DEADLINE_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """One request as it arrived; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """The answer to one request."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


class LoopbackHttp:
    """The server as a context manager; `answer` runs in a thread of its own for each request."""

    def __init__(
        self, answer: Callable[[Asked], Told], *, tls: ssl.SSLContext | None = None, keep_alive: bool = False
    ) -> None:
        self.asked: list[Asked] = []
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if keep_alive else "HTTP/1.0"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers, body)
                outer.asked.append(asked)
                told = answer(asked)
                self.send_response(told.status)
                for name, value in {"content-length": str(len(told.body)), **told.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(told.body)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - as the base class names them

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A client that stopped reading is no error of the test."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """Return the port."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """Return the root's URL, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"
