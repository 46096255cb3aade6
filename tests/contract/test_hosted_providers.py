"""What every provider adapter does, against a server that speaks the services' dialects (CONTRACT.md).

The first half holds for all of them, streamed or not; the second has what each dialect adds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from schemas.chat import ImagePart, ImageUrl, Message, TextPart, ToolCall
from schemas.output import OutputSpec
from schemas.quota_told import QuotaTold
from schemas.tool import NamedFunction, NamedToolChoice
from tests.loopback_hosted import AGENT_BASE, AGENT_MODEL, KEY, PASSAGE, THREAD_HEADER, Fault, LoopbackHosted
from worker.providers.agent_endpoint import AgentEndpoint
from worker.providers.base import (
    CallDelta,
    ChatReply,
    ChatRequest,
    Delta,
    HostedCall,
    OnDelta,
    Provider,
    ResultDelta,
    TextDelta,
)
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
    StreamRefused,
    StructuredOutputUnsupported,
    ThreadUnknown,
    ToolsUnsupported,
    Unreachable,
)
from worker.providers.http_errors import RETRY_AFTER_MAX_S
from worker.providers.langdock import Langdock
from worker.providers.langtail import Langtail
from worker.providers.openai_compatible import OpenAICompatible
from worker.tools.base import ToolDefinition

Build = Callable[[httpx.AsyncClient, str, str | None], Provider]

# Making one takes longer than most of these tests.
TLS = ssl.create_default_context()

GREETER = "acme/support/greeter/production"


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One adapter in one of its manners."""

    name: str
    build: Build
    assistant: str | None
    streams: bool = False
    keeps_threads: bool = False
    counts_tokens: bool = False


def _openai(client: httpx.AsyncClient, url: str, key: str | None) -> Provider:
    return OpenAICompatible(client, base_url=f"{url}/v1", api_key=key)


def _langdock(client: httpx.AsyncClient, url: str, key: str | None) -> Provider:
    return Langdock(client, base_url=url, api_key=key)


def _langdock_streamed(client: httpx.AsyncClient, url: str, key: str | None) -> Provider:
    return Langdock(client, base_url=url, api_key=key, stream=True)


def _langdock_agent(client: httpx.AsyncClient, url: str, key: str | None) -> Provider:
    return Langdock(client, base_url=url, api_key=key, api="agent")


def _langdock_agent_streamed(client: httpx.AsyncClient, url: str, key: str | None) -> Provider:
    return Langdock(client, base_url=url, api_key=key, api="agent", stream=True)


def _langtail(client: httpx.AsyncClient, url: str, key: str | None) -> Provider:
    return Langtail(client, base_url=url, api_key=key)


def _langtail_streamed(client: httpx.AsyncClient, url: str, key: str | None) -> Provider:
    return Langtail(client, base_url=url, api_key=key, stream=True)


def _agent(client: httpx.AsyncClient, url: str, key: str | None) -> Provider:
    return AgentEndpoint(client, base_url=f"{url}{AGENT_BASE}/", api_key=key)


def _agent_streamed(client: httpx.AsyncClient, url: str, key: str | None) -> Provider:
    return AgentEndpoint(client, base_url=f"{url}{AGENT_BASE}", api_key=key, stream=True, path="agents")


OPENAI = Case("openai", _openai, None, counts_tokens=True)
LANGDOCK = Case("langdock", _langdock, "asst_1")
LANGDOCK_STREAMED = Case("langdock-streamed", _langdock_streamed, "asst_1", streams=True)
LANGDOCK_AGENT = Case("langdock-agent", _langdock_agent, "asst_1")
LANGDOCK_AGENT_STREAMED = Case("langdock-agent-streamed", _langdock_agent_streamed, "asst_1", streams=True)
LANGTAIL = Case("langtail", _langtail, GREETER, keeps_threads=True, counts_tokens=True)
# No parameter of Langtail's asks for the count of a stream.
LANGTAIL_STREAMED = Case("langtail-streamed", _langtail_streamed, GREETER, streams=True, keeps_threads=True)
AGENT = Case("agent", _agent, "agent-1", keeps_threads=True, counts_tokens=True)
AGENT_STREAMED = Case(
    "agent-streamed", _agent_streamed, "agent-1", streams=True, keeps_threads=True, counts_tokens=True
)

ALL = [
    OPENAI,
    LANGDOCK,
    LANGDOCK_STREAMED,
    LANGDOCK_AGENT,
    LANGDOCK_AGENT_STREAMED,
    LANGTAIL,
    LANGTAIL_STREAMED,
    AGENT,
    AGENT_STREAMED,
]
LANGDOCKS = [case for case in ALL if case.name.startswith("langdock")]


