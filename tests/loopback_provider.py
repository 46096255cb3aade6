"""An OpenAI-compatible provider on loopback that tests script: what it answers, when, and how it breaks.

A real HTTP/1.1 server with keep-alive, one thread a connection. It also runs as a process
of its own: `python -m tests.loopback_provider --port 0 --delay-s 0.2 --log FILE`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import socket
import socketserver
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHAT_PATH = "/v1/chat/completions"
MODELS_PATH = "/v1/models"


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """What the provider does with one request.

    It waits for `hold`, then `delay_s`, then sends `status`, `headers` and `body`; with a
    `text` the body is a completion of it, and usage is counted. `cut`: announces the whole
    body, sends half and closes the connection. `hang_up`: closes it without a byte.
    With `events` it streams them: a value as JSON, a text as it is; at a threading.Event it waits for it.
    """

    status: int = 200
    body: bytes = b""
    text: str | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cut: bool = False
    hang_up: bool = False
    hold: threading.Event | None = None
    delay_s: float = 0.0
    events: Sequence[Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One chat request as it arrived; `n` counts from 1 in order of arrival, `arrived_s` is monotonic time.

    `body` is the parsed JSON, or None if it was none. Header names are in lower case.
    """

    n: int
    arrived_s: float
    headers: Mapping[str, str]
    body: Any


Script = Callable[[Any, int], Reply]
"""Chooses the reply from the request's parsed body and its number."""


def answers(text: str) -> Reply:
    """Return a completion of this text."""
    return Reply(text=text)


def status(code: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
    """Return a reply of this HTTP status; without a body, OpenAI's error object."""
    if body is None:
        body = {"error": {"message": f"scripted {code}", "type": "scripted_error", "param": None, "code": None}}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status=code, body=data, headers=headers or {})


