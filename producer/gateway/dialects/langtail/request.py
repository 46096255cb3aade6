"""What Langtail's Invoke Assistant takes, and the job that it becomes (CONTRACT.md 1.2 and 1.3)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, ValidationError

from producer.gateway.chat.request import FunctionCall, ImageContent, MadeToolCall, TextContent
from producer.gateway.faults import faults_in, problem_of
from producer.gateway.problem import Kind, Problem
from schemas.assistant import AssistantConfig
from schemas.job import METADATA_KEY_MAX_CHARS, InvokeJob
from schemas.parameters import ReasoningEffort
from schemas.tool import ClientTool, NamedToolChoice, ToolSpec

METADATA_HEADER = "x-langtail-metadata-"
# What a job calls otherwise than a request.
_NAMES = {"thread_id": "threadId", "parallel_tool_calls": "parallelToolCalls"}
_OVERRIDES = (
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "n",
    "seed",
    "tool_choice",
    "response_format",
    "reasoning_effort",
    "user",
)


class _Body(BaseModel):
    """What is unknown is ignored, as Langtail does."""

    model_config = ConfigDict(frozen=True, extra="ignore")


Content = Annotated[TextContent | ImageContent, Field(discriminator="type")]


class ChatMessage(_Body):
    """A message in any of Langtail's forms; `function` and `function_call` are those of before there were tools."""

    role: Literal["assistant", "user", "system", "function", "tool"]
    content: str | Annotated[list[Content], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[MadeToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None


class Handler(_Body):
    """Whether the tool runs on the server."""

    enabled: bool = False


class Function(_Body):
    """What a tool does."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    handler: Handler | None = None


class Tool(_Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


MetadataKey = Annotated[str, Field(min_length=1, max_length=METADATA_KEY_MAX_CHARS)]
Metadata = dict[MetadataKey, StrictStr | StrictInt | StrictFloat]


class InvokeRequest(_Body):
    """What is asked of an assistant; all of it may be left out.

    `max_tokens` -1 sends no limit. `max_thinking_tokens` is taken and ignored: no OpenAI-compatible server has it.
    """

    threadId: str | None = None  # noqa: N815 - the name on the wire
    variables: dict[str, Any] | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] | None = None
    template: Annotated[list[ChatMessage], Field(fail_fast=True)] | None = None
    stream: bool | None = None
    model: str | None = None
    max_tokens: int | None = None
    max_thinking_tokens: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    n: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["auto", "required", "none"] | NamedToolChoice | None = None
    parallelToolCalls: bool | None = None  # noqa: N815 - the name on the wire
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: ReasoningEffort | None = None
    user: str | None = None
    doNotRecord: bool | None = None  # noqa: N815 - the name on the wire
    metadata: Metadata | None = None


def job_of(
    body: InvokeRequest,
    *,
    job_id: str,
    address: str,
    environment: str,
    version: int | None,
    config: AssistantConfig,
    headers: Mapping[str, str],
    unrecorded: bool,
) -> InvokeJob:
    """Return the job; Problem 400 for what cannot be one.

    The id of its thread follows from its own: the answer's headers tell it before the job ends, and alike when it is
    sent again. One that is not
    to be recorded and names no thread leaves none (decision 31). Its templates are lenient (decision 10-17).
    """
    fields: dict[str, Any] = {name: getattr(body, name) for name in _OVERRIDES}
    fields |= {
        "id": job_id,
        "assistant": address,
        "environment": environment,
        "version": version,
        "thread_id": body.threadId or (None if unrecorded else f"thread_{job_id.removeprefix('job_')}"),
        "keep_thread": not unrecorded,
        "variables": body.variables or {},
        "messages": messages_of(body.messages or (), where="messages"),
        "template": None if body.template is None else messages_of(body.template, where="template"),
        "tools": None if body.tools is None else _tools(body.tools, config),
        "stop": body.stop or None,
        "parallel_tool_calls": body.parallel_tool_calls if body.parallelToolCalls is None else body.parallelToolCalls,
        "metadata": {**_metadata_of(headers), **(body.metadata or {})},
        "do_not_record": unrecorded,
        "tell": "stream" if body.stream else "end",
        "strict_variables": False,
    }
    try:
        return InvokeJob.model_validate(fields)
    except ValidationError as error:
        raise refusal(error) from error


def asked_for(body: InvokeRequest, *, version: str | None, headers: Mapping[str, str]) -> str:
    """Return all that an invocation asks of its assistant, as one text."""
    told = {"version": version, "metadata": _metadata_of(headers), "body": body.model_dump(exclude_unset=True)}
    return json.dumps(told, sort_keys=True)


def refusal(error: ValidationError) -> Problem:
    """Return the problem of values that cannot be what they are to be, by the names that the request has for them."""
    return problem_of(
        [replace(fault, where=tuple(_NAMES.get(str(part), part) for part in fault.where)) for fault in faults_in(error)]
    )


def messages_of(messages: Iterable[ChatMessage], *, where: str) -> tuple[dict[str, Any], ...]:
    """Return the messages as a job has them; content that is null is empty, where it says something by itself.

    The calls of before there were tools get ids, by which the function messages after them answer.
    """
    told: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []
    for position, message in enumerate(messages):
        calls = [{"id": call.id, "function": call.function.model_dump()} for call in message.tool_calls or ()]
        if message.function_call is not None and not calls:
            call_id = f"call_{uuid.uuid4().hex}"
            calls = [{"id": call_id, "function": message.function_call.model_dump()}]
            waiting.append((message.function_call.name, call_id))
        answers = message.tool_call_id
        if message.role == "function":
            answers = _answered_by(message, waiting, place=f"{where}[{position}]")
        told.append(
            {
                "role": "tool" if message.role == "function" else message.role,
                "content": _content(message, calls=calls),
                "name": message.name,
                "tool_calls": calls,
                "tool_call_id": answers,
            }
        )
    return tuple(told)


def _content(message: ChatMessage, *, calls: Sequence[Any]) -> Any:
    if isinstance(message.content, list):
        return [part.model_dump() for part in message.content]
    return message.content if message.content is not None or calls else ""


def _answered_by(message: ChatMessage, waiting: list[tuple[str, str]], *, place: str) -> str:
    for at, (name, call_id) in enumerate(waiting):
        if name == message.name:
            del waiting[at]
            return call_id
    raise Problem(
        Kind.BAD_REQUEST,
        f"{place}: no function_call of '{message.name}' stands before this function message; "
        "answer a tool call with role `tool` and its `tool_call_id`",
        code="invalid_request",
        param=place,
    )


def _tools(tools: Iterable[Tool], config: AssistantConfig) -> list[ToolSpec | dict[str, Any]]:
    """Return the tools: one that the assistant hosts under this name runs there, any other the caller answers."""
    hosted = {tool.name: tool for tool in config.tools or () if not isinstance(tool, ClientTool)}
    specs: list[ToolSpec | dict[str, Any]] = []
    for tool in tools:
        function = tool.function
        if function.handler is not None and function.handler.enabled and function.name in hosted:
            specs.append(hosted[function.name])
            continue
        spec: dict[str, Any] = {"type": "function", "name": function.name, "description": function.description or ""}
        specs.append(spec | ({} if function.parameters is None else {"parameters": function.parameters}))
    return specs


def _metadata_of(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(METADATA_HEADER): value for name, value in headers.items() if name.startswith(METADATA_HEADER)
    }
