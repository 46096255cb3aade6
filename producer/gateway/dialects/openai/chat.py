"""OpenAI's chat completions over any provider behind us, and over stored assistants.

`model` is a model's name, or a stored assistant's address: `workspace/project/assistant`, for its production, or
with `@environment` or `@version` (a number) behind it. A name of three parts is always an address. An assistant
keeps its own tools beside the caller's, and its other parameters where the request says nothing.

What a caller can set either works, is refused as `unsupported_parameter` (unsupported.py), or changes nothing
about the answer and is ignored: `store`, `service_tier`, `safety_identifier`, `prediction`, `prompt_cache_key`,
`prompt_cache_retention`, `stream_options.include_obfuscation`, and whatever OpenAI does not document.
A schema with `strict` is checked here too, and a reply that does not fit is mended or is an error: a stream of it
begins once it is whole. Without `strict`, the provider gets it as it is.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from producer.gateway.access import Runs, refuse_inline
from producer.gateway.chat.answer import Begun, ChatCall, answered, begun
from producer.gateway.chat.completion import ChatCompletion
from producer.gateway.chat.request import ChatMessage, ChatRequest, callers_tools, client_tools, job_of, messages_of
from producer.gateway.dialects.openai.errors import OPENAI_ERRORS
from producer.gateway.dialects.openai.unsupported import refuse_unsupported
from producer.gateway.http.strict_json import StrictJsonRoute
from producer.gateway.idempotency import IdempotencyKey
from producer.gateway.parts import parts_of
from producer.gateway.problem import Kind, Problem
from producer.gateway.stored_assistant import StoredAssistant, stored_assistant
from schemas.assistant import InlineAssistant
from schemas.job import InvokeJob
from schemas.tool import ToolSpec

router = APIRouter(route_class=StrictJsonRoute, tags=["OpenAI"], responses=OPENAI_ERRORS)

_ADDRESS = re.compile(r"(?P<address>[^/@]+/[^/@]+/[^/@]+)(?:@(?P<which>[^/@]+))?")
_STREAM_ANSWER: dict[str, Any] = {"text/event-stream": {}}


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class OpenAIMessage(ChatMessage):
    """A message; the deprecated role `function` is not taken."""

    role: Literal["developer", "system", "user", "assistant", "tool"]


class TextFormat(_Given):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(_Given):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(_Given):
    """A JSON Schema for the answer."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(_Given):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataText = Annotated[str, Field(max_length=512)]


class ChatCompletionRequest(ChatRequest):
    """What is asked for."""

    # What is not served is looked at by `refuse_unsupported`.
    model_config = ConfigDict(frozen=True, extra="allow")

    model: str = Field(min_length=1, max_length=300)
    messages: list[OpenAIMessage] = Field(min_length=1, fail_fast=True)  # type: ignore[assignment]
    top_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    user: str | None = Field(default=None, max_length=512)
    metadata: dict[MetadataKey, MetadataText] | None = Field(default=None, max_length=16)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": _STREAM_ANSWER}},
)
async def create_chat_completion(
    body: ChatCompletionRequest,
    request: Request,
    caller: Runs,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Complete a chat: a job of its own, which waits its turn under the workspace's limits, and leaves no thread."""
    refuse_unsupported(body.model_extra or {})
    parts = parts_of(request)
    assistant = None
    named = address_in(body.model)
    if named is None:
        refuse_inline(caller)
    else:
        assistant = await stored_assistant(parts, caller, *named)
        if assistant is None:
            raise unknown_model(body.model)
    run = await begun(request, caller, idempotency_key, operation="chat.completions", body=body)
    call = _call(body, run, workspace=caller.workspace, assistant=assistant)
    return await answered(request, call, run)


def address_in(model: str) -> tuple[str, str | None] | None:
    """Return the stored assistant that a model's name means, and which of its versions; None for any other model."""
    named = _ADDRESS.fullmatch(model)
    return None if named is None else (named["address"], named["which"])


def unknown_model(model: str) -> Problem:
    """Return the problem of a model or assistant that its caller cannot use, whether or not it exists."""
    return Problem(
        Kind.NOT_FOUND,
        f"the model '{model}' does not exist or you have no access to it; `GET /v1/models` lists yours",
        code="model_not_found",
        param="model",
    )


def _call(body: ChatCompletionRequest, run: Begun, *, workspace: str, assistant: StoredAssistant | None) -> ChatCall:
    job = completion_job(body, run.job_id, workspace=workspace, assistant=assistant)
    spec = job.output or (assistant.config.output if assistant else None)
    offered = job.tools if job.tools is not None else (assistant.config.tools if assistant else None)
    return ChatCall(
        job=job,
        model=body.model,
        stream=bool(body.stream),
        include_usage=body.include_usage,
        whole=spec is not None,
        callers_tools=callers_tools(*(offered or ())),
    )


def completion_job(
    body: ChatCompletionRequest, job_id: str | None, *, workspace: str, assistant: StoredAssistant | None
) -> InvokeJob:
    """Return the job of a chat completion, that of a batch's line too; raises Problem."""
    if assistant is None:
        which: dict[str, Any] = {"inline": InlineAssistant(workspace=workspace, name="chat"), "model": body.model}
        own_tools: tuple[ToolSpec, ...] = ()
    else:
        which = {"assistant": assistant.address, "version": assistant.version}
        own_tools = assistant.config.tools or ()
    tools = client_tools(body.tools, kind=Kind.BAD_REQUEST)
    return job_of(
        Kind.BAD_REQUEST,
        **which,
        **_format(body.response_format),
        id=job_id,
        messages=messages_of(body.messages, kind=Kind.BAD_REQUEST),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        tools=None if tools is None else (*own_tools, *tools),
        metadata=body.metadata or {},
        keep_thread=False,
        tell="stream" if body.stream else "end",
        **body.model_dump(include=_AS_THEY_ARE, exclude_none=True),
    )


_AS_THEY_ARE = {
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "n",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
    "user",
}


def _format(asked: ResponseFormat | None) -> dict[str, Any]:
    """Return what the job says of its answer's form."""
    match asked:
        case JsonObjectFormat():
            return {"response_format": {"type": "json_object"}}
        case JsonSchemaFormat() if asked.json_schema.strict:
            schema = asked.json_schema.json_schema
            if schema is None or schema.get("type") != "object":
                raise Problem(
                    Kind.BAD_REQUEST,
                    "response_format.json_schema.schema: with `strict` it must be a schema of type 'object'",
                    code="invalid_request",
                    param="response_format.json_schema.schema",
                )
            return {"output": {"type": "object", "schema": schema}}
        case JsonSchemaFormat():
            return {"response_format": asked.model_dump(by_alias=True, exclude_none=True)}
        case _:
            return {}
