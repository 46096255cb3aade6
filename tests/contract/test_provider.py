"""What every provider does: the one over HTTP, with each fault caused for real, and the fake of the unit tests."""

from __future__ import annotations

import asyncio
import email.utils
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from schemas.chat import Message, Usage
from tests.loopback_provider import (
    LoopbackProvider,
    Reply,
    answers,
    cut_connection,
    hang_until,
    hang_up,
    malformed_json,
    status,
)
from worker.providers import exchange
from worker.providers.base import ChatReply, ChatRequest, Provider
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
from worker.providers.fake import FakeProvider
from worker.providers.openai_compatible import OpenAICompatible, http_client

pytestmark = pytest.mark.anyio

KEY = "sk-CANARY-0123456789"
ASKED = ChatRequest(model="m1", messages=(Message(role="user", content="Superb."),))


@pytest.fixture(scope="module")
def loopback_provider() -> Iterator[LoopbackProvider]:
    """One for the whole file: its start and end take longer than most tests here."""
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture(autouse=True)
def _no_reply_is_left_of_another_test(loopback_provider: LoopbackProvider) -> None:
    loopback_provider._queued.clear()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(connections=8, timeout_s=10) as client:
        yield client


@pytest.fixture
def over_http(client: httpx.AsyncClient, loopback_provider: LoopbackProvider) -> OpenAICompatible:
    return OpenAICompatible(client, base_url=loopback_provider.base_url, api_key=KEY)


def error_body(message: str = "no", code: str | None = None, type_: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": None, "code": code}}


def completion(**changes: Any) -> dict[str, Any]:
    """Return the body of a good completion, changed."""
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    choice = {"index": 0, "message": {"role": "assistant", "content": "positive"}, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "model": "m1-0613", "choices": [choice], "usage": usage, **changes}


def choice(finish_reason: str | None = "stop", **message: Any) -> list[dict[str, Any]]:
    return [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}]


async def failed(provider: Provider) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await provider.complete(ASKED)
    return caught.value


class TestEveryProvider:
    @pytest.fixture(params=["fake", "http"])
    def provider(self, request: pytest.FixtureRequest) -> Provider:
        """A provider that answers once, and then that it is asked too often."""
        if request.param == "fake":
            reply = ChatReply("positive", "stop", "m1-0613", Usage(prompt_tokens=7, completion_tokens=3))
            return FakeProvider([reply, RateLimited("slow down", http_status=429, retry_after_s=3)])
        loopback: LoopbackProvider = request.getfixturevalue("loopback_provider")
        loopback.queue(status(200, completion()), status(429, error_body("slow down"), {"Retry-After": "3"}))
        over_http: OpenAICompatible = request.getfixturevalue("over_http")
        return over_http

    async def test_an_answer_has_its_text_model_reason_and_tokens(self, provider: Provider) -> None:
        reply = await provider.complete(ASKED)
        assert reply == ChatReply("positive", "stop", "m1-0613", Usage(prompt_tokens=7, completion_tokens=3))

    async def test_a_fault_has_its_class_status_and_wait(self, provider: Provider) -> None:
        await provider.complete(ASKED)
        error = await failed(provider)
        assert (type(error), error.http_status, error.retry_after_s) == (RateLimited, 429, 3)
        assert "slow down" in str(error)

    async def test_it_has_a_name(self, provider: Provider) -> None:
        assert provider.name in ("fake", "127.0.0.1")


