"""What is told of a reply while it comes, by a provider that is asked to stream it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from schemas.chat import Message, Usage
from tests.loopback_provider import LoopbackProvider, Reply, answers, chunk, hang_up, status, streams
from worker.providers.base import CallDelta, ChatReply, ChatRequest, Delta, TextDelta
from worker.providers.errors import ContentFiltered, ProviderError, RequestRefused, StreamRefused
from worker.providers.openai_compatible import OpenAICompatible, http_client
from worker.providers.schema_tools import SchemaTools
from worker.tools.base import ToolDefinition

pytestmark = pytest.mark.anyio

ASKED = ChatRequest(model="m1", messages=(Message(role="user", content="Hi"),))
COUNTED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackProvider]:
    with LoopbackProvider() as provider:
        yield provider


@pytest.fixture
async def provider(server: LoopbackProvider) -> AsyncIterator[OpenAICompatible]:
    server._queued.clear()
    async with http_client(connections=8, timeout_s=10) as client:
        yield OpenAICompatible(client, base_url=server.base_url, api_key=None)


@pytest.fixture
def told() -> list[Delta]:
    return []


def refused(words: str) -> Reply:
    return status(400, {"error": {"message": words, "type": "invalid_request_error"}})


def how_asked(server: LoopbackProvider, last: int) -> list[dict[str, Any]]:
    """Return what the last requests said of streaming."""
    said = [request.body for request in server.requests[-last:]]
    return [{key: body[key] for key in ("stream", "stream_options") if key in body} for body in said]


async def asked_for_less(provider: OpenAICompatible, asked: ChatRequest, told: list[Delta]) -> ChatReply:
    """Ask until the server does not refuse to stream so."""
    while True:
        try:
            return await provider.complete(asked, on_delta=told.append)
        except StreamRefused as refusal:
            asked = replace(asked, streams=refusal.instead)


async def test_each_text_is_told_and_the_reply_is_whole_and_counted(
    provider: OpenAICompatible, server: LoopbackProvider, told: list[Delta]
) -> None:
    server.queue(streams("Hel", "lo", usage=(7, 3)))
    reply = await provider.complete(ASKED, on_delta=told.append)
    assert told == [TextDelta("Hel"), TextDelta("lo")]
    assert (reply.content, reply.usage) == ("Hello", Usage(prompt_tokens=7, completion_tokens=3))
    assert how_asked(server, 1) == [COUNTED]


async def test_who_does_not_listen_asks_for_no_stream(provider: OpenAICompatible, server: LoopbackProvider) -> None:
    server.queue(answers("Hello"))
    await provider.complete(ASKED)
    assert how_asked(server, 1) == [{}]


@pytest.mark.parametrize(
    ("refusals", "then"),
    [
        (["Unrecognized request argument supplied: stream_options"], {"stream": True}),
        (["stream_options: Extra inputs are not permitted", "Streaming is not supported"], {}),
        (["this model does not support streaming"], {}),
    ],
    ids=["no count", "no count, no stream", "no stream"],
)
async def test_a_server_that_refuses_to_stream_may_be_asked_for_less_and_is_not_asked_for_more_again(
    provider: OpenAICompatible,
    server: LoopbackProvider,
    told: list[Delta],
    refusals: list[str],
    then: dict[str, Any],
) -> None:
    server.queue(*map(refused, refusals), answers("Hello"), answers("Again"), streams("Hi"))
    assert (await asked_for_less(provider, ASKED, told)).content == "Hello"
    assert (await provider.complete(ASKED, on_delta=told.append)).content == "Again"
    assert told == []
    assert how_asked(server, 2) == [then, then]
    # Another model of the same server may be able to.
    await provider.complete(replace(ASKED, model="m2"), on_delta=told.append)
    assert how_asked(server, 1) == [COUNTED]


async def test_one_call_sends_one_request_whatever_is_refused(
    provider: OpenAICompatible, server: LoopbackProvider, told: list[Delta]
) -> None:
    elsewhere = {"location": f"{server.base_url}/chat/completions"}
    for reply in (refused("stream_options is unknown"), status(307, headers=elsewhere), hang_up()):
        server.queue(reply)
        before = server.count
        with pytest.raises(ProviderError):
            await provider.complete(ASKED, on_delta=told.append)
        assert server.count == before + 1


async def test_each_way_to_ask_has_an_idempotency_key_of_its_own(
    provider: OpenAICompatible, server: LoopbackProvider, told: list[Delta]
) -> None:
    server.queue(refused("Unrecognized request argument supplied: stream_options"), answers("Hello"), answers("Again"))
    asked = replace(ASKED, step_id="j.0")
    await asked_for_less(provider, asked, told)
    await provider.complete(asked)
    keys = [request.headers["idempotency-key"] for request in server.requests[-3:]]
    assert keys == ["j.0", "j.0.uncounted", "j.0"]


async def test_a_refusal_that_only_speaks_of_streams_changes_nothing_for_the_next(
    provider: OpenAICompatible, server: LoopbackProvider, told: list[Delta]
) -> None:
    server.queue(refused("no: 'by the stream'"), refused("no: 'by the stream'"), streams("Hello"))
    with pytest.raises(RequestRefused) as last:
        await asked_for_less(provider, ASKED, told)
    assert not isinstance(last.value, StreamRefused)
    await provider.complete(ASKED, on_delta=told.append)
    assert how_asked(server, 1) == [COUNTED]


async def test_what_is_refused_in_the_middle_is_not_asked_again(
    provider: OpenAICompatible, server: LoopbackProvider, told: list[Delta]
) -> None:
    error = {"error": {"message": "the stream was filtered", "code": "content_filter"}}
    server.queue(Reply(events=(chunk("Hel"), error, "[DONE]")))
    before = server.count
    with pytest.raises(ContentFiltered):
        await provider.complete(ASKED, on_delta=told.append)
    assert (told, server.count) == ([TextDelta("Hel")], before + 1)


async def test_calls_are_told_once_they_have_a_name_and_an_id(
    provider: OpenAICompatible, server: LoopbackProvider, told: list[Delta]
) -> None:
    def piece(**call: Any) -> dict[str, Any]:
        return chunk(tool_calls=[call])

    server.queue(
        Reply(
            events=(
                piece(index=0, id="c1", function={"name": "look", "arguments": ""}),
                piece(index=0, function={"arguments": '{"q": '}),
                # A second with the first one's id, and a third without any, get ids of their own.
                piece(index=1, id="c1", function={"name": "look", "arguments": "{}"}),
                piece(index=2, function={"name": "look", "arguments": "{}"}),
                piece(index=0, function={"arguments": "1}"}),
                chunk(finish_reason="tool_calls"),
                "[DONE]",
            )
        )
    )
    reply = await provider.complete(ASKED, on_delta=told.append)
    assert told == [
        CallDelta(0, id="c1", name="look"),
        CallDelta(0, arguments='{"q": '),
        CallDelta(0, arguments="1}"),
    ]
    assert [call.arguments for call in reply.tool_calls] == ['{"q": 1}', "{}", "{}"]


async def test_a_character_that_comes_in_halves_is_told_whole(
    provider: OpenAICompatible, server: LoopbackProvider, told: list[Delta]
) -> None:
    halves = json.dumps("😀")[1:-1]
    events = [json.dumps(chunk("X")).replace("X", text) for text in (f"a{halves[:6]}", f"{halves[6:]}b")]
    server.queue(Reply(events=(*events, chunk(finish_reason="stop"), "[DONE]")))
    reply = await provider.complete(ASKED, on_delta=told.append)
    assert told == [TextDelta("a"), TextDelta("😀b")]
    assert reply.content == "a😀b"


async def test_of_a_model_whose_tools_are_asked_for_as_json_that_json_is_not_told(
    provider: OpenAICompatible, server: LoopbackProvider, told: list[Delta]
) -> None:
    tool = ToolDefinition(name="look", description="Look.", parameters={"type": "object"})
    server.queue(answers('{"answer": "Hello"}'), streams("Hello"))
    by_schema = SchemaTools(provider)
    with_tools = ChatRequest(model="m1", messages=ASKED.messages, tools=(tool,))
    assert (await by_schema.complete(with_tools, on_delta=told.append)).content == "Hello"
    assert told == []
    await by_schema.complete(ASKED, on_delta=told.append)
    assert told == [TextDelta("Hello")]