def cases(which: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", which, ids=lambda case: case.name)


@pytest.fixture
def server() -> Iterator[LoopbackHosted]:
    with LoopbackHosted() as services:
        yield services


def user(text: str) -> Message:
    return Message(role="user", content=text)


def system(text: str) -> Message:
    return Message(role="system", content=text)


def request_for(case: Case, *messages: Message, hosted: dict[str, Any] | None = None, **parameters: Any) -> ChatRequest:
    """Return a request for this adapter; `messages` are the conversation, all of it new unless `hosted` says else."""
    call = HostedCall(
        assistant=case.assistant,
        name="greeter",
        instructions="",
        description="",
        variables={},
        new_messages=messages,
        output=None,
        thread_ref=None,
        max_steps=10,
        metadata={},
        do_not_record=False,
    )
    return ChatRequest(
        model="m",
        messages=messages,
        hosted=None if case is OPENAI else dataclasses.replace(call, **(hosted or {})),
        **parameters,
    )


def ask(
    case: Case,
    server: LoopbackHosted,
    *requests: ChatRequest,
    key: str | None = KEY,
    timeout_s: float = 20.0,
    on_delta: OnDelta | None = None,
) -> ChatReply:
    """Send the requests one after the other through one client and return the last reply."""

    async def main() -> ChatReply:
        async with httpx.AsyncClient(timeout=timeout_s, verify=TLS) as client:
            provider = case.build(client, server.url, key)
            replies = [await provider.complete(request, on_delta=on_delta) for request in requests]
            return replies[-1]

    return asyncio.run(main())


def failure(case: Case, server: LoopbackHosted, request: ChatRequest, **how: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        ask(case, server, request, **how)
    return caught.value


def sent(server: LoopbackHosted) -> Any:
    """Return the body of the last request."""
    return server.requests[-1].body


# --- all adapters ---------------------------------------------------------------------------------


@cases(ALL)
def test_a_question_is_answered(case: Case, server: LoopbackHosted) -> None:
    reply = ask(case, server, request_for(case, user("hello")))

    assert reply.content.startswith("heard: ")
    assert reply.content.endswith("hello")
    assert reply.tool_calls == ()
    assert reply.refusal is None
    assert reply.exchanged == ()


@cases(ALL)
def test_usage_is_the_services_own_count_or_none(case: Case, server: LoopbackHosted) -> None:
    reply = ask(case, server, request_for(case, user("hello")))

    assert (reply.usage is not None) == case.counts_tokens
    if reply.usage is not None:
        assert reply.usage.prompt_tokens > 0
        assert reply.usage.completion_tokens == 5


@cases([case for case in ALL if case.counts_tokens])
def test_a_service_that_leaves_usage_away_is_not_taken_to_have_used_nothing(case: Case, server: LoopbackHosted) -> None:
    server.counts_tokens = False

    assert ask(case, server, request_for(case, user("hello"))).usage is None


@cases(ALL)
def test_who_listens_is_told_the_answer_as_it_comes(case: Case, server: LoopbackHosted) -> None:
    told: list[Delta] = []

    reply = ask(case, server, request_for(case, user("hello")), on_delta=told.append)

    assert sent(server)["stream"] is True
    assert len(told) > 1
    assert "".join(delta.text for delta in told if isinstance(delta, TextDelta)) == reply.content


@cases([case for case in LANGDOCKS if case.streams])
def test_who_listens_is_told_the_rounds_of_a_services_own_tools(case: Case, server: LoopbackHosted) -> None:
    told: list[Delta] = []

    asked = request_for(case, user("hello"), hosted={"assistant": "asst_tools"})
    reply = ask(case, server, asked, on_delta=told.append)

    calls = [delta.id for delta in told if isinstance(delta, CallDelta)]
    assert calls == [call.id for message in reply.exchanged for call in message.tool_calls]
    assert calls == [delta.call_id for delta in told if isinstance(delta, ResultDelta)]
    last = max(at for at, delta in enumerate(told) if isinstance(delta, ResultDelta))
    assert "".join(delta.text for delta in told[last:] if isinstance(delta, TextDelta)) == reply.content


@cases(ALL)
def test_a_service_that_streams_unasked_is_understood(case: Case, server: LoopbackHosted) -> None:
    server.streams_unasked = True

    assert ask(case, server, request_for(case, user("hello"))).content.endswith("hello")


@cases(ALL)
def test_streaming_is_asked_for_only_where_it_is_wanted(case: Case, server: LoopbackHosted) -> None:
    ask(case, server, request_for(case, user("hello")))

    assert sent(server).get("stream", False) is case.streams


@cases(ALL)
def test_text_arrives_as_it_was_written(case: Case, server: LoopbackHosted) -> None:
    text = 'Grüße, 世界 🌍 \u2028 "quoted" \\ {{not a variable}}\nsecond line'

    assert ask(case, server, request_for(case, user(text))).content.endswith(text)


@cases(ALL)
def test_large_bodies_pass_both_ways(case: Case, server: LoopbackHosted) -> None:
    text = "ä" * 2_000_000

    assert ask(case, server, request_for(case, user(text))).content.endswith(text)


@cases(ALL)
def test_a_key_is_sent_and_a_wrong_one_is_refused(case: Case, server: LoopbackHosted) -> None:
    error = failure(case, server, request_for(case, user("hello")), key="wrong")

    assert isinstance(error, KeyRefused)
    assert error.http_status == 401
    assert "wrong" not in str(error)


@cases(ALL)
def test_without_a_key_no_key_is_sent(case: Case, server: LoopbackHosted) -> None:
    failure(case, server, request_for(case, user("hello")), key=None)

    assert {"authorization", "x-api-key"}.isdisjoint(server.requests[-1].headers)


@cases(ALL)
@pytest.mark.parametrize("key", ["line\nbreak", "umläut"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_quoted(
    case: Case, key: str, server: LoopbackHosted
) -> None:
    error = failure(case, server, request_for(case, user("hello")), key=key)

    assert isinstance(error, Unreachable)
    assert key not in str(error)
    assert error.__cause__ is None
    assert server.requests == []


@cases([case for case in ALL if case is not OPENAI])
def test_an_assistant_that_the_service_does_not_have_is_unknown(case: Case, server: LoopbackHosted) -> None:
    assistant = "acme/support/greeter/staging" if case.assistant == GREETER else "nobody"

    error = failure(case, server, request_for(case, user("hello"), hosted={"assistant": assistant}))

    assert isinstance(error, ModelUnknown)
    assert error.http_status == 404


FAULTS = [
    (400, {"error": {"message": "no"}}, RequestRefused),
    (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, ContextLengthExceeded),
    (400, {"error": {"message": "too long", "type": "exceed_context_size_error"}}, ContextLengthExceeded),
    (400, {"message": "This model's maximum context length is 4096 tokens."}, ContextLengthExceeded),
    (400, {"error": {"message": "filtered", "code": "content_filter"}}, ContentFiltered),
    (401, {"message": "no"}, KeyRefused),
    (402, {"error": "pay first"}, QuotaExhausted),
    (403, {"message": "not shared"}, KeyRefused),
    (404, {"error": "nothing here"}, ModelUnknown),
    (400, {"error": {"message": "no such model", "code": "model_not_found"}}, ModelUnknown),
    (405, None, ModelUnknown),
    (307, None, ModelUnknown),
    (408, None, ServerFault),
    (409, {"message": "busy"}, ServerFault),
    (413, b"<html>too large</html>", RequestRefused),
    (422, {"detail": [{"loc": ["body", "n"], "msg": "bad", "type": "t"}]}, RequestRefused),
    (425, None, ServerFault),
    (429, {"message": "slow down"}, RateLimited),
    (429, {"error": {"message": "no credit", "code": "insufficient_quota"}}, QuotaExhausted),
    (429, {"error": {"message": "no credit", "type": "insufficient_quota"}}, QuotaExhausted),
    (400, {"error": {"message": "Your credit balance is too low"}}, QuotaExhausted),
    (500, {"message": "Internal Server Error"}, ServerFault),
    (502, b"<html>bad gateway</html>", ServerFault),
    (503, None, ServerFault),
    (529, {"error": {"message": "overloaded"}}, ServerFault),
]


@cases(ALL)
@pytest.mark.parametrize(("status", "body", "expected"), FAULTS)
def test_each_status_is_its_error(
    case: Case, status: int, body: Any, expected: type[ProviderError], server: LoopbackHosted
) -> None:
    server.fail(Fault(status=status, body=body))

    error = failure(case, server, request_for(case, user("hello")))

    assert type(error) is expected
    assert error.http_status == status
    assert str(status) in str(error)


@cases(ALL)
@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
        ({"retry-after-ms": "soon", "Retry-After": "9"}, 9.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "1893456000"}, RETRY_AFTER_MAX_S),
        ({"Retry-After": "1e300"}, RETRY_AFTER_MAX_S),
        ({"Retry-After": "Thu, 01 Jan 2015 00:00:00 GMT"}, 0.0),
        ({"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}, RETRY_AFTER_MAX_S),
        ({"Retry-After": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
        ({"Retry-After": "in a while"}, None),
    ],
)
def test_a_wait_that_a_service_asks_for_is_read_within_reason(
    case: Case, headers: dict[str, str], expected_s: float | None, server: LoopbackHosted
) -> None:
    server.fail(Fault(status=429, body={"message": "slow down"}, headers=headers))

    error = failure(case, server, request_for(case, user("hello")))

    assert isinstance(error, RateLimited)
    assert error.retry_after_s == expected_s


@cases(ALL)
def test_what_a_service_tells_of_its_limits_comes_with_the_reply(case: Case, server: LoopbackHosted) -> None:
    server.headers = {"x-ratelimit-limit-requests": "50", "x-ratelimit-reset-tokens": "6m0s"}

    assert ask(case, server, request_for(case, user("hello"))).told == QuotaTold(
        limit_requests=50, reset_tokens_s=360.0
    )


@cases(ALL)
def test_a_service_that_tells_nothing_of_its_limits_is_taken_at_that(case: Case, server: LoopbackHosted) -> None:
    assert ask(case, server, request_for(case, user("hello"))).told is None


@cases(ALL)
def test_what_a_service_tells_of_its_limits_comes_with_its_refusal_too(case: Case, server: LoopbackHosted) -> None:
    server.fail(Fault(status=429, body={"message": "slow down"}, headers={"X-RateLimit-Remaining-Requests": "0"}))

    error = failure(case, server, request_for(case, user("hello")))

    assert error.told == QuotaTold(remaining_requests=0)


def test_a_wait_until_a_moment_is_counted_from_now(server: LoopbackHosted) -> None:
    moment = email.utils.formatdate(time.time() + 600, usegmt=True)
    server.fail(Fault(status=503, headers={"Retry-After": moment}))

    error = failure(OPENAI, server, request_for(OPENAI, user("hello")))

    assert error.retry_after_s is not None
    assert 500 < error.retry_after_s <= 600


@cases(ALL)
def test_a_body_that_is_cut_off_is_a_lost_reply(case: Case, server: LoopbackHosted) -> None:
    server.fail(Fault(cut=True))

    error = failure(case, server, request_for(case, user("hello")))

    assert isinstance(error, ReplyLost)
    assert not error.certainly_not_charged


@cases(ALL)
def test_a_connection_that_is_closed_without_an_answer_is_a_lost_reply(case: Case, server: LoopbackHosted) -> None:
    server.fail(Fault(hang_up=True))

    assert isinstance(failure(case, server, request_for(case, user("hello"))), ReplyLost)


@cases(ALL)
def test_an_answer_that_does_not_come_in_time_is_a_lost_reply(case: Case, server: LoopbackHosted) -> None:
    server.fail(Fault(hang=True))

    assert isinstance(failure(case, server, request_for(case, user("hello")), timeout_s=0.2), ReplyLost)


@cases(ALL)
def test_a_service_that_cannot_be_reached_was_certainly_not_paid(case: Case, server: LoopbackHosted) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(timeout=5, verify=TLS) as client:
            # Nothing listens on the discard port of loopback.
            await case.build(client, "http://127.0.0.1:9", KEY).complete(request_for(case, user("hello")))

    with pytest.raises(Unreachable) as caught:
        asyncio.run(main())

    assert caught.value.certainly_not_charged


@cases(ALL)
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b'{"choices": [',
        b"<html>maintenance</html>",
        b"[]",
        b"null",
        b'"text"',
        b'{"error": {"message": "upstream is away"}}',
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"result": []}',
        b'{"result": "text"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=repr,
)
def test_a_success_that_is_no_answer_is_malformed(case: Case, raw: bytes, server: LoopbackHosted) -> None:
    server.fail(Fault(raw=raw))

    error = failure(case, server, request_for(case, user("hello")))

    assert isinstance(error, ReplyMalformed)
    assert error.http_status == 200


def test_words_of_a_proxy_that_says_success_are_kept(server: LoopbackHosted) -> None:
    server.fail(Fault(raw=b'{"error": {"message": "upstream is away"}}'))

    assert "upstream is away" in str(failure(OPENAI, server, request_for(OPENAI, user("hello"))))


@cases(ALL)
def test_an_error_is_readable_and_short(case: Case, server: LoopbackHosted) -> None:
    server.fail(Fault(status=500, body=b"x" * 100_000))

    assert len(str(failure(case, server, request_for(case, user("hello"))))) < 600


@cases(ALL)
@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=401, body={"message": f"bad key {KEY}"}),
        Fault(status=500, body=f"{'x' * 480}{KEY}".encode()),
        Fault(status=500, body=f"{'x' * 495}{KEY}".encode()),
        Fault(raw=f"no answer, but {KEY}".encode()),
        Fault(
            status=200,
            body=f'data: {{"error": "{KEY}"}}\n\n'.encode(),
            headers={"Content-Type": "text/event-stream"},
        ),
    ],
    ids=["object", "text", "at-the-cut", "malformed", "stream"],
)
def test_a_key_that_a_service_repeats_is_not_told(case: Case, fault: Fault, server: LoopbackHosted) -> None:
    server.fail(fault)

    words = str(failure(case, server, request_for(case, user("hello"))))

    assert KEY[:4] not in words.replace("[key]", "")


