"""HTTP actions: a request that a model may fill in, and nothing more (CONTRACT.md decision 78)."""

from __future__ import annotations

import json
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2

from schemas.tool import HttpAction
from worker.net.guard import AddressGuard
from worker.net.guarded_transport import ConnectionRefusedByGuard, GuardedTransport
from worker.tools import arguments as call_arguments
from worker.tools.base import ToolDefinition, ToolsUnavailable
from worker.tools.calls import MAX_ANSWER_BYTES
from worker.tools.http_request import Rendered, render, takes_its_host_from_an_argument
from worker.tools.secrets import Secret
from worker.tools.tool import ToolFailed

MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 10.0
# More than is told, so that what is told is known to be a part.
_READ_BYTES = MAX_ANSWER_BYTES + 1024
_NOT_TO_SET = {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te"}
_ORIGIN_PORTS = {"http": 80, "https": 443}


def action_client(guard: AddressGuard) -> httpx2.AsyncClient:
    """Return the client of all actions that this guard is for.

    It keeps no cookie, because all workspaces share it, and uses neither proxies nor
    passwords of the environment. Only the time limit of a call bounds an answer.
    """
    return httpx2.AsyncClient(
        transport=GuardedTransport(guard),
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
        trust_env=False,
        headers={"user-agent": "assistq"},
    )


class HttpTool:
    """One HTTP action of a job."""

    def __init__(self, action: HttpAction, *, secret: Secret, client: httpx2.AsyncClient) -> None:
        """Check what can be checked before a call; raises ToolsUnavailable."""
        if takes_its_host_from_an_argument(action.url):
            raise ToolsUnavailable(
                f"the HTTP action '{action.name}' takes its host from an argument; write the host into its url",
                configuration=True,
            )
        for name in action.headers:
            if name.lower() in _NOT_TO_SET:
                raise ToolsUnavailable(
                    f"the HTTP action '{action.name}' sets the header {name}, which its url and body decide; remove it",
                    configuration=True,
                )
        self._action = action
        self._secret = secret
        self._client = client
        self.definition = ToolDefinition(
            name=action.name, description=action.description, parameters=dict(action.parameters)
        )
        self.timeout_s = action.timeout_s

    def mask(self, text: str) -> str:
        """Return the text without the action's secret."""
        return self._secret.mask(text)

    async def call(self, arguments: dict[str, Any], *, key: str | None = None) -> str:
        """Send the request; a status of 2xx is an answer, any other raises ToolFailed.

        `key` is sent as `Idempotency-Key`, unless the action sets one: a call whose answer a dead worker
        had not kept comes again under the same.
        """
        call_arguments.check(arguments, self._action.parameters)
        rendered = render(self._action, arguments, self._secret)
        try:
            return await self._send(rendered, key=key)
        except ConnectionRefusedByGuard as exc:
            raise ToolFailed(str(exc)) from exc
        except httpx2.TimeoutException as exc:
            raise ToolFailed("no connection within the time") from exc
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError, UnicodeError) as exc:
            raise ToolFailed(f"the request failed: {type(exc).__name__}: {exc}") from exc

    async def _send(self, rendered: Rendered, *, key: str | None) -> str:
        headers = _headers(rendered, key=key)
        request = self._client.build_request(
            self._action.method, rendered.url, content=rendered.content, headers=headers
        )
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._client.send(request, stream=True, follow_redirects=False)
            try:
                following = response.next_request
                if following is None:
                    return await self._read(response)
            finally:
                await response.aclose()
            request = self._redirected(request, following)
        raise ToolFailed(f"the server redirected more than {MAX_REDIRECTS} times")

    def _redirected(self, sent: httpx2.Request, following: httpx2.Request) -> httpx2.Request:
        """Return the redirect's request, which takes nothing of ours to another host."""
        if _same_origin(sent.url, following.url):
            return following
        if following.method not in {"GET", "HEAD"} and self._body_has_the_secret():
            raise ToolFailed(f"the server redirected to another host ({following.url.host}), which gets no secret")
        for name in (*self._action.headers, "authorization", "cookie"):
            following.headers.pop(name, None)
        return following

    def _body_has_the_secret(self) -> bool:
        return bool(self._secret.variables) and "secret" in json.dumps(self._action.body)

    async def _read(self, response: httpx2.Response) -> str:
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            # A few compressed bytes can be gigabytes.
            raise ToolFailed(f"HTTP {response.status_code}: the answer is compressed ({encoding}), unasked")
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > _READ_BYTES:
                break
        text = self._text(response, bytes(data[:_READ_BYTES]), cut=len(data) > _READ_BYTES)
        if not response.is_success:
            raise ToolFailed(f"HTTP {response.status_code}: {text or response.reason_phrase}")
        return text or f"HTTP {response.status_code}, without a body"

    def _text(self, response: httpx2.Response, data: bytes, *, cut: bool) -> str:
        if b"\x00" in data:
            kind = response.headers.get("content-type", "an unknown type")
            raise ToolFailed(f"HTTP {response.status_code}: the answer is no text but {kind}")
        text = data.decode(response.charset_encoding or "utf-8", errors="replace")
        return self._secret.without_part_at_end(text) if cut else text


def _headers(rendered: Rendered, *, key: str | None) -> httpx2.Headers:
    headers = httpx2.Headers(rendered.headers)
    if key is not None:
        headers.setdefault("idempotency-key", key)
    if rendered.content_type:
        headers.setdefault("content-type", rendered.content_type)
    headers["accept-encoding"] = "identity"
    return headers


def _same_origin(one: httpx2.URL, other: httpx2.URL) -> bool:
    return _origin(one) == _origin(other)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or _ORIGIN_PORTS.get(url.scheme)
