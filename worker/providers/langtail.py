"""Langtail's Invoke Assistant: assistants with a template, threads and tools of their own (CONTRACT.md 1)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx

from schemas.lane import provider_name
from worker.providers.base import ChatReply, ChatRequest, HostedCall, OnDelta
from worker.providers.chunks import telling
from worker.providers.completion import given, read_completion, response_format_body, tool_choice_body, tools_body
from worker.providers.errors import ProviderError, RequestRefused
from worker.providers.exchange import path_segment, post
from worker.providers.http_errors import presentable

THREAD_HEADER = "x-langtail-thread-id"


class Langtail:
    """The service at `https://api.langtail.com`, or one that speaks like it.

    An assistant is `workspace/project/assistant/environment`; `@VERSION` behind it pins a
    version (`?v=`). A thread that goes on is sent its new messages only. `n` is no
    parameter of this API and is left out.
    """

    def __init__(self, client: httpx.AsyncClient, *, base_url: str, api_key: str | None, stream: bool = False) -> None:
        """Use this client for all calls; with `stream` the service is asked to stream its answers."""
        self._client = client
        self._base_url = base_url.rstrip("/")
        self._headers = {"x-api-key": api_key} if api_key else {}
        self._stream = stream
        self._api_key = api_key
        self.name = provider_name(base_url)

    async def complete(self, request: ChatRequest, *, on_delta: OnDelta | None = None) -> ChatReply:
        """Invoke the assistant; raises a ProviderError."""
        with presentable(self._api_key):
            return await self._complete(request, on_delta)

    async def _complete(self, request: ChatRequest, on_delta: OnDelta | None) -> ChatReply:
        hosted = request.hosted
        if hosted is None or hosted.assistant is None:
            raise RequestRefused("Langtail needs the assistant's path: workspace/project/assistant/environment")
        answer = await post(
            self._client,
            f"{self._base_url}/{_path(hosted.assistant)}",
            name=self.name,
            headers=self._headers,
            body=_body(request, hosted, stream=self._stream or on_delta is not None),
            request=request,
            thread_header=THREAD_HEADER,
            on_event=telling(on_delta),
        )
        thread_ref = answer.headers.get(THREAD_HEADER) or hosted.thread_ref
        try:
            reply = read_completion(answer, name=self.name, request=request)
        except ProviderError as error:
            error.thread_ref = thread_ref
            raise
        return replace(reply, thread_ref=thread_ref)


def _path(assistant: str) -> str:
    slugs, at, version = assistant.partition("@")
    parts = slugs.split("/")
    if len(parts) != 4 or not all(parts) or (at and not version):
        raise RequestRefused(
            f"{assistant!r} is no path of a Langtail assistant; write workspace/project/assistant/environment, "
            "and @VERSION behind it to pin one"
        )
    path = "/".join(map(path_segment, parts))
    return f"{path}?v={quote(version, safe='')}" if version else path


def _body(request: ChatRequest, hosted: HostedCall, *, stream: bool) -> dict[str, Any]:
    return given(
        {
            "threadId": hosted.thread_ref,
            "variables": {name: _variable(value) for name, value in hosted.variables.items()} or None,
            "messages": [message.to_openai() for message in hosted.new_messages] or None,
            "stream": stream,
            "model": hosted.model,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "seed": request.seed,
            "stop": list(request.stop) if request.stop else None,
            "tools": tools_body(request),
            "tool_choice": tool_choice_body(request),
            "parallelToolCalls": request.parallel_tool_calls,
            # json_schema is documented nowhere; the backend is OpenAI's chat completions (inferred).
            "response_format": response_format_body(request),
            "user": request.user,
            "reasoning_effort": request.reasoning_effort,
            "metadata": {key: _metadata(value) for key, value in hosted.metadata.items()} or None,
            "doNotRecord": True if hosted.do_not_record else None,
        }
    )


def _variable(value: Any) -> str:
    """Variables are strings there; a string that is a JSON array or object can be iterated in the template."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _metadata(value: str | float | bool) -> str | float:
    """Values are strings or numbers there."""
    return json.dumps(value) if isinstance(value, bool) else value