@cases(ALL)
def test_a_request_that_is_no_json_is_refused_before_it_is_sent(case: Case, server: LoopbackHosted) -> None:
    # Langdock takes a temperature for temporary assistants only.
    hosted = {"assistant": None} if case in LANGDOCKS else {}

    error = failure(case, server, request_for(case, user("hello"), temperature=float("nan"), hosted=hosted))

    assert isinstance(error, RequestRefused)
    assert error.certainly_not_charged
    assert server.requests == []


# --- streams --------------------------------------------------------------------------------------


def streamed(server: LoopbackHosted, *faults: Fault) -> None:
    server.streams_unasked = True
    server.fail(*faults)


@cases(ALL)
def test_a_stream_without_its_end_mark_is_whole_if_the_answer_is(case: Case, server: LoopbackHosted) -> None:
    streamed(server, Fault(no_done=True))

    assert ask(case, server, request_for(case, user("hello"))).content.endswith("hello")


@cases(ALL)
def test_a_stream_that_ends_too_soon_is_a_lost_reply(case: Case, server: LoopbackHosted) -> None:
    # The finish, and a count of tokens where there is one.
    streamed(server, Fault(no_done=True, drop_last=1 if case in LANGDOCKS else 2))

    error = failure(case, server, request_for(case, user("hello")))

    assert isinstance(error, ReplyLost)
    assert "[DONE]" in str(error)


@cases(ALL)
@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"type": "error", "errorText": "the model broke"}, ServerFault),
        ({"type": "error", "error": {"message": "the model broke"}}, ServerFault),
        ({"error": {"message": "the model broke", "code": 503}}, ServerFault),
        ({"error": "the model broke"}, ServerFault),
        ({"error": {"message": "the model broke", "type": "rate_limit_error"}}, RateLimited),
        ({"error": {"message": "the model broke", "code": "insufficient_quota"}}, QuotaExhausted),
        ({"error": {"message": "the model broke", "code": "context_length_exceeded"}}, ContextLengthExceeded),
        ({"error": {"message": "the model broke", "code": 400}}, RequestRefused),
    ],
)
def test_an_error_in_the_middle_of_a_stream_is_its_error(
    case: Case, event: Any, expected: type[ProviderError], server: LoopbackHosted
) -> None:
    streamed(server, Fault(error_event=event))

    error = failure(case, server, request_for(case, user("hello")))

    assert type(error) is expected
    assert "the model broke" in str(error)


@cases(ALL)
def test_an_event_that_is_no_json_is_malformed(case: Case, server: LoopbackHosted) -> None:
    server.fail(
        Fault(status=200, body=b'data: {"type":\n\ndata: [DONE]\n\n', headers={"Content-Type": "text/event-stream"})
    )

    assert isinstance(failure(case, server, request_for(case, user("hello"))), ReplyMalformed)


@cases(ALL)
def test_a_stream_that_says_nothing_is_malformed(case: Case, server: LoopbackHosted) -> None:
    server.fail(Fault(status=200, body=b"data: [DONE]\n\n", headers={"Content-Type": "text/event-stream"}))

    assert isinstance(failure(case, server, request_for(case, user("hello"))), ReplyMalformed)


@cases(ALL)
def test_an_event_named_error_is_one_whatever_it_holds(case: Case, server: LoopbackHosted) -> None:
    body = b'event: error\ndata: {"message": "the model broke"}\n\n'
    server.fail(Fault(status=200, body=body, headers={"Content-Type": "text/event-stream"}))

    error = failure(case, server, request_for(case, user("hello")))

    assert isinstance(error, ServerFault)
    assert "the model broke" in str(error)


def test_an_event_named_error_keeps_the_name_of_its_error(server: LoopbackHosted) -> None:
    body = b'event: error\ndata: {"error": {"message": "no credit", "code": "insufficient_quota"}}\n\n'
    server.fail(Fault(status=200, body=body, headers={"Content-Type": "text/event-stream"}))

    assert isinstance(failure(OPENAI, server, request_for(OPENAI, user("hello"))), QuotaExhausted)


@cases([case for case in ALL if case.streams])
def test_a_client_goes_on_after_a_stream(case: Case, server: LoopbackHosted) -> None:
    requests = [request_for(case, user(f"number {n}")) for n in range(5)]

    assert ask(case, server, *requests).content.endswith("number 4")


@cases(ALL)
def test_a_character_that_was_streamed_in_two_halves_is_whole(case: Case, server: LoopbackHosted) -> None:
    halves = (r"\ud83c", r"\udf0d and \ud83c")
    if case in LANGDOCKS:
        events = [*(f'{{"type": "text-delta", "delta": "{half}"}}' for half in halves), '{"type": "finish"}']
    else:
        events = [f'{{"choices": [{{"delta": {{"content": "{half}"}}}}]}}' for half in halves]
        events.append('{"choices": [{"delta": {}, "finish_reason": "stop"}]}')
    body = "".join(f"data: {event}\n\n" for event in events).encode()
    server.fail(Fault(status=200, body=body, headers={"Content-Type": "text/event-stream"}))

    assert ask(case, server, request_for(case, user("hello"))).content == "🌍 and \ufffd"


