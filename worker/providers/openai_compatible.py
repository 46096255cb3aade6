"""Any server that speaks OpenAI's `POST /chat/completions`, hosted or local."""

from __future__ import annotations

from typing import Any

import httpx

from schemas.lane import provider_name
from worker.providers.base import ChatReply, ChatRequest, OnDelta, Streams
from worker.providers.chunks import telling
from worker.providers.completion import given, read_completion, response_format_body, tool_choice_body, tools_body
from worker.providers.errors import RequestRefused
from worker.providers.exchange import Answer, http_client, post
from worker.providers.http_errors import presentable
from worker.providers.streaming import Streaming, refuse_stream, stream_body

__all__ = ["OpenAICompatible", "http_client"]


class OpenAICompatible:
    """A provider at a base URL such as `https://host/v1`, with or without a key."""

    def __init__(self, client: httpx.AsyncClient, *, base_url: str, api_key: str | None) -> None:
        """Use this client for all calls; its limits must allow as many connections as there are jobs in flight."""
        self._client = client
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._api_key = api_key
        self._streaming = Streaming()
        self.name = provider_name(base_url)

    async def complete(self, request: ChatRequest, *, on_delta: OnDelta | None = None) -> ChatReply:
        """Buy one completion; raises a ProviderError. A server that streams unasked is understood too."""
        with presentable(self._api_key):
            answer = await self._ask(request, on_delta)
            return read_completion(answer, name=self.name, request=request)

    async def _ask(self, request: ChatRequest, on_delta: OnDelta | None) -> Answer:
        way = self._streaming.way_of(request) if on_delta is not None else None
        try:
            answer = await post(
                self._client,
                self._url,
                name=self.name,
                headers=self._headers | _idempotency_key(request, way),
                body=_body(request) | ({} if way is None else stream_body(way)),
                request=request,
                on_event=telling(on_delta),
            )
        except RequestRefused as refused:
            refuse_stream(refused, asked=way or Streams.NOT_AT_ALL)
            raise
        if way is not None:
            self._streaming.answered(request, way)
        return answer


def _idempotency_key(request: ChatRequest, way: Streams | None) -> dict[str, str]:
    """Return the step's key, with the way in which it streams: who is strict takes a key with one body only."""
    if request.step_id is None:
        return {}
    named = "" if way in (None, Streams.COUNTED) else f".{way.name.lower()}"
    return {"idempotency-key": request.step_id + named}


def _body(request: ChatRequest) -> dict[str, Any]:
    tools = tools_body(request)
    return given(
        {
            "model": request.model,
            "messages": [message.to_openai() for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "seed": request.seed,
            "stop": list(request.stop) if request.stop else None,
            "n": request.n,
            "tools": tools,
            # OpenAI refuses both without tools.
            "tool_choice": tool_choice_body(request) if tools else None,
            "parallel_tool_calls": request.parallel_tool_calls if tools else None,
            "user": request.user,
            "reasoning_effort": request.reasoning_effort,
            "response_format": response_format_body(request),
        }
    )
