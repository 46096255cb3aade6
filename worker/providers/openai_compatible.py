"""Any server that speaks OpenAI's `POST /chat/completions`, hosted or local."""

from __future__ import annotations

import email.utils
import math
import time
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from schemas.chat import Usage
from schemas.lane import provider_name
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
# A wait that a provider asks for is believed up to a day; Redis refuses expiries beyond its range.
_RETRY_AFTER_MAX_S = 24 * 60 * 60.0
# What a database column holds.
_TOKENS_MAX = 2**31 - 1
# The provider's own machine needs no proxy, whatever the environment says of others.
_LOOPBACK = ("all://127.0.0.1", "all://[::1]", "all://localhost")

# How servers name a prompt that does not fit: OpenAI and most others by `code`, llama.cpp by `type`.
_CONTEXT_LENGTH_NAMES = {"context_length_exceeded", "exceed_context_size_error"}
_QUOTA_NAMES = {"insufficient_quota", "billing_hard_limit_reached", "quota_exceeded"}
_MODEL_NAMES = {"model_not_found"}
# No byte of the request has left.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
# What httpx says of these quotes the request's headers, and so the key.
_NOT_SENDABLE = (httpx.LocalProtocolError, httpx.InvalidURL, UnicodeError)


class OpenAICompatible:
    """A provider at a base URL such as `https://host/v1`, with or without a key."""

    def __init__(self, client: httpx.AsyncClient, *, base_url: str, api_key: str | None) -> None:
        """Use this client for all calls; its limits must allow as many connections as there are jobs in flight."""
        self._client = client
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._address = urlsplit(self._url)._replace(netloc=urlsplit(self._url).netloc.rpartition("@")[2]).geturl()
        self._api_key = api_key
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.name = provider_name(base_url)

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Buy one completion; raises a ProviderError."""
        try:
            response = await self._client.post(self._url, json=_body(request), headers=self._headers)
        except _NOT_SENT as exc:
            raise Unreachable(f"no connection to {self._address}: {str(exc) or type(exc).__name__}") from exc
        except _NOT_SENDABLE as exc:
            raise Unreachable(f"no request can be made of the key for {self._address}: {type(exc).__name__}") from None
        except httpx.TransportError as exc:
            raise ReplyLost(f"{self.name} did not answer: {str(exc) or type(exc).__name__}") from exc
        except (httpx.HTTPError, httpx.StreamError, httpx.CookieConflict) as exc:
            raise ReplyMalformed(f"{self.name} sent an answer that cannot be read: {exc}") from exc
        if not response.is_success:
            raise _error(response, words=self._words(response))
        try:
            return _reply(response)
        except ValidationError as exc:
            # Some proxies answer 200 with an error in the body.
            raise ReplyMalformed(
                f"a 2xx answer without a completion: {self._words(response)}", http_status=response.status_code
            ) from exc

    def _words(self, response: httpx.Response) -> str:
        """Return what the provider says of an error, without the key, which some repeat."""
        error = _error_object(response)
        text = str((error.get("message") if isinstance(error, dict) else error) or response.text)
        text = text.encode("utf-8", "replace").decode()  # JSON may hold lone surrogates, which nothing else can
        if self._api_key:
            text = text.replace(self._api_key, "[key]")
        return text[:_ERROR_TEXT_MAX_CHARS] or response.reason_phrase


def http_client(*, connections: int, timeout_s: float) -> httpx.AsyncClient:
    """Return a client for `connections` calls at once, each of at most `timeout_s` between two bytes."""
    return httpx.AsyncClient(
        limits=httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEPALIVE_EXPIRY_S
        ),
        timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        mounts=dict.fromkeys(_LOOPBACK),
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


def _believable(count: Any) -> int:
    """Return a count of tokens that can be one, else 0: the completion is paid for, whatever stands beside it."""
    return int(count) if isinstance(count, int | float) and 0 <= count <= _TOKENS_MAX else 0


_Tokens = Annotated[int, BeforeValidator(_believable)]


class _Usage(_Lenient):
    prompt_tokens: _Tokens = 0
    completion_tokens: _Tokens = 0


class _Completion(_Lenient):
    model: str | None = None
    choices: list[_Choice]
    usage: _Usage | None = None


def _reply(response: httpx.Response) -> ChatReply:
    completion = _Completion.model_validate_json(response.content)
    if not completion.choices:
        raise ReplyMalformed("a completion without choices", http_status=response.status_code)
    choice = completion.choices[0]
    usage = completion.usage or _Usage()
    return ChatReply(
        content=choice.message.content or "",
        finish_reason=choice.finish_reason,
        refusal=choice.message.refusal,
        model=completion.model or "",
        usage=Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens),
    )


def _error(response: httpx.Response, *, words: str) -> ProviderError:
    status = response.status_code
    names = _error_names(response)
    text = f"HTTP {status}: {words}"
    retry_after_s = _retry_after_s(response)
    if status == 402 or (status == 429 and names & _QUOTA_NAMES):
        return QuotaExhausted(text, http_status=status)
    if status in (401, 403):
        return KeyRefused(text, http_status=status)
    if names & _CONTEXT_LENGTH_NAMES:
        return ContextLengthExceeded(text, http_status=status)
    if status in (404, 405) or response.is_redirect or names & _MODEL_NAMES:
        return ModelUnknown(text, http_status=status)
    if status == 429:
        return RateLimited(text, http_status=status, retry_after_s=retry_after_s)
    if status in (408, 409, 425) or status >= 500:
        return ServerFault(text, http_status=status, retry_after_s=retry_after_s)
    return RequestRefused(text, http_status=status)


def _error_object(response: httpx.Response) -> Any:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return None
    return body.get("error", body) if isinstance(body, dict) else body


def _error_names(response: httpx.Response) -> set[str]:
    error = _error_object(response)
    return {str(error.get("code")), str(error.get("type"))} if isinstance(error, dict) else set()


def _retry_after_s(response: httpx.Response) -> float | None:
    """Read `retry-after-ms`, else `Retry-After` as seconds or as a date; None if there is no sense in it."""
    milliseconds_s = _number(response.headers.get("retry-after-ms")) / 1000
    value = response.headers.get("retry-after")
    for asked_s in (milliseconds_s, _number(value), _seconds_until(value)):
        if math.isfinite(asked_s):
            return min(max(0.0, asked_s), _RETRY_AFTER_MAX_S)
    return None


def _number(text: str | None) -> float:
    try:
        return math.nan if text is None else float(text)
    except ValueError:
        return math.nan


def _seconds_until(date: str | None) -> float:
    try:
        return math.nan if date is None else email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError):
        return math.nan