@cases(ALL)
def test_half_a_character_costs_no_reply(case: Case, server: LoopbackHosted) -> None:
    if case in LANGDOCKS:
        raw = rb'{"result": [{"role": "assistant", "content": "a\ud83c"}], "output": ["\ud83c"]}'
    else:
        raw = rb'{"choices": [{"message": {"content": "a\ud83c"}}]}'
    server.fail(Fault(raw=raw))

    reply = ask(case, server, request_for(case, user("hello")))

    assert reply.content == "a\ufffd"
    assert reply.output == (["\ufffd"] if case in LANGDOCKS else None)


# --- threads --------------------------------------------------------------------------------------


@cases([case for case in ALL if case.keeps_threads])
def test_a_thread_of_the_service_goes_on_with_what_is_new(case: Case, server: LoopbackHosted) -> None:
    first = ask(case, server, request_for(case, user("one")))
    assert first.thread_ref

    history = (user("one"), Message(role="assistant", content=first.content), user("two"))
    call = {"thread_ref": first.thread_ref, "new_messages": (user("two"),)}
    second = ask(case, server, request_for(case, *history, hosted=call))

    assert second.thread_ref == first.thread_ref
    assert second.content.endswith("one | two")
    assert [message["content"] for message in sent(server)["messages"]] == ["two"]


@cases([case for case in ALL if case.keeps_threads])
def test_two_new_threads_know_nothing_of_each_other(case: Case, server: LoopbackHosted) -> None:
    first = ask(case, server, request_for(case, user("one")))
    second = ask(case, server, request_for(case, user("two")))

    assert first.thread_ref != second.thread_ref
    assert "one" not in second.content


@cases([case for case in ALL if case.keeps_threads])
def test_a_thread_that_the_service_lost_is_the_jobs_fault_and_not_the_lanes(case: Case, server: LoopbackHosted) -> None:
    gone = "00000000-0000-0000-0000-000000000001"

    error = failure(case, server, request_for(case, user("two"), hosted={"thread_ref": gone}))

    assert type(error) is ThreadUnknown
    assert isinstance(error, RequestRefused)


def test_a_job_that_continues_no_thread_cannot_have_lost_one(server: LoopbackHosted) -> None:
    server.fail(Fault(status=404, body={"detail": "No conversation agent of this name"}))

    assert type(failure(AGENT, server, request_for(AGENT, user("hello")))) is ModelUnknown


@cases(LANGDOCKS)
def test_a_service_without_threads_is_sent_the_whole_conversation(case: Case, server: LoopbackHosted) -> None:
    history = (user("one"), Message(role="assistant", content="heard: one"), user("two"))

    reply = ask(case, server, request_for(case, *history, hosted={"new_messages": (user("two"),)}))

    assert reply.content == "heard: one | two"
    assert reply.thread_ref is None


# --- tools and structured output, in OpenAI's form --------------------------------------------------

TOOLS = tuple(
    ToolDefinition(name=name, description=f"the {name}", parameters={"type": "object", "properties": {}})
    for name in ("weather", "clock")
)
TOOLS_BODY = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"the {name}",
            "parameters": {"type": "object", "properties": {}},
        },
    }
    for name in ("weather", "clock")
]


@cases([OPENAI, LANGTAIL, LANGTAIL_STREAMED, AGENT, AGENT_STREAMED])
def test_calls_of_the_callers_tools_come_back(case: Case, server: LoopbackHosted) -> None:
    reply = ask(case, server, request_for(case, user("hello"), tools=TOOLS, tool_choice="required"))

    assert sent(server)["tools"] == TOOLS_BODY
    assert sent(server)["tool_choice"] == "required"
    assert reply.tool_calls == (
        ToolCall(id="call_0", name="weather", arguments="{}"),
        ToolCall(id="call_1", name="clock", arguments="{}"),
    )
    assert reply.content == ""
    assert reply.finish_reason == "tool_calls"


@cases([OPENAI, LANGTAIL, AGENT])
def test_answers_of_tools_are_sent_in_openais_form(case: Case, server: LoopbackHosted) -> None:
    call = ToolCall(id="call_0", name="weather", arguments="{}")
    messages = (
        user("hello"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", tool_call_id="call_0", content="sun"),
    )

    reply = ask(case, server, request_for(case, *messages))

    assert sent(server)["messages"] == [
        {"role": "user", "content": "hello"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "sun", "tool_call_id": "call_0"},
    ]
    assert reply.content.endswith("hello | sun")


@cases(LANGDOCKS)
def test_langdock_takes_no_tools_from_its_caller(case: Case, server: LoopbackHosted) -> None:
    assert isinstance(failure(case, server, request_for(case, user("hello"), tools=TOOLS)), ToolsUnsupported)
    assert server.requests == []


SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@cases([OPENAI, LANGTAIL, LANGTAIL_STREAMED])
def test_a_schema_is_sent_natively(case: Case, server: LoopbackHosted) -> None:
    reply = ask(case, server, request_for(case, user("hello"), response_schema=SCHEMA))

    assert sent(server)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "output", "strict": True, "schema": SCHEMA},
    }
    assert reply.content == '{"ok": false}'


@cases([OPENAI, LANGTAIL])
def test_what_the_job_asked_for_goes_word_for_word(case: Case, server: LoopbackHosted) -> None:
    ask(
        case,
        server,
        request_for(case, user("hello"), response_schema=SCHEMA, response_format={"type": "json_object"}),
    )

    assert sent(server)["response_format"] == {"type": "json_object"}


@cases([AGENT, AGENT_STREAMED, *LANGDOCKS])
def test_a_service_without_a_response_format_says_so_before_anything_is_paid_for(
    case: Case, server: LoopbackHosted
) -> None:
    error = failure(case, server, request_for(case, user("hello"), response_schema=SCHEMA))

    assert isinstance(error, StructuredOutputUnsupported)
    assert error.certainly_not_charged
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (400, "'response_format' of type 'json_schema' is not supported with this model.", StructuredOutputUnsupported),
        (400, "This model does not support response format `json_schema`", StructuredOutputUnsupported),
        (400, "This response_format type is unavailable now", StructuredOutputUnsupported),
        (422, "Unrecognized request argument supplied: response_format", StructuredOutputUnsupported),
        (400, "Invalid schema for response_format 'output': In context=()", StructuredOutputUnsupported),
        (400, "registry/llama2 does not support tools", ToolsUnsupported),
        (400, "`tool calling` is not supported with this model", ToolsUnsupported),
        (
            400,
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            ToolsUnsupported,
        ),
        (404, "No endpoints found that support tool use.", ToolsUnsupported),
        (500, "tools param requires --jinja flag", ToolsUnsupported),
        (400, "'max_tokens' is not supported with this model", RequestRefused),
        (400, "invalid value for tool_choice", RequestRefused),
    ],
)
def test_a_feature_that_a_model_lacks_is_told_from_a_fault(
    status: int, message: str, expected: type[ProviderError], server: LoopbackHosted
) -> None:
    server.fail(Fault(status=status, body={"error": {"message": message}}))

    error = failure(OPENAI, server, request_for(OPENAI, user("hello"), tools=TOOLS, response_schema=SCHEMA))

    assert type(error) is expected


def test_a_feature_that_was_not_sent_cannot_be_refused(server: LoopbackHosted) -> None:
    server.fail(Fault(status=400, body={"error": {"message": "tools and response_format are not supported"}}))

    assert type(failure(OPENAI, server, request_for(OPENAI, user("hello")))) is RequestRefused


# --- OpenAI-compatible --------------------------------------------------------------------------------