def chunk(text: str | None = None, *, finish_reason: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    """Return a chunk of a streamed completion."""
    told = delta if text is None else {"content": text, **delta}
    choice = {"index": index, "delta": told, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def streams(*said: str | threading.Event, usage: tuple[int, int] | None = (10, 5)) -> Reply:
    """Return a completion that is streamed: each text is a chunk; at an event the provider waits for it."""
    events: list[Any] = [chunk(each) if isinstance(each, str) else each for each in said]
    events.append(chunk(finish_reason="stop"))
    if usage is not None:
        events.append({**chunk(), "choices": [], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}})
    return Reply(events=(*events, "[DONE]"))


def cut_connection() -> Reply:
    """Return a good completion whose connection is cut in the middle of the body."""
    return Reply(text="this text never arrives whole", cut=True)


def hang_up() -> Reply:
    """Return no reply at all: the request was read, then the connection is closed."""
    return Reply(hang_up=True)


def malformed_json() -> Reply:
    """Return a 200 whose body is not JSON."""
    return Reply(body=b'{"choices": [')


def hang_until(event: threading.Event, *, then: Reply | None = None) -> Reply:
    """Return a reply that is sent once the event is set; closing the provider sets it too."""
    return dataclasses.replace(then or answers("late"), hold=event)


def default_reply(body: Any, n: int) -> Reply:
    """Answer by content alone, so that a repeated request gets the same answer.

    With a JSON Schema: its smallest fitting value, where an enum takes its first value if
    the last message contains "good", its last if "bad", else one by checksum. Without: an echo.
    """
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        return status(400)
    prompt = _text_of(body["messages"][-1]) if body["messages"] else ""
    response_format = body.get("response_format") or {}
    if response_format.get("type") == "json_schema":
        text = json.dumps(_instance_of(response_format["json_schema"].get("schema", {}), prompt))
    elif response_format.get("type") == "json_object":
        text = json.dumps({"echo": prompt})
    else:
        text = f"echo: {prompt}"
    return answers(text)


class LoopbackProvider:
    """The provider as a context manager; leaving it frees held requests and closes every connection.

    A request whose script raised is answered 500, and leaving raises the same error.

    `delay_s` is the latency of every reply. `log` is a file that gets one JSON line
    (`n`, `at_s` since the epoch, `body`) for each chat request, on disk before the answer is sent.
    """

    def __init__(
        self, script: Script = default_reply, *, port: int = 0, delay_s: float = 0.0, log: Path | None = None
    ) -> None:
        self.models: tuple[str, ...] = ("loopback",)
        self._script = script
        self._delay_s = delay_s
        self._queued: deque[Reply] = deque()
        self._requests: list[Request] = []
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._held: set[threading.Event] = set()
        self._script_error: Exception | None = None
        self._in_flight = 0
        self._peak_in_flight = 0
        self._log = log.open("a", encoding="utf-8") if log else None
        self._server = _Server(port, self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="loopback-provider")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with self._changed:
            for event in self._held:
                event.set()
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()
        if self._log:
            self._log.close()
        if self._script_error and exc is None:
            raise self._script_error

    @property
    def base_url(self) -> str:
        """Return the base URL, which ends in /v1."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def requests(self) -> list[Request]:
        """Return the chat requests so far, in order of arrival."""
        with self._changed:
            return list(self._requests)

    @property
    def count(self) -> int:
        """Return how many chat requests have arrived."""
        with self._changed:
            return len(self._requests)

    @property
    def in_flight(self) -> int:
        """Return how many chat requests are open now."""
        with self._changed:
            return self._in_flight

    @property
    def peak_in_flight(self) -> int:
        """Return how many chat requests were open at once at most."""
        with self._changed:
            return self._peak_in_flight

    def script(self, script: Script) -> None:
        """Let this function choose the replies from now on."""
        with self._changed:
            self._script = script

    def queue(self, *replies: Reply) -> None:
        """Give these replies to the next requests, one each; after them the script goes on."""
        with self._changed:
            self._queued.extend(replies)

    def wait_for_requests(self, n: int, *, deadline_s: float = 60.0) -> list[Request]:
        """Return the requests as soon as there are at least n; TimeoutError after deadline_s."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= n, timeout=deadline_s):
                raise TimeoutError(f"{len(self._requests)} of {n} requests arrived within {deadline_s} s")
            return list(self._requests)

    def take(self, headers: Mapping[str, str], body: Any) -> Reply:
        """Record a chat request, hold it as long as its reply says, and return the reply to send."""
        with self._changed:
            request = Request(n=len(self._requests) + 1, arrived_s=time.monotonic(), headers=headers, body=body)
            if self._log:
                self._log.write(json.dumps({"n": request.n, "at_s": time.time(), "body": body}) + "\n")
                self._log.flush()
            self._requests.append(request)
            self._in_flight += 1
            self._peak_in_flight = max(self._peak_in_flight, self._in_flight)
            script = self._script
            reply = self._queued.popleft() if self._queued else None
            self._changed.notify_all()
        if reply is None:
            try:
                reply = script(body, request.n)
            except Exception as exc:  # noqa: BLE001 - it belongs to the test, whose thread this is not
                self._script_error = exc
                reply = status(500)
        if reply.hold is not None:
            self.wait_for(reply.hold)
        self._closing.wait(self._delay_s + reply.delay_s)
        return reply

    def wait_for(self, event: threading.Event) -> None:
        """Wait for the event; closing the provider sets it."""
        with self._changed:
            self._held.add(event)
        if not self._closing.is_set():
            event.wait()

    def done(self) -> None:
        """Count one chat request as no longer open."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close joins them
    request_queue_size = 512

    def __init__(self, port: int, provider: LoopbackProvider) -> None:
        self.provider = provider
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would ask the resolver for a name that nobody needs.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connections_lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._connections_lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """End the reads of idle keep-alive connections, so that their threads end."""
        with self._connections_lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # the client closed it first
                    continue


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one segment: no 40 ms of delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        if self.path == MODELS_PATH:
            models = [{"id": name, "object": "model"} for name in self.server.provider.models]
            self._send(status(200, {"object": "list", "data": models}))
        else:
            self._send(status(404))

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != CHAT_PATH:
            self._send(status(404))
            return
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            reply = self.server.provider.take(headers, body)
            self._send(reply, request_body=body)
        finally:
            self.server.provider.done()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client went away, as killed ones do
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:  # ditto, with bytes still unsent
            self.rfile.close()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: the provider records requests itself."""

    def _send(self, reply: Reply, *, request_body: Any = None) -> None:
        if reply.hang_up:
            self.close_connection = True
            return
        if reply.events is not None:
            self._stream(reply, reply.events)
            return
        body = reply.body if reply.text is None else _completion(reply.text, request_body)
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if reply.cut else body)
        self.wfile.flush()
        if reply.cut:
            self.close_connection = True

    def _stream(self, reply: Reply, events: Sequence[Any]) -> None:
        self.close_connection = True
        self.send_response(reply.status)
        for name, value in {"Content-Type": "text/event-stream", "Connection": "close", **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for event in events:
            if isinstance(event, threading.Event):
                self.wfile.flush()
                self.server.provider.wait_for(event)
            else:
                data = event if isinstance(event, str) else json.dumps(event)
                self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()


def _completion(text: str, request_body: Any) -> bytes:
    request_body = request_body if isinstance(request_body, dict) else {}
    prompt_tokens = sum(_tokens_of(_text_of(message)) for message in request_body.get("messages", []))
    most = request_body.get("max_completion_tokens") or request_body.get("max_tokens")
    completion_tokens = min(_tokens_of(text), most) if most else _tokens_of(text)
    completion = {
        "id": f"chatcmpl-{zlib.crc32(text.encode()):08x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request_body.get("model", "loopback"),
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
    return json.dumps(completion).encode()


def _tokens_of(text: str) -> int:
    """Count as the project's benchmarks do: four characters a token, and four tokens a message."""
    return len(text) // 4 + 4


def _text_of(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _instance_of(schema: Mapping[str, Any], prompt: str) -> Any:
    """Return the smallest value that fits the plain keywords of a JSON Schema."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return _choice(schema["enum"], prompt)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return _instance_of(schema[keyword][0], prompt)
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: _instance_of(properties.get(name, {}), prompt) for name in schema.get("required", properties)}
        case "array":
            return [_instance_of(schema.get("items", {}), prompt) for _ in range(schema.get("minItems", 0))]
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case "null":
            return None
        case _:
            return "x" * schema.get("minLength", 1)


def _choice(values: list[Any], prompt: str) -> Any:
    if "good" in prompt:
        return values[0]
    if "bad" in prompt:
        return values[-1]
    return values[zlib.crc32(prompt.encode()) % len(values)]


def main() -> None:
    """Serve until SIGTERM or SIGINT; the base URL is the first line on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    # Blocked before the threads start, so that sigwait is the one place where they arrive.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with LoopbackProvider(port=arguments.port, delay_s=arguments.delay_s, log=arguments.log) as provider:
        print(provider.base_url, flush=True)  # noqa: T201 - the caller reads it
        signal.sigwait(signals)


if __name__ == "__main__":
    main()
