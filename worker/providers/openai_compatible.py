"""Any server that speaks OpenAI's `POST /chat/completions`, hosted or local."""

from __future__ import annotations

from typing import Any

import httpx

from schemas.lane import provider_name
from worker.providers.base import ChatReply, ChatRequest
from worker.providers.completion import given, read_completion, response_format_body, tool_choice_body, tools_body
from worker.providers.exchange import http_client, post
from worker.providers.http_errors import presentable

__all__ = ["OpenAICompatible", "http_client"]


class OpenAICompatible:
    """A provider at a base URL such as `https://host/v1`, with or without a key."""

    def __init__(self, client: httpx.AsyncClient, *, base_url: str, api_key: str | None) -> None:
        """Use this client for all calls; its limits must allow as many connections as there are jobs in flight."""
        self._client = client
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._api_key = api_key
        self.name = provider_name(base_url)

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Buy one completion; raises a ProviderError. A server that streams unasked is understood too."""
        headers = self._headers | ({"idempotency-key": request.step_id} if request.step_id else {})
        with presentable(self._api_key):
            answer = await post(
                self._client, self._url, name=self.name, headers=headers, body=_body(request), request=request
            )
            return read_completion(answer, name=self.name, request=request)


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