def test_openai_gets_every_parameter_and_the_steps_name_as_idempotency_key(server: LoopbackHosted) -> None:
    choice = NamedToolChoice(type="function", function=NamedFunction(name="clock"))
    ask(
        OPENAI,
        server,
        request_for(
            OPENAI,
            system("be brief"),
            user("hello"),
            max_tokens=7,
            temperature=0.0,
            top_p=0.5,
            presence_penalty=-1.0,
            frequency_penalty=1.0,
            seed=0,
            stop=("END",),
            n=2,
            tools=TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            user="end-user",
            reasoning_effort="low",
            step_id="job-1.0",
        ),
    )

    assert server.requests[-1].path == "/v1/chat/completions"
    assert server.requests[-1].headers["idempotency-key"] == "job-1.0"
    assert sent(server) == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 0.5,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.0,
        "seed": 0,
        "stop": ["END"],
        "n": 2,
        "tools": TOOLS_BODY,
        "tool_choice": {"type": "function", "function": {"name": "clock"}},
        "parallel_tool_calls": False,
        "user": "end-user",
        "reasoning_effort": "low",
    }


def test_openai_gets_nothing_that_nobody_set(server: LoopbackHosted) -> None:
    ask(OPENAI, server, request_for(OPENAI, user("hello"), tool_choice="none", parallel_tool_calls=True))

    assert sent(server) == {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    assert "idempotency-key" not in server.requests[-1].headers


@pytest.mark.parametrize("streams", [False, True])
def test_choices_after_the_first_are_alternatives(streams: bool, server: LoopbackHosted) -> None:
    server.streams_unasked = streams

    reply = ask(OPENAI, server, request_for(OPENAI, user("hello"), n=3))

    assert reply.content == "heard: hello"
    assert reply.alternatives == ("heard: hello", "heard: hello")


def completion(message: dict[str, Any], finish_reason: str | None = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return httpx.Response(200, json={"model": "m", "choices": [choice], **more}).content


@pytest.mark.parametrize("finish_reason", ["stop", "length", "content_filter", "tool_calls", None])
def test_the_finish_reason_is_handed_on(finish_reason: str | None, server: LoopbackHosted) -> None:
    server.fail(Fault(raw=completion({"content": "x"}, finish_reason)))

    assert ask(OPENAI, server, request_for(OPENAI, user("hello"))).finish_reason == finish_reason


def test_a_refusal_is_handed_on(server: LoopbackHosted) -> None:
    server.fail(Fault(raw=completion({"content": None, "refusal": "I won't"})))

    reply = ask(OPENAI, server, request_for(OPENAI, user("hello")))

    assert (reply.content, reply.refusal) == ("", "I won't")


def test_a_legacy_function_call_is_a_tool_call(server: LoopbackHosted) -> None:
    call = {"name": "clock", "arguments": '{"tz": "UTC"}'}
    server.fail(Fault(raw=completion({"content": None, "function_call": call}, "function_call")))

    (reply_call,) = ask(OPENAI, server, request_for(OPENAI, user("hello"))).tool_calls

    assert (reply_call.name, reply_call.arguments) == ("clock", '{"tz": "UTC"}')
    assert reply_call.id


def test_each_tool_call_gets_an_id_of_its_own_and_text_for_arguments(server: LoopbackHosted) -> None:
    calls = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
        {"id": "a", "type": "function", "function": {"name": "g", "arguments": ""}},
        {"type": "function", "function": {"name": "h", "arguments": "not json"}},
    ]
    server.fail(Fault(raw=completion({"tool_calls": calls}, "tool_calls")))

    replied = ask(OPENAI, server, request_for(OPENAI, user("hello"))).tool_calls

    assert [call.arguments for call in replied] == ['{"x": 1}', "{}", "not json"]
    assert replied[0].id == "a"
    assert len({call.id for call in replied}) == 3


def test_content_in_parts_is_their_text(server: LoopbackHosted) -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "an "}, {"type": "text", "text": "answer"}]
    server.fail(Fault(raw=completion({"content": parts})))

    assert ask(OPENAI, server, request_for(OPENAI, user("hello"))).content == "an answer"


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": -1, "completion_tokens": 10**12}, {"prompt_tokens": True}, "many", [7]]
)
def test_a_count_that_makes_no_sense_is_none_and_costs_no_reply(usage: Any, server: LoopbackHosted) -> None:
    server.fail(Fault(raw=completion({"content": "x"}, usage=usage)))

    reply = ask(OPENAI, server, request_for(OPENAI, user("hello")))

    assert reply.content == "x"
    assert reply.usage is None


