"""Langdock, Langtail, an agent endpoint and a plain OpenAI-compatible server on loopback, as CONTRACT.md has them.

One real HTTP/1.1 server with one state: threads, sessions and a log of what arrived. Its
model answers "heard: " and every user text in its context, so that an answer shows what
reached it. A test breaks the next answers with faults.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import socket
import socketserver
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback_provider import _instance_of

KEY = "key-of-the-tests"
THREAD_HEADER = "x-langtail-thread-id"
AGENT_BASE = "/api/v1/compatibility/openai/v1"
AGENT_MODEL = "agent-model"
PASSAGE = {"text": "Oslo is in Norway.", "metadata": {"document_id": str(uuid.UUID(int=7)), "score": 0.9}}


@dataclasses.dataclass(frozen=True, slots=True)
class Recorded:
    """One request as it arrived; header names are in lower case, `body` is None if it was no JSON."""

    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one answer.

    `status` answers at once, with `body` and `headers`. The others let the service do its
    work: `raw` replaces its body, `hang` never sends it, `hang_up` closes the connection
    before it, `cut` in the middle of it. In a stream, `no_done` leaves `[DONE]` away,
    `drop_last` that many events before it, and `error_event` follows the first event and ends it.
    """

    status: int | None = None
    body: Any = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    raw: bytes | None = None
    hang: bool = False
    hang_up: bool = False
    cut: bool = False
    no_done: bool = False
    drop_last: int = 0
    error_event: Any = None


@dataclasses.dataclass(slots=True)
class Answer:
    """What a service answers: JSON, or the events of a stream (each one JSON value)."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    events: list[Any] | None = None


class Refused(Exception):  # noqa: N818 - it is an answer
    """The service refuses a request."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.answer = Answer(status=status, body=body, headers=headers or {})


