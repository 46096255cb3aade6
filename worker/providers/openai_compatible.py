"""Any server that speaks OpenAI's `POST /chat/completions`, hosted or local."""

from __future__ import annotations

import email.utils
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.chat import Usage
from worker.providers.base import ChatReply, ChatRequest
from worker.providers.errors import (
    ContextLengthExceeded,
    KeyRefused,
    ModelUnknown,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    ReplyLost,
    ReplyMalformed,
    RequestRefused,
    ServerFault,
    Unreachable,
)

# llama.cpp's server ends an idle connection after 5 s; leave it before it leaves us.
KEEPALIVE_EXPIRY_S = 4.0
CONNECT_TIMEOUT_S = 10.0
_ERROR_TEXT_MAX_CHARS = 500

# How servers name a prompt that does not fit: OpenAI and most others by `code`, llama.cpp by `type`.
_CONTEXT_LENGTH_NAMES = {"context_length_exceeded", "exceed_context_size_error"}
_QUOTA_NAMES = {"insufficient_quota", "billing_hard_limit_reached", "quota_exceeded"}


class OpenAICompatible:
    """A provider at a base URL such as `https://host/v1`, with or without a key."""

    def __init__(self, client: httpx.AsyncClient, *, base_url: str, api_key: str | None) -> None:
        """Use this client for all calls; its limits must allow as many connections as there are jobs in flight."""
        self._client = client
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.name = urlsplit(base_url).hostname or base_url

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Buy one completion; raises a ProviderError."""
        try:
            response = await self._client.post(self._url, json=_body(request), headers=self._headers)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
            raise Unreachable(f"no connection to {self._url}: {str(exc) or type(exc).__name__}") from exc
        except (httpx.TimeoutException, httpx.TransportError) as exc:
            raise ReplyLost(f"{self.name} did not answer: {str(exc) or type(exc).__name__}") from exc
        except httpx.HTTPError as exc:
            raise ReplyMalformed(f"{self.name} sent an answer that cannot be read: {exc}") from exc
        if not response.is_success:
            raise _error(response)
        return _reply(response)


def http_client(*, connections: int, timeout_s: float) -> httpx.AsyncClient:
    """Return a client for `connections` calls at once, each of at most `timeout_s` between two bytes."""
    return httpx.AsyncClient(
        limits=httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEPALIVE_EXPIRY_S
        ),
        timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
    )


def _body(request: ChatRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [message.model_dump() for message in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "stop": list(request.stop) if request.stop else None,
    }
    if request.response_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "output", "strict": True, "schema": request.response_schema},
        }
    return {name: value for name, value in body.items() if value is not None}


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _ReplyMessage(_Lenient):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Lenient):
    message: _ReplyMessage
    finish_reason: str | None = None


class _Usage(_Lenient):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(_Lenient):
    model: str = ""
    choices: list[_Choice]
    usage: _Usage | None = None


def _reply(response: httpx.Response) -> ChatReply:
    try:
        completion = _Completion.model_validate_json(response.content)
    except ValidationError as exc:
        # Some proxies answer 200 with an error in the body.
        raise ReplyMalformed(
            f"a 2xx answer without a completion: {_words(response)}", http_status=response.status_code
        ) from exc
    if not completion.choices:
        raise ReplyMalformed("a completion without choices", http_status=response.status_code)
    choice = completion.choices[0]
    usage = completion.usage or _Usage()
    return ChatReply(
        content=choice.message.content or "",
        finish_reason=choice.finish_reason,
        refusal=choice.message.refusal,
        model=completion.model,
        usage=Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens),
    )


def _error(response: httpx.Response) -> ProviderError:
    status = response.status_code
    names = _error_names(response)
    text = f"HTTP {status}: {_words(response)}"
    retry_after_s = _retry_after_s(response)
    if status in (402, 429) and names & _QUOTA_NAMES:
        return QuotaExhausted(text, http_status=status)
    if status in (401, 403):
        return KeyRefused(text, http_status=status)
    if names & _CONTEXT_LENGTH_NAMES:
        return ContextLengthExceeded(text, http_status=status)
    if status == 404:
        return ModelUnknown(text, http_status=status)
    if status == 429:
        return RateLimited(text, http_status=status, retry_after_s=retry_after_s)
    if status in (408, 409, 425) or status >= 500:
        return ServerFault(text, http_status=status, retry_after_s=retry_after_s)
    return RequestRefused(text, http_status=status)


def _error_object(response: httpx.Response) -> Any:
    try:
        body = response.json()
    except ValueError:
        return None
    return body.get("error", body) if isinstance(body, dict) else body


def _error_names(response: httpx.Response) -> set[str]:
    error = _error_object(response)
    return {str(error.get("code")), str(error.get("type"))} if isinstance(error, dict) else set()


def _words(response: httpx.Response) -> str:
    error = _error_object(response)
    text = error.get("message") if isinstance(error, dict) else error
    return str(text or response.text or response.reason_phrase)[:_ERROR_TEXT_MAX_CHARS]


def _retry_after_s(response: httpx.Response) -> float | None:
    """Read `retry-after-ms`, else `Retry-After` as seconds or as a date."""
    milliseconds = response.headers.get("retry-after-ms")
    if milliseconds is not None:
        try:
            return max(0.0, float(milliseconds) / 1000)
        except ValueError:
            pass
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