def test_a_stream_of_tool_calls_without_places_is_put_together_by_ids(server: LoopbackHosted) -> None:
    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return b"data: " + httpx.Response(200, json={"choices": [choice]}).content + b"\n\n"

    body = (
        chunk({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": '{"x"'}}]})
        + chunk({"tool_calls": [{"function": {"arguments": ":1}"}}]})
        + chunk({"tool_calls": [{"id": "b", "function": {"name": "g", "arguments": "{}"}}]})
        + chunk({}, "tool_calls")
        + b"data: [DONE]\n\n"
    )
    server.fail(Fault(status=200, body=body, headers={"Content-Type": "text/event-stream"}))

    assert ask(OPENAI, server, request_for(OPENAI, user("hello"))).tool_calls == (
        ToolCall(id="a", name="f", arguments='{"x":1}'),
        ToolCall(id="b", name="g", arguments="{}"),
    )


def test_a_session_of_a_plain_server_is_no_thread(server: LoopbackHosted) -> None:
    server.fail(Fault(raw=completion({"content": "x"}, session_id="s")))

    assert ask(OPENAI, server, request_for(OPENAI, user("hello"))).thread_ref is None


# --- Langdock -------------------------------------------------------------------------------------------


def test_langdocks_assistant_gets_what_the_contract_says(server: LoopbackHosted) -> None:
    ask(
        LANGDOCK,
        server,
        request_for(
            LANGDOCK,
            system("be brief"),
            user("hello"),
            max_tokens=9,
            temperature=0.5,
            hosted={"max_steps": 4, "model": "gpt-5", "output": OutputSpec(type="enum", enum=("yes", "no"))},
        ),
    )

    assert server.requests[-1].path == "/assistant/v1/chat/completions"
    assert server.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    assert sent(server) == {
        "assistantId": "asst_1",
        "messages": [{"role": "user", "content": "be brief\n\nhello"}],
        "stream": False,
        "output": {"type": "enum", "enum": ["yes", "no"]},
        "maxSteps": 4,
    }


def test_langdocks_agent_gets_ui_messages(server: LoopbackHosted) -> None:
    call = ToolCall(id="call_0", name="weather", arguments='{"city": "Oslo"}')
    messages = (
        user("hello"),
        Message(role="assistant", content="Wait.", tool_calls=(call,)),
        Message(role="tool", tool_call_id="call_0", content="sun"),
        Message(role="assistant", content="Sun."),
        user("thanks"),
    )

    ask(LANGDOCK_AGENT, server, request_for(LANGDOCK_AGENT, *messages))

    assert server.requests[-1].path == "/agent/v1/chat/completions"
    assert sent(server) == {
        "agentId": "asst_1",
        "messages": [
            {"id": "msg_1", "role": "user", "parts": [{"type": "text", "text": "hello"}]},
            {
                "id": "msg_2",
                "role": "assistant",
                "parts": [
                    {"type": "text", "text": "Wait."},
                    {
                        "type": "tool-weather",
                        "toolCallId": "call_0",
                        "state": "output-available",
                        "input": {"city": "Oslo"},
                        "output": "sun",
                    },
                ],
            },
            {"id": "msg_3", "role": "assistant", "parts": [{"type": "text", "text": "Sun."}]},
            {"id": "msg_4", "role": "user", "parts": [{"type": "text", "text": "thanks"}]},
        ],
        "stream": False,
        "maxSteps": 10,
    }


def test_langdocks_assistant_gets_calls_and_answers_of_a_history_as_text(server: LoopbackHosted) -> None:
    call = ToolCall(id="call_0", name="weather", arguments='{"city": "Oslo"}')
    messages = (
        user("hello"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", tool_call_id="call_0", content="sun"),
    )

    ask(LANGDOCK, server, request_for(LANGDOCK, *messages))

    assert sent(server)["messages"] == [
        {"role": "user", "content": "hello"},
        {
            "role": "assistant",
            "content": '[{"type": "tool-call", "toolCallId": "call_0", "toolName": "weather", '
            '"args": {"city": "Oslo"}}]',
        },
        {"role": "tool", "content": "sun"},
    ]


@cases(LANGDOCKS)
def test_a_temporary_assistant_is_described_in_the_request(case: Case, server: LoopbackHosted) -> None:
    reply = ask(
        case,
        server,
        request_for(
            case,
            system("be brief"),
            user("hello"),
            temperature=0.2,
            hosted={
                "assistant": None,
                "name": "Greeter",
                "instructions": "Greet.",
                "description": "It greets.",
                "model": "gpt-5",
            },
        ),
    )

    assert reply.content == "heard: hello"
    kind = "agent" if "agent" in case.name else "assistant"
    assert f"{kind}Id" not in sent(server)
    assert sent(server)[kind] == {
        "name": "Greeter",
        "instructions": "Greet.\n\nbe brief",
        "description": "It greets.",
        "temperature": 0.2,
        "model": "gpt-5",
    }


@cases(LANGDOCKS)
def test_what_is_not_set_of_a_temporary_assistant_is_not_sent(case: Case, server: LoopbackHosted) -> None:
    ask(case, server, request_for(case, user("hello"), hosted={"assistant": None, "instructions": "Greet."}))

    kind = "agent" if "agent" in case.name else "assistant"
    assert sent(server)[kind] == {"name": "greeter", "instructions": "Greet."}


OUTPUTS: list[tuple[OutputSpec, dict[str, Any], Any]] = [
    (OutputSpec(type="object"), {"type": "object"}, {}),
    (OutputSpec(type="object", json_schema=SCHEMA), {"type": "object", "schema": SCHEMA}, {"ok": False}),
    (OutputSpec(type="array", json_schema=SCHEMA), {"type": "array", "schema": SCHEMA}, [{"ok": False}]),
    (OutputSpec(type="enum", enum=("yes", "no")), {"type": "enum", "enum": ["yes", "no"]}, "yes"),
]


@cases(LANGDOCKS)
@pytest.mark.parametrize(("spec", "body", "expected"), OUTPUTS, ids=["object", "object-schema", "array", "enum"])
def test_langdock_reads_a_structured_output_itself(
    case: Case, spec: OutputSpec, body: dict[str, Any], expected: Any, server: LoopbackHosted
) -> None:
    reply = ask(case, server, request_for(case, user("hello"), hosted={"output": spec}))

    assert sent(server)["output"] == body
    assert reply.output == expected


@cases(LANGDOCKS)
def test_what_langdocks_assistant_did_with_its_tools_comes_before_its_answer(
    case: Case, server: LoopbackHosted
) -> None:
    reply = ask(case, server, request_for(case, user("hello"), hosted={"assistant": "asst_tools"}))

    assert reply.content == "heard: hello"
    assert reply.tool_calls == ()
    called, first, second = reply.exchanged
    assert called == Message(
        role="assistant",
        content="Let me look.",
        tool_calls=(
            ToolCall(id="call_a", name="lookup", arguments='{"q": "Oslo"}'),
            ToolCall(id="call_b", name="clock", arguments="{}"),
        ),
    )
    assert (first.role, first.tool_call_id, first.content) == ("tool", "call_a", '{"answer": 42}')
    assert (second.role, second.tool_call_id, second.content) == ("tool", "call_b", "noon")


@cases(LANGDOCKS)
def test_an_assistant_that_used_up_its_steps_has_no_answer_and_says_why(case: Case, server: LoopbackHosted) -> None:
    reply = ask(case, server, request_for(case, user("hello"), hosted={"assistant": "asst_tools", "max_steps": 1}))

    assert sent(server)["maxSteps"] == 1
    assert reply.content == ""
    assert reply.finish_reason == "tool_calls"
    assert [message.role for message in reply.exchanged] == ["assistant", "tool", "tool"]


@pytest.mark.parametrize("form", ["message", "messages", "result"])
@pytest.mark.parametrize("content", ["parts", "string"])
@cases([LANGDOCK, LANGDOCK_AGENT])
def test_every_form_that_the_sources_know_of_an_answer_is_read(
    case: Case, form: Any, content: Any, server: LoopbackHosted
) -> None:
    server.agent_form, server.result_form = form, content

    reply = ask(case, server, request_for(case, user("hello"), hosted={"assistant": "asst_tools"}))

    assert reply.content == "heard: hello"
    assert [message.role for message in reply.exchanged] == ["assistant", "tool", "tool"]


def raw_result(*items: dict[str, Any], **more: Any) -> Fault:
    return Fault(raw=httpx.Response(200, json={"result": list(items), **more}).content)


def test_what_the_user_said_before_is_no_part_of_langdocks_answer(server: LoopbackHosted) -> None:
    server.fail(
        raw_result(
            {"id": "1", "role": "assistant", "content": "an old answer"},
            {"id": "2", "role": "user", "content": "hello"},
            {"id": "3", "role": "assistant", "content": "the answer"},
        )
    )

    reply = ask(LANGDOCK, server, request_for(LANGDOCK, user("hello")))

    assert (reply.content, reply.exchanged) == ("the answer", ())


def test_a_call_that_nobody_answered_leaves_no_half_exchange(server: LoopbackHosted) -> None:
    server.fail(
        raw_result(
            {
                "id": "1",
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I must ask you first."},
                    {"type": "tool-call", "toolCallId": "c", "toolName": "delete", "args": {}},
                ],
            },
        )
    )

    reply = ask(LANGDOCK, server, request_for(LANGDOCK, user("hello")))

    assert reply.content == ""
    assert reply.finish_reason == "tool_calls"
    assert reply.exchanged == (Message(role="assistant", content="I must ask you first."),)


def call_part(call_id: str) -> dict[str, Any]:
    return {"type": "tool-call", "toolCallId": call_id, "toolName": "look", "args": {}}


def result_part(call_id: str) -> dict[str, Any]:
    return {"type": "tool-result", "toolCallId": call_id, "toolName": "look", "result": "seen"}


def ui_part(call_id: str) -> dict[str, Any]:
    return {"type": "tool-look", "toolCallId": call_id, "state": "output-available", "input": {}, "output": "seen"}


def item(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"id": "i", "role": role, "content": list(parts)}


def of_events(*events: dict[str, Any]) -> Fault:
    lines = [b"data: " + httpx.Response(200, json=event).content + b"\n\n" for event in events]
    return Fault(status=200, body=b"".join(lines), headers={"Content-Type": "text/event-stream"})


DONE_TEXT = {"type": "text", "text": "done"}


@pytest.mark.parametrize(
    "answer",
    [
        raw_result(
            item("assistant", call_part("a")),
            item("tool", result_part("a")),
            item("assistant", call_part("b")),
            item("tool", result_part("b")),
            item("assistant", DONE_TEXT),
        ),
        raw_result(
            item(
                "assistant",
                {"type": "step-start"},
                ui_part("a"),
                {"type": "step-start"},
                ui_part("b"),
                {"type": "step-start"},
                DONE_TEXT,
            )
        ),
        of_events(
            call_part("a"),
            result_part("a"),
            {"type": "finish-step"},
            call_part("b"),
            result_part("b"),
            {"type": "finish-step"},
            {"type": "text-delta", "delta": "done"},
            {"type": "finish"},
        ),
    ],
    ids=["items", "parts", "events"],
)
def test_two_rounds_of_tools_stay_two_rounds(answer: Fault, server: LoopbackHosted) -> None:
    server.fail(answer)

    reply = ask(LANGDOCK, server, request_for(LANGDOCK, user("hello")))

    assert reply.content == "done"
    assert [message.role for message in reply.exchanged] == ["assistant", "tool", "assistant", "tool"]
    assert [message.tool_call_id for message in reply.exchanged] == [None, "a", None, "b"]


def test_what_was_said_before_a_tools_answer_is_not_the_answer(server: LoopbackHosted) -> None:
    before = {"type": "text", "text": "Let me look."}
    server.fail(raw_result(item("assistant", before, call_part("a"), result_part("a"), DONE_TEXT)))

    reply = ask(LANGDOCK, server, request_for(LANGDOCK, user("hello")))

    assert reply.content == "done"
    assert [message.text for message in reply.exchanged] == ["Let me look.", "seen"]


def test_calls_and_answers_without_ids_belong_together_in_their_order(server: LoopbackHosted) -> None:
    calls: list[dict[str, Any]] = [{"type": "tool-call", "toolName": name, "args": {}} for name in ("first", "second")]
    results = [{"type": "tool-result", "result": n} for n in (1, 2)]
    server.fail(raw_result(item("assistant", *calls), item("tool", *results), item("assistant", DONE_TEXT)))

    called, *answers = ask(LANGDOCK, server, request_for(LANGDOCK, user("hello"))).exchanged

    assert [call.name for call in called.tool_calls] == ["first", "second"]
    assert [answer.tool_call_id for answer in answers] == [call.id for call in called.tool_calls]
    assert [answer.content for answer in answers] == ["1", "2"]


def test_an_answer_to_a_call_that_nobody_made_is_left_out(server: LoopbackHosted) -> None:
    server.fail(raw_result(item("tool", result_part("a")), item("assistant", DONE_TEXT)))

    reply = ask(LANGDOCK, server, request_for(LANGDOCK, user("hello")))

    assert (reply.content, reply.exchanged) == ("done", ())


def test_a_tool_that_failed_is_an_answer_to_its_call(server: LoopbackHosted) -> None:
    failed = {
        "type": "tool-look",
        "toolCallId": "a",
        "state": "output-error",
        "input": {},
        "errorText": "out of order",
    }
    server.fail(raw_result(item("assistant", failed, DONE_TEXT)))

    assert ask(LANGDOCK, server, request_for(LANGDOCK, user("hello"))).exchanged[1].content == "out of order"


def test_a_stream_that_langdock_aborts_is_a_lost_reply(server: LoopbackHosted) -> None:
    server.fail(of_events({"type": "text-delta", "delta": "do"}, {"type": "abort"}))

    assert isinstance(failure(LANGDOCK, server, request_for(LANGDOCK, user("hello"))), ReplyLost)


def test_the_reason_of_a_streams_finish_is_in_openais_words(server: LoopbackHosted) -> None:
    server.fail(of_events({"type": "text-delta", "delta": "do"}, {"type": "finish", "finishReason": "content-filter"}))

    assert ask(LANGDOCK, server, request_for(LANGDOCK, user("hello"))).finish_reason == "content_filter"


def test_an_output_without_a_text_stands_for_the_answer(server: LoopbackHosted) -> None:
    server.fail(raw_result(output={"ok": True}))

    reply = ask(LANGDOCK, server, request_for(LANGDOCK, user("hello")))

    assert (reply.content, reply.output) == ('{"ok": true}', {"ok": True})


def test_an_image_is_a_file_for_langdocks_agent_and_refused_by_its_assistant(server: LoopbackHosted) -> None:
    image = ImagePart(image_url=ImageUrl(url="data:image/png;base64,AAAA"))
    message = Message(role="user", content=(TextPart(text="What is this?"), image))

    ask(LANGDOCK_AGENT, server, request_for(LANGDOCK_AGENT, message))

    assert sent(server)["messages"][0]["parts"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AAAA"},
    ]
    assert isinstance(failure(LANGDOCK, server, request_for(LANGDOCK, message)), RequestRefused)


def test_an_assistant_that_is_not_shared_with_the_key_is_the_keys_fault(server: LoopbackHosted) -> None:
    error = failure(LANGDOCK, server, request_for(LANGDOCK, user("hello"), hosted={"assistant": "asst_private"}))

    assert isinstance(error, KeyRefused)
    assert "not shared" in str(error)


@pytest.mark.parametrize(
    ("hosted", "words"),
    [
        ({"max_steps": 21}, "maxSteps must be between 1 and 20"),
        ({"assistant": None, "instructions": "x" * 16_385}, "instructions is required and has at most 16384"),
    ],
)
def test_langdocks_own_words_say_what_was_wrong(hosted: dict[str, Any], words: str, server: LoopbackHosted) -> None:
    error = failure(LANGDOCK, server, request_for(LANGDOCK, user("hello"), hosted=hosted))

    assert type(error) is RequestRefused
    assert words in str(error)


def test_langdocks_list_of_objections_is_readable(server: LoopbackHosted) -> None:
    objections = [
        {"path": ["messages", 0, "role"], "message": "Invalid enum value"},
        {"path": ["maxSteps"], "message": "Too big"},
    ]
    server.fail(Fault(status=400, body={"message": objections}))

    error = failure(LANGDOCK, server, request_for(LANGDOCK, user("hello")))

    assert "messages.0.role: Invalid enum value; maxSteps: Too big" in str(error)


# --- Langtail -------------------------------------------------------------------------------------------


@cases([LANGTAIL, LANGTAIL_STREAMED])
def test_langtail_gets_what_the_contract_says(case: Case, server: LoopbackHosted) -> None:
    server.threads["thread_1"] = []
    ask(
        case,
        server,
        request_for(
            case,
            user("hello"),
            max_tokens=7,
            temperature=0.0,
            top_p=0.5,
            presence_penalty=-1.0,
            frequency_penalty=1.0,
            seed=0,
            stop=("END",),
            n=2,
            parallel_tool_calls=False,
            tool_choice="none",
            user="end-user",
            response_format={"type": "json_object"},
            hosted={
                "thread_ref": "thread_1",
                "variables": {"name": "Ada", "tags": ["a", "ü"], "count": 3, "flag": True, "nothing": None},
                "metadata": {"batch": "b1", "row": 4, "test": True},
                "do_not_record": True,
                "model": "gpt-5",
            },
        ),
    )

    assert server.requests[-1].path == f"/{GREETER}"
    assert server.requests[-1].query == {}
    assert server.requests[-1].headers["x-api-key"] == KEY
    assert sent(server) == {
        "threadId": "thread_1",
        "variables": {"name": "Ada", "tags": '["a", "ü"]', "count": "3", "flag": "true", "nothing": ""},
        "messages": [{"role": "user", "content": "hello"}],
        "stream": case.streams,
        "model": "gpt-5",
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 0.5,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.0,
        "seed": 0,
        "stop": ["END"],
        "tool_choice": "none",
        "parallelToolCalls": False,
        "response_format": {"type": "json_object"},
        "user": "end-user",
        "metadata": {"batch": "b1", "row": 4, "test": "true"},
        "doNotRecord": True,
    }


def test_langtail_gets_nothing_that_nobody_set(server: LoopbackHosted) -> None:
    ask(LANGTAIL, server, request_for(LANGTAIL, user("hello")))

    assert sent(server) == {"messages": [{"role": "user", "content": "hello"}], "stream": False}


@cases([LANGTAIL, LANGTAIL_STREAMED])
def test_langtails_template_gets_the_variables(case: Case, server: LoopbackHosted) -> None:
    reply = ask(case, server, request_for(case, hosted={"variables": {"name": "Ada"}}))

    assert reply.content == "heard: You greet Ada."
    assert "messages" not in sent(server)


def test_a_version_of_langtails_is_pinned_behind_the_path(server: LoopbackHosted) -> None:
    hosted = {"assistant": f"{GREETER}@3", "variables": {"name": "Ada"}}

    assert ask(LANGTAIL, server, request_for(LANGTAIL, hosted=hosted)).content == "heard: Version 3, Ada."
    assert server.requests[-1].path == f"/{GREETER}"
    assert server.requests[-1].query == {"v": ["3"]}


@pytest.mark.parametrize("assistant", [None, "greeter", "a/b/c", "a/b/c/d/e", "a//c/d", "a/b/c/d@", "a/b/../d"])
def test_a_path_that_is_none_of_langtails_is_refused_before_it_is_called(
    assistant: str | None, server: LoopbackHosted
) -> None:
    error = failure(LANGTAIL, server, request_for(LANGTAIL, user("hello"), hosted={"assistant": assistant}))

    assert type(error) is RequestRefused
    assert server.requests == []


def test_langtails_two_forms_of_errors_are_readable(server: LoopbackHosted) -> None:
    unknown = failure(LANGTAIL, server, request_for(LANGTAIL, user("hello"), hosted={"assistant": "a/b/c/d"}))
    refused = failure(LANGTAIL, server, request_for(LANGTAIL, user("hello"), temperature=3.0))

    assert str(unknown) == "HTTP 404: Prompt deployment not found"
    assert str(refused) == "HTTP 400: temperature must be between 0 and 2"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, body={"message": "no"}, headers={THREAD_HEADER: "thread_9"}),
        Fault(status=429, body={"message": "no"}, headers={THREAD_HEADER: "thread_9"}),
        Fault(status=200, body=b"[]", headers={THREAD_HEADER: "thread_9"}),
        Fault(
            status=200,
            body=b'data: {"choices": []}\n\n',
            headers={THREAD_HEADER: "thread_9", "Content-Type": "text/event-stream"},
        ),
    ],
    ids=["500", "429", "malformed", "cut-stream"],
)
def test_a_failure_of_langtails_names_its_thread_too(fault: Fault, server: LoopbackHosted) -> None:
    server.fail(fault)

    assert failure(LANGTAIL, server, request_for(LANGTAIL, user("hello"))).thread_ref == "thread_9"