class LoopbackHosted:
    """The services as a context manager; leaving it ends everything that hangs.

    `result_form` is how Langdock writes content, `agent_form` how its agent API wraps it:
    the sources disagree on both. With `streams_unasked` every answer is a stream. `headers` come
    with every answer that no fault breaks.
    """

    def __init__(self) -> None:
        self.result_form: Literal["parts", "string"] = "parts"
        self.agent_form: Literal["message", "messages", "result"] = "message"
        self.streams_unasked = False
        self.counts_tokens = True
        self.headers: dict[str, str] = {}
        self.assistants = {"asst_1", "asst_tools"}
        self.deployments = {"acme/support/greeter/production": {"": "You greet {{name}}.", "3": "Version 3, {{name}}."}}
        self.agents = {"agent-1"}
        self.threads: dict[str, list[dict[str, Any]]] = {}
        self.sessions: dict[str, list[dict[str, Any]]] = {}
        self.requests: list[Recorded] = []
        self.closing = threading.Event()
        self._faults: deque[Fault] = deque()
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,), name="loopback-hosted")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Return the URL of the server, without a path."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, *faults: Fault) -> None:
        """Break the next answers, one each."""
        self._faults.extend(faults)

    def take(self, request: Recorded) -> tuple[Answer, Fault]:
        """Record a request and return what is answered, and what goes wrong with it."""
        with self._lock:
            self.requests.append(request)
            fault = self._faults.popleft() if self._faults else Fault()
            if fault.status is not None:
                headers = dict(fault.headers)
                return Answer(status=fault.status, body=fault.body, headers=headers), fault
            try:
                answer = self._route(request)(request)
                answer.headers |= self.headers
                return answer, fault
            except Refused as refused:
                return refused.answer, fault

    def _route(self, request: Recorded) -> Callable[[Recorded], Answer]:
        path = request.path
        if path in {"/assistant/v1/chat/completions", "/agent/v1/chat/completions"}:
            return self._langdock
        if path.startswith((f"{AGENT_BASE}/assistants/", f"{AGENT_BASE}/agents/")):
            return self._agent
        if path == "/v1/chat/completions":
            return self._openai
        return self._langtail

    # --- OpenAI-compatible ----------------------------------------------------------------

    def _openai(self, request: Recorded) -> Answer:
        body = request.body
        if request.headers.get("authorization") != f"Bearer {KEY}":
            raise Refused(401, _error("Incorrect API key provided", "invalid_request_error", "invalid_api_key"))
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
            raise Refused(400, _error("'messages' must be a list that is not empty", "invalid_request_error", None))
        return self._completion(body, context=body["messages"], model=body.get("model", ""))

    def _completion(
        self, body: dict[str, Any], *, context: list[dict[str, Any]], model: str, extra: dict[str, Any] | None = None
    ) -> Answer:
        """Answer in OpenAI's form; a required tool is called, a JSON format is kept to."""
        message = _answer_of(body, context)
        finish = "tool_calls" if "tool_calls" in message else "stop"
        usage = {"prompt_tokens": _tokens(context), "completion_tokens": 5, "total_tokens": _tokens(context) + 5}
        head: dict[str, Any] = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": model, **(extra or {})}
        if body.get("stream") or self.streams_unasked:
            chunk = {**head, "object": "chat.completion.chunk"}
            asked = (body.get("stream_options") or {}).get("include_usage") or self.streams_unasked
            events = [
                chunk | {"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}
                for index in range(body.get("n") or 1)
                for delta, reason in [*((d, None) for d in _deltas(message)), ({}, finish)]
            ]
            if asked and self.counts_tokens:
                events.append(chunk | {"choices": [], "usage": usage})
            return Answer(events=events)
        choices = [{"index": index, "message": message, "finish_reason": finish} for index in range(body.get("n") or 1)]
        completion = {**head, "object": "chat.completion", "choices": choices}
        return Answer(body=completion | ({"usage": usage} if self.counts_tokens else {}))

    # --- Langtail (CONTRACT.md 1) -----------------------------------------------------------

    def _langtail(self, request: Recorded) -> Answer:
        body = request.body
        if request.headers.get("x-api-key") != KEY:
            raise Refused(401, _error("Invalid API key", "authentication_error", None))
        templates = self.deployments.get(request.path.lstrip("/"))
        version = request.query.get("v", [""])[0]
        if templates is None or version not in templates:
            raise Refused(404, {"error": "Prompt deployment not found"})
        thread_id = body.get("threadId")
        if thread_id is None:
            thread_id = f"thread_{uuid.uuid4().hex}"
            thread: list[dict[str, Any]] = []
        elif thread_id in self.threads:
            thread = self.threads[thread_id]
        else:
            raise Refused(404, _error("Thread not found", "not_found", None))
        header = {THREAD_HEADER: thread_id}
        problem = _langtail_problem(body)
        if problem:
            raise Refused(400, _error(problem, "invalid_request_error", None), header)
        variables = body.get("variables") or {}
        template = {
            "role": "system",
            "content": re.sub(r"\{\{(\w+)\}\}", lambda match: variables.get(match[1], ""), templates[version]),
        }
        new = body.get("messages") or []
        context = [template, *thread, *new]
        answer = self._completion(body, context=context, model=body.get("model") or "gpt-deployed")
        answer.headers = header
        self.threads[thread_id] = [*thread, *new, _answer_of(body, context)]
        return answer

    # --- the agent endpoint (CONTRACT.md 2) -------------------------------------------------

    def _agent(self, request: Recorded) -> Answer:
        body = request.body
        if request.headers.get("authorization") != f"Bearer {KEY}":
            raise Refused(401, {"detail": "Not authenticated"})
        agent_id = unquote(request.path.removeprefix(AGENT_BASE).split("/")[2])
        if agent_id not in self.agents:
            raise Refused(404, {"detail": f"No agent found with ID {agent_id}"})
        details = list(_agent_problems(body))
        if details:
            raise Refused(422, {"detail": details})
        if any(message["role"] not in {"user", "assistant", "tool"} for message in body["messages"]):
            raise Refused(400, {"detail": "Unsupported role in chat completions message"})
        if body.get("model") not in {None, "", AGENT_MODEL}:
            raise Refused(400, {"detail": f"Unexpected model {body['model']!r}"})
        session_id = body.get("store_in_session")
        if session_id is not None and body.get("create_session"):
            raise Refused(400, {"detail": "create_session and store_in_session exclude each other"})
        if session_id is not None and session_id not in self.sessions:
            raise Refused(404, {"detail": f"No session found with ID {session_id}"})
        if body.get("create_session"):
            session_id = str(uuid.uuid4())
            self.sessions[session_id] = []
        context = [*(self.sessions[session_id] if session_id else []), *body["messages"]]
        extra: dict[str, Any] = {"index_context_info": [PASSAGE]}
        if body.get("create_session"):
            extra["session_id"] = session_id
        answer = self._completion(body, context=context, model=AGENT_MODEL, extra=extra)
        if session_id:
            self.sessions[session_id] = [*context, _answer_of(body, context)]
        return answer

    # --- Langdock (CONTRACT.md 3) -----------------------------------------------------------

    def _langdock(self, request: Recorded) -> Answer:
        api = request.path.split("/")[1]
        body = request.body
        if request.headers.get("authorization") != f"Bearer {KEY}":
            raise Refused(401, {"message": "Invalid API key"})
        problem = _langdock_problem(body, api)
        if problem:
            raise Refused(400, {"message": problem})
        assistant_id = body.get(f"{api}Id")
        if assistant_id == "asst_private":
            raise Refused(403, {"message": "The assistant is not shared with this API key"})
        if assistant_id is not None and assistant_id not in self.assistants:
            raise Refused(404, {"message": "Assistant not found"})
        texts = [_ui_text(message) if api == "agent" else message["content"] for message in body["messages"]]
        heard = [text for text, message in zip(texts, body["messages"], strict=True) if message["role"] == "user"]
        text = f"heard: {' | '.join(heard)}"
        output = _langdock_output(body.get("output"), heard)
        steps = list(_langdock_steps(text, tools=assistant_id == "asst_tools", max_steps=body.get("maxSteps", 10)))
        if body.get("stream") or self.streams_unasked:
            events = [event for step in steps for event in (_ui_events if api == "agent" else _events)(step)]
            finish = {"type": "finish"} | ({"output": output} if "output" in body else {})
            return Answer(events=[*events, finish])
        answer = self._langdock_body(api, steps)
        return Answer(body=answer | ({"output": output} if "output" in body else {}))

    def _langdock_body(self, api: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
        if api == "agent" and self.agent_form == "message":
            parts = [part for step in steps for part in [{"type": "step-start"}, *_ui_message_parts(step)]]
            return {"id": "msg_a", "role": "assistant", "parts": parts}
        items = [item for step in steps for item in _items(step)]
        if self.result_form == "string":
            for item in items:
                if [part["type"] for part in item["content"]] == ["text"]:
                    item["content"] = item["content"][0]["text"]
        return {"messages" if api == "agent" and self.agent_form == "messages" else "result": items}


# --- validation ---------------------------------------------------------------------------------


def _langtail_problem(body: Any) -> str | None:
    if not isinstance(body, dict):
        return "the body must be an object"
    known = {
        "threadId", "variables", "messages", "stream", "model", "max_tokens", "temperature", "top_p",
        "presence_penalty", "frequency_penalty", "template", "tool_choice", "response_format", "user", "doNotRecord",
        "metadata", "seed", "parallelToolCalls", "tools", "stop", "reasoning_effort", "max_thinking_tokens",
    }  # fmt: skip
    if set(body) - known:
        return f"unknown fields: {', '.join(sorted(set(body) - known))}"
    if not all(isinstance(value, str) for value in body.get("variables", {}).values()):
        return "variables must be strings"
    if not 0 <= body.get("temperature", 0) <= 2:
        return "temperature must be between 0 and 2"
    for key, value in body.get("metadata", {}).items():
        if len(key) > 64 or isinstance(value, bool) or not isinstance(value, str | int | float):
            return "metadata must be strings or numbers under keys of at most 64 characters"
    return None


def _agent_problems(body: Any) -> Iterator[dict[str, Any]]:
    """Yield FastAPI's details."""
    if not body.get("messages"):
        yield _detail("messages", "List should have at least 1 item", "too_short")
    temperature = body.get("temperature", 0)
    if not 0 <= temperature <= 2:
        yield _detail("temperature", "Input should be between 0 and 2", "less_than_equal")
    for name in ("n", "max_tokens"):
        if body.get(name, 1) < 1:
            yield _detail(name, "Input should be greater than or equal to 1", "greater_than_equal")
    if "stop" in body and not body["stop"]:
        yield _detail("stop", "List should have at least 1 item", "too_short")
    if "store_in_session" in body:
        try:
            uuid.UUID(body["store_in_session"])
        except ValueError:
            yield _detail("store_in_session", "Input should be a valid UUID", "uuid_parsing")


def _detail(name: str, message: str, kind: str) -> dict[str, Any]:
    return {"loc": ["body", name], "msg": message, "type": kind}


def _langdock_problem(body: Any, api: str) -> str | list[dict[str, Any]] | None:
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        return "messages is required"
    if set(body) - {f"{api}Id", api, "messages", "stream", "output", "maxSteps"}:
        return f"unknown fields among {', '.join(sorted(body))}"
    if (f"{api}Id" in body) == (api in body):
        return f"exactly one of {api}Id and {api} is required"
    if api in body and (problem := _config_problem(body[api])):
        return problem
    if not 1 <= body.get("maxSteps", 10) <= 20:
        return "maxSteps must be between 1 and 20"
    for index, message in enumerate(body["messages"]):
        roles = {"user", "assistant", "system"} if api == "agent" else {"user", "assistant", "tool"}
        if message.get("role") not in roles:
            return [{"path": ["messages", index, "role"], "message": "Invalid enum value"}]
        if api == "agent":
            if not isinstance(message.get("id"), str) or not isinstance(message.get("parts"), list):
                return [{"path": ["messages", index], "message": "id and parts are required"}]
        elif not isinstance(message.get("content"), str):
            return [{"path": ["messages", index, "content"], "message": "Expected string"}]
    output = body.get("output")
    if output is not None and output["type"] == "enum" and not output.get("enum"):
        return "enum is required"
    return None


def _config_problem(config: dict[str, Any]) -> str | None:
    for name, most in (("name", 64), ("instructions", 16_384)):
        if not config.get(name) or len(config[name]) > most:
            return f"{name} is required and has at most {most} characters"
    if len(config.get("description", "")) > 256:
        return "description has at most 256 characters"
    return None if 0 <= config.get("temperature", 0) <= 1 else "temperature must be between 0 and 1"


# --- the model ----------------------------------------------------------------------------------


def _answer_of(body: Mapping[str, Any], context: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the assistant's message; content alone decides."""
    if body.get("tools") and body.get("tool_choice") == "required":
        calls = [
            {
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": tool["function"]["name"], "arguments": "{}"},
            }
            for index, tool in enumerate(body["tools"])
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    heard = [_content_text(message) for message in context if message["role"] in {"user", "system", "tool"}]
    response_format = body.get("response_format") or {}
    if response_format.get("type") == "json_schema":
        text = json.dumps(_instance_of(response_format["json_schema"]["schema"], heard[-1]))
    else:
        text = f"heard: {' | '.join(heard)}"
    return {"role": "assistant", "content": text}


def _content_text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return "".join(part.get("text", "") for part in content) if isinstance(content, list) else content or ""


def _deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a message as a stream has it: the text in two pieces, the arguments of a call too."""
    if "tool_calls" in message:
        yield {"role": "assistant", "content": None}
        for index, call in enumerate(message["tool_calls"]):
            start = copy.deepcopy(call)
            start["function"]["arguments"] = "{"
            yield {"tool_calls": [{"index": index, **start}]}
            yield {"tool_calls": [{"index": index, "function": {"arguments": "}"}}]}
        return
    text = message["content"]
    middle = len(text) // 2
    yield {"role": "assistant", "content": text[:middle]}
    yield {"content": text[middle:]}


def _tokens(context: list[dict[str, Any]]) -> int:
    return sum(len(_content_text(message)) // 4 + 4 for message in context)


# --- Langdock's answers -----------------------------------------------------------------------


def _langdock_steps(text: str, *, tools: bool, max_steps: int) -> Iterator[dict[str, Any]]:
    """Yield steps: with tools, one that calls two of them at once, and then the answer if the steps suffice."""
    if tools:
        calls = [("call_a", "lookup", {"q": "Oslo"}, {"answer": 42}), ("call_b", "clock", {}, "noon")]
        yield {"text": "Let me look.", "calls": calls}
    if not tools or max_steps > 1:
        yield {"text": text, "calls": []}


def _items(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parts = [{"type": "text", "text": step["text"]}]
    parts += [
        {"type": "tool-call", "toolCallId": call_id, "toolName": name, "args": args}
        for call_id, name, args, _ in step["calls"]
    ]
    yield {"id": "item_a", "role": "assistant", "content": parts}
    if step["calls"]:
        results = [
            {"type": "tool-result", "toolCallId": call_id, "toolName": name, "result": result}
            for call_id, name, _, result in step["calls"]
        ]
        yield {"id": "item_t", "role": "tool", "content": results}


def _ui_message_parts(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"type": "reasoning", "text": "hm"}
    yield {"type": "text", "text": step["text"]}
    for call_id, name, args, result in step["calls"]:
        state = "output-available"
        yield {"type": f"tool-{name}", "toolCallId": call_id, "state": state, "input": args, "output": result}


def _events(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of decision 72."""
    middle = len(step["text"]) // 2
    yield {"type": "text-delta", "delta": step["text"][:middle]}
    yield {"type": "text-delta", "delta": step["text"][middle:]}
    for call_id, name, args, _ in step["calls"]:
        yield {"type": "tool-call", "toolCallId": call_id, "toolName": name, "args": args}
    for call_id, name, _, result in step["calls"]:
        yield {"type": "tool-result", "toolCallId": call_id, "toolName": name, "result": result}
    yield {"type": "finish-step"}


def _ui_events(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of the AI SDK's UI message stream."""
    yield {"type": "start-step"}
    yield {"type": "text-start", "id": "t"}
    middle = len(step["text"]) // 2
    yield {"type": "text-delta", "id": "t", "delta": step["text"][:middle]}
    yield {"type": "text-delta", "id": "t", "delta": step["text"][middle:]}
    yield {"type": "text-end", "id": "t"}
    for call_id, name, args, result in step["calls"]:
        yield {"type": "tool-input-start", "toolCallId": call_id, "toolName": name}
        yield {"type": "tool-input-available", "toolCallId": call_id, "toolName": name, "input": args}
        yield {"type": "tool-output-available", "toolCallId": call_id, "output": result}
    yield {"type": "finish-step"}


def _langdock_output(spec: Any, heard: list[str]) -> Any:
    if spec is None:
        return None
    if spec["type"] == "enum":
        return spec["enum"][0]
    value = _instance_of(spec.get("schema") or {"type": "object"}, heard[-1] if heard else "")
    return [value] if spec["type"] == "array" else value


def _ui_text(message: dict[str, Any]) -> str:
    return "".join(part.get("text", "") for part in message["parts"])


def _error(message: str, kind: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


# --- HTTP ---------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close joins them
    request_queue_size = 128

    def __init__(self, services: LoopbackHosted) -> None:
        self.services = services
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

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
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        answer, fault = self.server.services.take(
            Recorded(
                path=url.path,
                query=parse_qs(url.query),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=body,
            )
        )
        if fault.hang:
            self.server.services.closing.wait()
        if fault.hang or fault.hang_up:
            self.close_connection = True
        elif answer.events is not None and fault.raw is None:
            self._stream(answer, fault)
        else:
            self._send(answer, fault)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client went away
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:  # ditto, with bytes still unsent
            self.rfile.close()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: requests are recorded."""

    def _send(self, answer: Answer, fault: Fault) -> None:
        data = fault.raw if fault.raw is not None else _bytes(answer.body)
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault.cut else data)
        self.wfile.flush()
        self.close_connection = self.close_connection or fault.cut

    def _stream(self, answer: Answer, fault: Fault) -> None:
        events = list(answer.events or ())
        if fault.error_event is not None:
            events = [*events[:1], fault.error_event]
        elif fault.cut:
            events = events[: max(1, len(events) // 2)]
        elif fault.drop_last:
            events = events[: -fault.drop_last]
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Type": "text/event-stream; charset=utf-8"}.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        # A comment is a sign of life, as some services send it.
        self._chunk(b": ping\r\n\r\n")
        for event in events:
            self._chunk(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
        if fault.cut:
            self.close_connection = True
            return
        if not fault.no_done and fault.error_event is None:
            self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


def _bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
