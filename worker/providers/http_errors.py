"""Which error an HTTP answer, or the lack of one, becomes: the one place for all providers.

| answer                                                     | error                                   |
|------------------------------------------------------------|-----------------------------------------|
| no connection, no free one in the pool, nothing to send    | Unreachable                             |
| read or write time-out, connection cut                     | ReplyLost                               |
| a body that cannot be decoded                              | ReplyMalformed                          |
| no credit left, by name; any 402                           | QuotaExhausted                          |
| 401, 403                                                   | KeyRefused                              |
| context length, by name or words                           | ContextLengthExceeded                   |
| content filter, by name                                    | ContentFiltered                         |
| `response_format` / tools were sent and are not supported  | StructuredOutputUnsupported / ToolsUnsupported |
| 404 of a thread that was to be continued                   | ThreadUnknown                           |
| any other 404, 405, 3xx, a model that is unknown by name   | ModelUnknown                            |
| any other 429                                              | RateLimited                             |
| 408, 409, 425, 5xx                                         | ServerFault                             |
| anything else                                              | RequestRefused                          |

An error that comes as an event of a stream is read the same way, by its status or names.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx

from worker.providers.base import ChatRequest
from worker.providers.errors import (
    ContentFiltered,
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
    StructuredOutputUnsupported,
    ThreadUnknown,
    ToolsUnsupported,
    Unreachable,
)
from worker.providers.texts import mended

# A wait that a provider asks for is believed up to a day; Redis refuses expiries beyond its range.
RETRY_AFTER_MAX_S = 24 * 60 * 60.0
_ERROR_TEXT_MAX_CHARS = 500

# No byte of the request has left.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
# What httpx says of these quotes the request's headers, and so the key.
_NOT_SENDABLE = (httpx.LocalProtocolError, httpx.InvalidURL, UnicodeError)

# How servers name a prompt that does not fit: OpenAI and most others by `code`, llama.cpp by `type`.
_CONTEXT_LENGTH_NAMES = {"context_length_exceeded", "exceed_context_size_error"}
_QUOTA_NAMES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "quota_exceeded",
    "insufficient_credits",
    "insufficient_balance",
}
_MODEL_NAMES = {"model_not_found"}
_RATE_NAMES = {"rate_limit_exceeded", "rate_limit_error", "too_many_requests"}
_CONTENT_FILTER_NAMES = {"content_filter", "content_policy_violation", "responsibleaipolicyviolation"}

# For servers that only say it in words.
_NO_CREDIT = re.compile(r"credit balance is too low|insufficient (?:balance|credits?|funds)", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"maximum context length|context (?:length|size|window) (?:is |was )?exceeded"
    r"|exceeds? (?:the |this )?(?:model'?s )?(?:maximum |available )?context|prompt is too long|input is too long",
    re.IGNORECASE,
)
_NOT_SUPPORTED = re.compile(
    r"not (?:currently |yet )?support|n't support|unsupported|no\b.{0,40}\bsupport|unavailable|not permitted"
    r"|not (?:available|enabled|implemented)|unknown (?:field|parameter|name)|unrecognized|unexpected|requires? --"
    r"|invalid schema",
    re.IGNORECASE,
)
_STRUCTURED = re.compile(r"response[_ ]format|json[_ ]schema|json[_ ]object|structured output", re.IGNORECASE)
_TOOLS = re.compile(r"\btools?\b|tool_(?:choice|calls?|use)|function[_ ]call|\bfunctions\b", re.IGNORECASE)
_THREAD = re.compile(r"thread|session|conversation", re.IGNORECASE)
# Servers refuse what they do not know with these; llama.cpp with 500.
_UNSUPPORTED_STATUSES = {400, 404, 422, 500, 501}


@contextmanager
def transport_errors(name: str, url: str) -> Iterator[None]:
    """Turn what httpx raises around a request into a ProviderError."""
    try:
        yield
    except _NOT_SENT as exc:
        raise Unreachable(f"no connection to {_address(url)}: {_why(exc)}") from exc
    except _NOT_SENDABLE as exc:
        raise Unreachable(f"no request can be made of the key for {_address(url)}: {type(exc).__name__}") from None
    except httpx.TransportError as exc:
        raise ReplyLost(f"{name} did not answer: {_why(exc)}") from exc
    except (httpx.HTTPError, httpx.StreamError, httpx.CookieConflict) as exc:
        raise ReplyMalformed(f"{name} sent an answer that cannot be read: {exc}") from exc


@contextmanager
def presentable(api_key: str | None) -> Iterator[None]:
    """Make the words of an error short, whole and free of the key, which some services repeat."""
    try:
        yield
    except ProviderError as error:
        text = mended(str(error))
        if api_key:
            text = text.replace(api_key, "[key]")
        error.args = (text[:_ERROR_TEXT_MAX_CHARS],)
        raise


def error_of(*, status: int, headers: Mapping[str, str], content: bytes, request: ChatRequest) -> ProviderError:
    """Return the error of an answer that is no 2xx; the names of `headers` are in lower case."""
    body = _json(content)
    words = words_of(body) or content.decode(errors="replace").strip()
    if not words and 300 <= status < 400:
        words = f"redirected to {headers.get('location', 'nowhere')}; the base URL is wrong"
    text = f"HTTP {status}: {words or _phrase(status)}"
    return _classified(status, _names(body), text, retry_after_s=retry_after_s(headers), request=request)


def error_in_stream(event: Any, *, request: ChatRequest) -> ProviderError:
    """Return the error that a stream of events reported; without a status or a known name it is a ServerFault."""
    names = _names(event)
    status = next((int(name) for name in names if name.isdecimal() and 400 <= int(name) < 600), None)
    if status is None and names & _RATE_NAMES:
        status = 429
    if status is None:
        status = 400 if names & (_CONTEXT_LENGTH_NAMES | _CONTENT_FILTER_NAMES) else 500
    text = f"failed while it answered: {words_of(event) or 'it gave no reason'}"
    return _classified(status, names, text, retry_after_s=None, request=request)


def words_of(body: Any) -> str:
    """Return what an error body says, whatever its form.

    Known are `{error: {message}}`, `{error: text}`, `{message: text or list}`, FastAPI's
    `{detail: [{loc, msg}]}` and the `errorText` of a stream's event.
    """
    match body:
        case str():
            return body
        case list():
            return "; ".join(filter(None, map(words_of, body)))
        case dict():
            return _words_of_object(body)
        case _:
            return ""


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read `retry-after-ms`, else `Retry-After` as seconds or as a date; None if there is no sense in it."""
    milliseconds_s = _number(headers.get("retry-after-ms")) / 1000
    value = headers.get("retry-after")
    for asked_s in (milliseconds_s, _number(value), _seconds_until(value)):
        if math.isfinite(asked_s):
            return min(max(0.0, asked_s), RETRY_AFTER_MAX_S)
    return None