def test_langtail_takes_images(server: LoopbackHosted) -> None:
    image = ImagePart(image_url=ImageUrl(url="https://pictures.test/a.png"))
    message = Message(role="user", content=(TextPart(text="What is this?"), image))

    ask(LANGTAIL, server, request_for(LANGTAIL, message))

    assert sent(server)["messages"][0]["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://pictures.test/a.png", "detail": "auto"}},
    ]


# --- the agent endpoint -----------------------------------------------------------------------------------


@cases([AGENT, AGENT_STREAMED])
def test_the_agent_endpoint_gets_what_the_contract_says(case: Case, server: LoopbackHosted) -> None:
    reply = ask(
        case,
        server,
        request_for(
            case,
            system("be brief"),
            user("hello"),
            max_tokens=7,
            temperature=0.5,
            top_p=0.5,
            presence_penalty=1.0,
            frequency_penalty=1.0,
            seed=0,
            stop=("END",),
            n=2,
            user="end-user",
            hosted={"model": AGENT_MODEL},
        ),
    )

    kind = "agents" if case is AGENT_STREAMED else "assistants"
    assert server.requests[-1].path == f"{AGENT_BASE}/{kind}/agent-1/chat/completions"
    assert server.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    assert sent(server) == {
        "messages": [{"role": "user", "content": "be brief\n\nhello"}],
        "create_session": True,
        "model": AGENT_MODEL,
        "temperature": 0.5,
        "seed": 0,
        "n": 2,
        "stop": ["END"],
        "max_tokens": 7,
        "stream": case.streams,
        **({"stream_options": {"include_usage": True}} if case.streams else {}),
    }
    assert len(reply.alternatives) == 1
    assert reply.model == AGENT_MODEL