class TestRequests:
    async def test_what_was_not_asked_for_is_not_sent(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider
    ) -> None:
        await over_http.complete(ASKED)
        assert loopback_provider.requests[-1].body == {
            "model": "m1",
            "messages": [{"role": "user", "content": "Superb."}],
        }

    async def test_what_was_asked_for_is_sent_as_it_is(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider
    ) -> None:
        schema = {"type": "object", "properties": {"a": {"enum": [None, 1, "ä"]}}, "required": ["a"]}
        await over_http.complete(
            ChatRequest(
                model="vendor/m2:free",
                messages=(
                    Message(role="system", content="Say ‘ä’ {{not rendered}}"),
                    Message(role="assistant", content=""),
                    Message(role="user", content='"quotes"\n\\ and \U0001f600'),
                ),
                response_schema=schema,
                max_tokens=8,
                temperature=0.0,
                top_p=0.0,
                seed=0,
                stop=("END", "\n"),
            )
        )
        assert loopback_provider.requests[-1].body == {
            "model": "vendor/m2:free",
            "messages": [
                {"role": "system", "content": "Say ‘ä’ {{not rendered}}"},
                {"role": "assistant", "content": ""},
                {"role": "user", "content": '"quotes"\n\\ and \U0001f600'},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "output", "strict": True, "schema": schema},
            },
            "max_tokens": 8,
            "temperature": 0.0,
            "top_p": 0.0,
            "seed": 0,
            "stop": ["END", "\n"],
        }

    async def test_the_key_travels_in_its_header(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider
    ) -> None:
        await over_http.complete(ASKED)
        headers = loopback_provider.requests[-1].headers
        assert headers["authorization"] == f"Bearer {KEY}"
        assert headers["content-type"] == "application/json"

    async def test_without_a_key_there_is_no_header(
        self, client: httpx.AsyncClient, loopback_provider: LoopbackProvider
    ) -> None:
        await OpenAICompatible(client, base_url=loopback_provider.base_url, api_key=None).complete(ASKED)
        assert "authorization" not in loopback_provider.requests[-1].headers

    async def test_a_slash_at_the_end_of_the_base_url_changes_nothing(
        self, client: httpx.AsyncClient, loopback_provider: LoopbackProvider
    ) -> None:
        provider = OpenAICompatible(client, base_url=f"{loopback_provider.base_url}/", api_key=None)
        assert (await provider.complete(ASKED)).content == "echo: Superb."

    async def test_loopback_is_reached_without_the_environments_proxy(
        self, loopback_provider: LoopbackProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        async with http_client(connections=1, timeout_s=5) as client:
            provider = OpenAICompatible(client, base_url=loopback_provider.base_url, api_key=None)
            assert (await provider.complete(ASKED)).content == "echo: Superb."

    async def test_as_many_calls_are_open_at_once_as_there_are_jobs_in_flight(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider
    ) -> None:
        go, before = threading.Event(), loopback_provider.count
        loopback_provider.queue(*[hang_until(go)] * 8)
        calls = [asyncio.create_task(over_http.complete(ASKED)) for _ in range(8)]
        await asyncio.to_thread(loopback_provider.wait_for_requests, before + 8)
        go.set()
        assert len(await asyncio.gather(*calls)) == 8
        assert loopback_provider.peak_in_flight == 8


# status, body, headers → class
STATUSES: list[tuple[int, Any, type[ProviderError]]] = [
    (400, error_body("bad"), RequestRefused),
    (400, error_body(code="context_length_exceeded"), ContextLengthExceeded),
    (400, error_body(type_="exceed_context_size_error"), ContextLengthExceeded),
    (400, error_body(code="model_not_found"), ModelUnknown),
    (400, {"error": "a bare text"}, RequestRefused),
    (400, {"message": "no error object"}, RequestRefused),
    (400, ["a list"], RequestRefused),
    (400, b"", RequestRefused),
    (400, b"[" * 100_000, RequestRefused),
    (401, error_body(code="invalid_api_key"), KeyRefused),
    (402, error_body("Insufficient Balance"), QuotaExhausted),
    (403, error_body(), KeyRefused),
    (404, error_body(code="model_not_found"), ModelUnknown),
    (404, b"<html>404</html>", ModelUnknown),
    (405, b"", ModelUnknown),
    (301, b"", ModelUnknown),
    (308, b"", ModelUnknown),
    (408, error_body(), ServerFault),
    (409, error_body(), ServerFault),
    (413, error_body(code="context_length_exceeded"), ContextLengthExceeded),
    (413, error_body(), RequestRefused),
    (415, error_body(), RequestRefused),
    (422, error_body(), RequestRefused),
    (425, error_body(), ServerFault),
    (429, error_body(), RateLimited),
    (429, error_body(code="insufficient_quota", type_="insufficient_quota"), QuotaExhausted),
    (429, error_body(type_="insufficient_quota"), QuotaExhausted),
    (429, error_body(code="rate_limit_exceeded", type_="tokens"), RateLimited),
    (500, error_body(), ServerFault),
    (501, error_body(), ServerFault),
    (502, b"<html>bad gateway</html>", ServerFault),
    (503, error_body(), ServerFault),
    (504, b"", ServerFault),
    (529, error_body("overloaded"), ServerFault),
]


class TestStatuses:
    @pytest.mark.parametrize(
        ("code", "body", "kind"), STATUSES, ids=[f"{code} {kind.__name__}" for code, _, kind in STATUSES]
    )
    async def test_each_has_its_class(
        self,
        over_http: OpenAICompatible,
        loopback_provider: LoopbackProvider,
        code: int,
        body: Any,
        kind: type[ProviderError],
    ) -> None:
        loopback_provider.queue(status(code, body))
        error = await failed(over_http)
        assert (type(error), error.http_status) == (kind, code)
        assert str(error).startswith(f"HTTP {code}: ")
        assert len(str(error)) < 600

    async def test_the_providers_words_are_told(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(status(400, error_body("max_tokens is too large")), status(502, b"<b>bad gateway</b>"))
        assert str(await failed(over_http)) == "HTTP 400: max_tokens is too large"
        assert str(await failed(over_http)) == "HTTP 502: <b>bad gateway</b>"

    async def test_a_key_that_the_provider_repeats_is_not(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(status(401, error_body(f"Incorrect API key: {KEY}")), status(200, error_body(KEY)))
        assert str(await failed(over_http)) == "HTTP 401: Incorrect API key: [key]"
        assert KEY not in str(await failed(over_http))

    @pytest.mark.parametrize("code", [429, 500, 503, 529])
    @pytest.mark.parametrize(
        ("headers", "asked_s"),
        [
            ({}, None),
            ({"Retry-After": "7"}, 7),
            ({"Retry-After": "0.25"}, 0.25),
            ({"Retry-After": "0"}, 0),
            ({"Retry-After": "-5"}, 0),
            ({"retry-after-ms": "1500"}, 1.5),
            ({"retry-after-ms": "1500", "Retry-After": "9"}, 1.5),
            ({"retry-after-ms": "soon", "Retry-After": "9"}, 9),
            ({"Retry-After": "soon"}, None),
            ({"Retry-After": "nan"}, None),
            ({"Retry-After": "inf"}, None),
            ({"Retry-After": "1e300"}, 86_400),
            ({"Retry-After": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
            ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ],
    )
    async def test_the_wait_is_what_was_asked_for(
        self,
        over_http: OpenAICompatible,
        loopback_provider: LoopbackProvider,
        code: int,
        headers: dict[str, str],
        asked_s: float | None,
    ) -> None:
        loopback_provider.queue(status(code, error_body(), headers))
        assert (await failed(over_http)).retry_after_s == asked_s

    async def test_a_wait_may_be_a_date(self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider) -> None:
        date = email.utils.formatdate(time.time() + 100, usegmt=True)
        loopback_provider.queue(status(429, error_body(), {"Retry-After": date}))
        asked_s = (await failed(over_http)).retry_after_s
        assert asked_s is not None
        assert 90 < asked_s <= 100


class TestAnswers:
    @pytest.mark.parametrize(
        "body",
        [
            error_body("upstream failed"),
            {},
            [],
            "text",
            None,
            completion(choices=[]),
            completion(choices=None),
            completion(choices=[{}]),
            completion(choices=[{"message": None}]),
            completion(choices=choice(content=5)),
        ],
        ids=repr,
    )
    async def test_a_success_without_a_completion_is_malformed(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider, body: Any
    ) -> None:
        loopback_provider.queue(Reply(body=json.dumps(body).encode()))
        error = await failed(over_http)
        assert (type(error), error.http_status) == (ReplyMalformed, 200)

    async def test_a_success_that_is_no_json_is_malformed(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(malformed_json(), Reply(body=b""), Reply(body=b"\xff\xfe"), Reply(body=b"<html>"))
        assert [type(await failed(over_http)) for _ in range(4)] == [ReplyMalformed] * 4

    async def test_a_success_with_an_error_in_it_tells_its_words(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(status(200, error_body("upstream failed")))
        assert "upstream failed" in str(await failed(over_http))

    @pytest.mark.parametrize(
        ("body", "reply"),
        [
            (completion(choices=choice(content=None)), ChatReply("", "stop", "m1-0613", None)),
            (completion(choices=choice("length", content="pos")), ChatReply("pos", "length", "m1-0613", None)),
            (
                completion(choices=choice("content_filter", content=None)),
                ChatReply("", "content_filter", "m1-0613", None),
            ),
            (
                completion(choices=choice(content=None, refusal="I won't")),
                ChatReply("", "stop", "m1-0613", None, refusal="I won't"),
            ),
            (completion(choices=choice(None, content="x")), ChatReply("x", None, "m1-0613", None)),
            (completion(model=None), ChatReply("positive", "stop", "", None)),
        ],
        ids=["null content", "cut off", "content filter", "refusal", "no reason", "no model"],
    )
    async def test_each_kind_of_completion_is_read(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider, body: dict[str, Any], reply: ChatReply
    ) -> None:
        loopback_provider.queue(status(200, {**body, "usage": None}))
        assert await over_http.complete(ASKED) == reply

    @pytest.mark.parametrize(
        ("usage", "counted"),
        [
            ({"prompt_tokens": 7, "completion_tokens": 3}, (7, 3)),
            ({"prompt_tokens": 7}, (7, 0)),
            ({"prompt_tokens": 7.0, "completion_tokens": None}, (7, 0)),
            ({"prompt_tokens": -1, "completion_tokens": 10**12}, None),
            ({"prompt_tokens": "many", "completion_tokens": []}, None),
            ({}, None),
            (None, None),
        ],
        ids=repr,
    )
    async def test_tokens_that_nobody_can_have_counted_do_not_spoil_what_was_paid_for(
        self,
        over_http: OpenAICompatible,
        loopback_provider: LoopbackProvider,
        usage: Any,
        counted: tuple[int, int] | None,
    ) -> None:
        loopback_provider.queue(status(200, completion(usage=usage)))
        reply = await over_http.complete(ASKED)
        expected = counted and Usage(prompt_tokens=counted[0], completion_tokens=counted[1])
        assert reply.usage == expected
        assert reply.content == "positive"


class TestConnections:
    async def test_a_refused_connection_is_unreachable(self, client: httpx.AsyncClient) -> None:
        with socket.socket() as bound:  # bound and not listening: nobody else gets the port
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            provider = OpenAICompatible(client, base_url=f"http://me:{KEY}@127.0.0.1:{port}/v1", api_key=None)
            error = await failed(provider)
        assert type(error) is Unreachable
        assert f"no connection to http://127.0.0.1:{port}/v1/chat/completions" in str(error)

    async def test_a_host_that_does_not_exist_is_unreachable(self, client: httpx.AsyncClient) -> None:
        assert (
            type(await failed(OpenAICompatible(client, base_url="http://no.invalid/v1", api_key=None))) is Unreachable
        )

    async def test_a_reply_that_is_cut_is_lost(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(cut_connection())
        assert type(await failed(over_http)) is ReplyLost

    async def test_a_request_that_is_read_and_not_answered_is_lost(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(hang_up())
        assert type(await failed(over_http)) is ReplyLost

    async def test_a_provider_that_says_nothing_in_time_has_lost_the_reply(
        self, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(hang_until(threading.Event()))
        async with http_client(connections=1, timeout_s=0.1) as client:
            provider = OpenAICompatible(client, base_url=loopback_provider.base_url, api_key=KEY)
            assert type(await failed(provider)) is ReplyLost

    async def test_a_call_that_gets_no_connection_in_time_was_not_sent(
        self, loopback_provider: LoopbackProvider
    ) -> None:
        before = loopback_provider.count
        loopback_provider.queue(hang_until(threading.Event()))
        async with http_client(connections=1, timeout_s=10) as client:
            client.timeout = httpx.Timeout(10, pool=0.05)
            provider = OpenAICompatible(client, base_url=loopback_provider.base_url, api_key=KEY)
            first = asyncio.create_task(provider.complete(ASKED))
            await asyncio.to_thread(loopback_provider.wait_for_requests, before + 1)
            assert type(await failed(provider)) is Unreachable
            first.cancel()
        assert loopback_provider.count == before + 1

    @pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\x00", f"{KEY}é"])
    async def test_a_key_that_cannot_be_sent_is_not_told(
        self, client: httpx.AsyncClient, loopback_provider: LoopbackProvider, key: str
    ) -> None:
        error = await failed(OpenAICompatible(client, base_url=loopback_provider.base_url, api_key=key))
        assert type(error) is Unreachable
        assert KEY not in str(error)
        assert error.__cause__ is None

    async def test_after_a_fault_the_next_call_is_answered(
        self, over_http: OpenAICompatible, loopback_provider: LoopbackProvider
    ) -> None:
        loopback_provider.queue(cut_connection(), answers("fine"))
        await failed(over_http)
        assert (await over_http.complete(ASKED)).content == "fine"


def every_kind_of(base: type[Exception]) -> Iterator[type[Exception]]:
    yield base
    for kind in base.__subclasses__():
        yield from every_kind_of(kind)


HTTPX_ERRORS = [
    *every_kind_of(httpx.HTTPError),
    *every_kind_of(httpx.InvalidURL),
    *every_kind_of(httpx.StreamError),
    *every_kind_of(httpx.CookieConflict),
]


class TestForeignErrors:
    @pytest.mark.parametrize("kind", HTTPX_ERRORS, ids=lambda kind: kind.__name__)
    async def test_each_becomes_ours(self, kind: type[Exception]) -> None:
        def fails(request: httpx.Request) -> httpx.Response:
            raised = kind.__new__(kind)
            Exception.__init__(raised, "boom")
            raise raised

        async with httpx.AsyncClient(transport=httpx.MockTransport(fails)) as client:
            error = await failed(OpenAICompatible(client, base_url="http://127.0.0.1/v1", api_key=None))
        sent = kind not in (
            httpx.ConnectError,
            httpx.ConnectTimeout,
            httpx.PoolTimeout,
            httpx.ProxyError,
            httpx.UnsupportedProtocol,
            httpx.LocalProtocolError,
            httpx.InvalidURL,
        )
        assert error.certainly_not_sent is not sent

    def test_none_of_httpxs_exceptions_is_missing_here(self) -> None:
        named = {getattr(httpx, name) for name in httpx.__all__}
        exceptions = {each for each in named if isinstance(each, type) and issubclass(each, Exception)}
        assert exceptions <= set(HTTPX_ERRORS)

    def test_only_what_was_certainly_not_charged_gives_its_tokens_back(self) -> None:
        charged = {kind for kind in every_kind_of(ProviderError) if not kind.certainly_not_charged}  # type: ignore[attr-defined]
        assert charged == {ProviderError, RateLimited, ServerFault, ReplyLost, ReplyMalformed}


def test_the_client_leaves_an_idle_connection_before_llama_cpp_does() -> None:
    assert exchange.KEEPALIVE_EXPIRY_S < 5
