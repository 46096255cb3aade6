"""The OpenAI-compatible endpoint of an agent that has instructions, retrieval and sessions (CONTRACT.md 2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import httpx

from schemas.lane import provider_name
from worker.providers.base import ChatReply, ChatRequest, HostedCall, OnDelta, Streams
from worker.providers.chunks import telling
from worker.providers.completion import given, read_completion, tool_choice_body, tools_body
from worker.providers.errors import RequestRefused, StructuredOutputUnsupported
from worker.providers.exchange import path_segment, post
from worker.providers.folding import without_system
from worker.providers.http_errors import presentable
from worker.providers.streaming import Streaming, refuse_stream, stream_body


class AgentEndpoint:
    """The endpoint at a base URL such as `https://host/api/v1/compatibility/openai/v1`.

    The first call of a thread creates a session with the whole conversation; later ones
    extend it with what is new. Only without a thread is it stateless. The API has no system
    role (folding.py) and no `top_p`, penalties, `user`, `reasoning_effort` or
    `response_format`: all but the last are left out, that one is StructuredOutputUnsupported.
    Only its newer version counts a stream's tokens when asked to.
    `retrieved` of a reply holds the passages that the agent found.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        base_url: str,
        api_key: str | None,
        stream: bool = False,
        path: Literal["assistants", "agents"] = "assistants",
    ) -> None:
        """Use this client for all calls; `path` is the older name of the endpoint or its twin's."""
        self._client = client
        self._base_url = f"{base_url.rstrip('/')}/{path}"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._stream = stream
        self._streaming = Streaming()
        self._api_key = api_key
        self.name = provider_name(base_url)

    async def complete(self, request: ChatRequest, *, on_delta: OnDelta | None = None) -> ChatReply:
        """Ask the agent; raises a ProviderError."""
        with presentable(self._api_key):
            return await self._complete(request, on_delta)

    async def _complete(self, request: ChatRequest, on_delta: OnDelta | None) -> ChatReply:
        hosted = request.hosted
        if hosted is None or hosted.assistant is None:
            raise RequestRefused("an agent endpoint needs the agent's id")
        if request.response_schema is not None or request.response_format is not None:
            raise StructuredOutputUnsupported("this API has no response_format; ask for the form by instruction")
        streams = self._stream or on_delta is not None
        way = self._streaming.way_of(request) if streams else Streams.NOT_AT_ALL
        try:
            answer = await post(
                self._client,
                f"{self._base_url}/{path_segment(hosted.assistant)}/chat/completions",
                name=self.name,
                headers=self._headers,
                body=_body(request, hosted) | {"stream": False} | stream_body(way),
                request=request,
                on_event=telling(on_delta),
            )
        except RequestRefused as refused:
            refuse_stream(refused, asked=way)
            raise
        if streams:
            self._streaming.answered(request, way)
        reply = read_completion(answer, name=self.name, request=request)
        return reply if reply.thread_ref else replace(reply, thread_ref=hosted.thread_ref)


def _body(request: ChatRequest, hosted: HostedCall) -> dict[str, Any]:
    creates = hosted.thread_ref is None and hosted.keep_thread
    messages = hosted.new_messages if hosted.thread_ref or creates else request.messages
    tools = tools_body(request)
    return given(
        {
            "messages": [message.to_openai() for message in without_system(messages)],
            "create_session": True if creates else None,
            "store_in_session": hosted.thread_ref,
            "model": hosted.model,
            "temperature": request.temperature,
            "seed": request.seed,
            "n": request.n,
            "stop": list(request.stop) if request.stop else None,
            "max_tokens": request.max_tokens,
            "tools": tools,
            "tool_choice": tool_choice_body(request) if tools else None,
        }
    )
