"""One request and its whole answer: what all providers do alike."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from urllib.request import getproxies

import httpx

from schemas.quota_told import QuotaTold
from worker.providers.base import ChatRequest
from worker.providers.errors import ProviderError, RequestRefused
from worker.providers.http_errors import error_of, transport_errors
from worker.providers.rate_headers import told_by
from worker.providers.sse import OnEvent, Stream, is_stream, read_stream
from worker.providers.transport import SENT_AT, AiohttpTransport

# llama.cpp's server ends an idle connection after 5 s; leave it before it leaves us.
KEEPALIVE_EXPIRY_S = 4.0
CONNECT_TIMEOUT_S = 10.0
# The provider's own machine needs no proxy, whatever the environment says of others.
_LOOPBACK = ("all://127.0.0.1", "all://[::1]", "all://localhost")


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer; its body is `content`, or `stream` if the service streamed it.

    `told` is what its headers say of the provider's limits, `sent_after_s` how long after the
    call began its request left (0: not known).
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    stream: Stream | None
    told: QuotaTold | None = None
    sent_after_s: float = 0.0


def http_client(*, connections: int, timeout_s: float) -> httpx.AsyncClient:
    """Return a client for `connections` calls at once, each of at most `timeout_s` between two bytes.

    Where the environment names a proxy, httpx's own transport serves, which knows all kinds of them.
    """
    proxied = any(name != "no" for name in getproxies())
    return httpx.AsyncClient(
        transport=None if proxied else AiohttpTransport(connections=connections, keepalive_expiry_s=KEEPALIVE_EXPIRY_S),
        limits=httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEPALIVE_EXPIRY_S
        ),
        timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
        mounts=dict.fromkeys(_LOOPBACK),
    )


async def post(
    client: httpx.AsyncClient,
    url: str,
    *,
    name: str,
    headers: Mapping[str, str],
    body: Mapping[str, Any],
    request: ChatRequest,
    thread_header: str | None = None,
    on_event: OnEvent | None = None,
) -> Answer:
    """Send the body as JSON and return the answer, whether it comes whole or as a stream.

    The events of a stream are told to `on_event` as they come.

    Raises a ProviderError, for any status but 2xx too; it carries the value of
    `thread_header`, where even the failure has that header, and what it tells of limits.
    """
    content = _encoded(body)
    began_s = time.monotonic()
    with transport_errors(name, url):
        headers = {**headers, "content-type": "application/json"}
        async with client.stream("POST", url, content=content, headers=headers) as response:
            if not response.is_success:
                raise await _error(response, request, thread_header)
            told = told_by(response.headers)
            after_s = (response.extensions.get(SENT_AT) or began_s) - began_s
            if is_stream(response):
                stream = await read_stream(response, on_event)
                return Answer(response.status_code, response.headers, b"", stream, told, after_s)
            return Answer(response.status_code, response.headers, await response.aread(), None, told, after_s)


def path_segment(text: str) -> str:
    """Return the text as one segment of a URL's path; raises RequestRefused for one that would climb out of it."""
    if text in (".", ".."):
        raise RequestRefused(f"{text!r} is no name at a service")
    return quote(text, safe="")


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as exc:
        # A lone surrogate or NaN among the variables.
        raise RequestRefused(f"the request cannot be written as JSON: {exc}") from exc


async def _error(response: httpx.Response, request: ChatRequest, thread_header: str | None) -> ProviderError:
    try:
        content = await response.aread()
    except httpx.HTTPError:
        # The status alone says enough.
        content = b""
    error = error_of(status=response.status_code, headers=response.headers, content=content, request=request)
    error.thread_ref = response.headers.get(thread_header) if thread_header else None
    error.told = told_by(response.headers)
    return error