@cases([AGENT, AGENT_STREAMED])
def test_a_session_is_extended_and_not_made_anew(case: Case, server: LoopbackHosted) -> None:
    session_id = ask(case, server, request_for(case, user("one"))).thread_ref
    ask(case, server, request_for(case, user("two"), hosted={"thread_ref": session_id}))

    assert sent(server)["store_in_session"] == session_id
    assert "create_session" not in sent(server)
    assert [message["content"] for message in server.sessions[str(session_id)]] == [
        "one",
        "heard: one",
        "two",
        "heard: one | two",
    ]


@cases([AGENT, AGENT_STREAMED])
def test_without_a_thread_the_agent_is_sent_everything_and_keeps_nothing(case: Case, server: LoopbackHosted) -> None:
    messages = (user("one"), Message(role="assistant", content="heard: one"), user("two"))
    call = {"keep_thread": False, "new_messages": (user("two"),)}

    reply = ask(case, server, request_for(case, *messages, hosted=call))

    assert reply.content == "heard: one | two"
    assert reply.thread_ref is None
    assert server.sessions == {}
    assert {"create_session", "store_in_session", "model"}.isdisjoint(sent(server))


@cases([AGENT, AGENT_STREAMED])
def test_passages_that_the_agent_found_come_with_the_answer(case: Case, server: LoopbackHosted) -> None:
    assert ask(case, server, request_for(case, user("hello"))).retrieved == (PASSAGE,)


def test_the_agent_endpoints_objections_are_readable(server: LoopbackHosted) -> None:
    error = failure(AGENT, server, request_for(AGENT, user("hello"), temperature=9.0, n=0))

    assert type(error) is RequestRefused
    assert error.http_status == 422
    assert str(error) == (
        "HTTP 422: body.temperature: Input should be between 0 and 2; "
        "body.n: Input should be greater than or equal to 1"
    )


def test_an_older_agent_endpoint_is_asked_to_stream_without_a_count(server: LoopbackHosted) -> None:
    objection = {"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}
    server.fail(Fault(status=422, body={"detail": [objection]}))
    request, told = request_for(AGENT, user("hello")), list[Delta]()
    refused = failure(AGENT, server, request, on_delta=told.append)
    assert isinstance(refused, StreamRefused)
    less = dataclasses.replace(request, streams=refused.instead)
    ask(AGENT, server, less, request, on_delta=told.append)
    assert [(each.body["stream"], "stream_options" in each.body) for each in server.requests] == [
        (True, True),
        (True, False),
        (True, False),
    ]


def test_a_model_that_is_not_the_agents_is_refused(server: LoopbackHosted) -> None:
    error = failure(AGENT, server, request_for(AGENT, user("hello"), hosted={"model": "other"}))

    assert type(error) is RequestRefused
    assert "Unexpected model 'other'" in str(error)


def test_a_session_id_that_is_none_is_the_jobs_fault(server: LoopbackHosted) -> None:
    error = failure(AGENT, server, request_for(AGENT, user("hello"), hosted={"thread_ref": "thread_1"}))

    assert type(error) is RequestRefused
    assert "valid UUID" in str(error)


@pytest.mark.parametrize("agent", ["../../secrets", "a b?c#d", "agent/1"])
def test_an_agents_id_stays_one_segment_of_the_path(agent: str, server: LoopbackHosted) -> None:
    server.agents.add(agent)

    ask(AGENT, server, request_for(AGENT, user("hello"), hosted={"assistant": agent}))

    assert server.requests[-1].path.startswith(f"{AGENT_BASE}/assistants/")
    assert server.requests[-1].query == {}


def test_a_system_message_without_a_user_to_lead_becomes_one(server: LoopbackHosted) -> None:
    ask(AGENT, server, request_for(AGENT, system("be brief"), system("be kind")))

    assert sent(server)["messages"] == [{"role": "user", "content": "be brief\n\nbe kind"}]


def test_a_system_message_leads_the_first_user_message(server: LoopbackHosted) -> None:
    ask(
        AGENT,
        server,
        request_for(AGENT, system("be brief"), Message(role="assistant", content="hi"), user("one"), user("two")),
    )

    contents = [message["content"] for message in sent(server)["messages"]]
    assert contents == ["hi", "be brief\n\none", "two"]


def test_a_system_message_leads_a_user_message_of_parts(server: LoopbackHosted) -> None:
    message = Message(role="user", content=(TextPart(text="hello"),))

    ask(AGENT, server, request_for(AGENT, system("be brief"), message))

    assert sent(server)["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "be brief\n\n"}, {"type": "text", "text": "hello"}]}
    ]