def _classified(
    status: int, names: set[str], text: str, *, retry_after_s: float | None, request: ChatRequest
) -> ProviderError:
    if status == 402 or names & _QUOTA_NAMES or (400 <= status < 500 and _NO_CREDIT.search(text)):
        return QuotaExhausted(text, http_status=status)
    if status in (401, 403):
        return KeyRefused(text, http_status=status)
    if names & _CONTEXT_LENGTH_NAMES or (status in (400, 413, 422) and _TOO_LONG.search(text)):
        return ContextLengthExceeded(text, http_status=status)
    if names & _CONTENT_FILTER_NAMES:
        return ContentFiltered(text, http_status=status)
    unsupported = _unsupported(status, names, text, request)
    if unsupported is not None:
        return unsupported
    if status == 404 and request.hosted and request.hosted.thread_ref and _THREAD.search(text):
        return ThreadUnknown(text, http_status=status)
    if status in (404, 405) or 300 <= status < 400 or names & _MODEL_NAMES:
        return ModelUnknown(text, http_status=status)
    if status == 429:
        return RateLimited(text, http_status=status, retry_after_s=retry_after_s)
    if status in (408, 409, 425) or status >= 500:
        return ServerFault(text, http_status=status, retry_after_s=retry_after_s)
    return RequestRefused(text, http_status=status)


def _unsupported(status: int, names: set[str], text: str, request: ChatRequest) -> RequestRefused | None:
    """Tell a feature that the provider lacks from a fault; only what was sent can be refused."""
    if status not in _UNSUPPORTED_STATUSES:
        return None
    about = f"{text} {' '.join(names)}"
    if not _NOT_SUPPORTED.search(about):
        return None
    structured = request.response_schema is not None or request.response_format is not None
    if structured and _STRUCTURED.search(about):
        return StructuredOutputUnsupported(text, http_status=status)
    if request.tools and _TOOLS.search(about):
        return ToolsUnsupported(text, http_status=status)
    return None


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _names(body: Any) -> set[str]:
    """Return the machine-readable names in an error body, in lower case, wherever services put them."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        error = body if isinstance(body, dict) else {}
    inner = error.get("innererror")
    found = [error.get("code"), error.get("type"), error.get("param"), error.get("status")]
    found.append(inner.get("code") if isinstance(inner, dict) else None)
    return {str(name).lower() for name in found if isinstance(name, str | int)}


def _words_of_object(body: dict[str, Any]) -> str:
    for key in ("error", "message", "errorText", "detail", "msg"):
        words = words_of(body.get(key))
        if words:
            place = body.get("loc") or body.get("path")
            if isinstance(place, list) and place:
                return f"{'.'.join(map(str, place))}: {words}"
            return words
    return ""


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


def _address(url: str) -> str:
    """Return the URL without a user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no reason given"


def _why(exc: Exception) -> str:
    return str(exc) or type(exc).__name__
