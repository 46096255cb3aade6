"""Any server that speaks OpenAI's `POST /chat/completions`, hosted or local."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any

import httpx

from schemas.lane import provider_name
from worker.providers.base import ChatReply, ChatRequest, OnDelta
from worker.providers.chunks import telling
from worker.providers.completion import given, read_completion, response_format_body, tool_choice_body, tools_body
from worker.providers.errors import RequestRefused
from worker.providers.exchange import Answer, http_client, post
from worker.providers.http_errors import presentable

__all__ = ["OpenAICompatible", "http_client"]


# How servers refuse to stream, or to count what they streamed: they name the field, or say it in words.
_NO_STREAM_OPTIONS = re.compile(r"stream[_ ]options|include[_ ]usage", re.IGNORECASE)
_NO_STREAM = re.compile(r"\bstream(?:ing|ed|s)?\b", re.IGNORECASE)


class _Streams(IntEnum):
    """How much of streaming a server can, as far as is known."""

    NOT_AT_ALL = 0
    UNCOUNTED = 1
    COUNTED = 2


class OpenAICompatible:
    """A provider at a base URL such as `https://host/v1`, with or without a key."""

    def __init__(self, client: httpx.AsyncClient, *, base_url: str, api_key: str | None) -> None:
        """Use this client for all calls; its limits must allow as many connections as there are jobs in flight."""
        self._client = client
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._api_key = api_key
        self._streams = _Streams.COUNTED
        self.name = provider_name(base_url)

    async def complete(self, request: ChatRequest, *, on_delta: OnDelta | None = None) -> ChatReply:
        """Buy one completion; raises a ProviderError. A server that streams unasked is understood too.

        One that refuses to stream as it is asked to, before a word, is asked once more, and so from then on.
        """
        with presentable(self._api_key):
            answer = await self._ask(request, on_delta)
            return read_completion(answer, name=self.name, request=request)

    async def _ask(self, request: ChatRequest, on_delta: OnDelta | None) -> Answer:
        streams = self._streams if on_delta is not None else _Streams.NOT_AT_ALL
        while True:
            try:
                answer = await post(
                    self._client,
                    self._url,
                    name=self.name,
                    headers=self._headers | _idempotency_key(request, streams if on_delta is not None else None),
                    body=_body(request) | _STREAM_BODIES[streams],
                    request=request,
                    on_event=telling(on_delta),
                )
            except RequestRefused as refused:
                can = _still_streams(str(refused), streams)
                if can is streams:
                    raise
                streams = can
                continue
            if on_delta is not None:
                # Only now: a refusal may quote a prompt that speaks of streams.
                self._streams = min(self._streams, streams)
            return answer


_STREAM_BODIES: dict[_Streams, dict[str, Any]] = {
    _Streams.NOT_AT_ALL: {},
    _Streams.UNCOUNTED: {"stream": True},
    _Streams.COUNTED: {"stream": True, "stream_options": {"include_usage": True}},
}


def _idempotency_key(request: ChatRequest, streams: _Streams | None) -> dict[str, str]:
    """Return the step's key, with the way in which it streams: who is strict takes a key with one body only."""
    if request.step_id is None:
        return {}
    way = "" if streams in (None, _Streams.COUNTED) else f".{streams.name.lower()}"
    return {"idempotency-key": request.step_id + way}


def _still_streams(refusal: str, asked: _Streams) -> _Streams:
    if asked is _Streams.COUNTED and _NO_STREAM_OPTIONS.search(refusal):
        return _Streams.UNCOUNTED
    return _Streams.NOT_AT_ALL if _NO_STREAM.search(refusal) else asked


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
