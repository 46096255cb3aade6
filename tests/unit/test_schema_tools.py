"""Tool calls through a JSON Schema: what a model without tools is asked, and what its JSON is read as."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from schemas.chat import Message, TextPart, ToolCall, Usage
from schemas.tool import NamedToolChoice
from worker.providers.base import ChatReply, ChatRequest
from worker.providers.errors import ReplyMalformed
from worker.providers.fake import FakeProvider
from worker.providers.schema_tools import SchemaTools
from worker.tools.base import ToolDefinition

pytestmark = pytest.mark.anyio

COUNT = ToolDefinition(
    name="count",
    description="Counts words.",
    parameters={"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
)
MOVE = ToolDefinition(
    name="move",
    description="Moves a piece.",
    parameters={
        "type": "object",
        "properties": {"to": {"$ref": "#/$defs/square"}},
        "required": ["to"],
        "$defs": {"square": {"type": "string", "pattern": "^[a-h][1-8]$"}},
    },
)
ANSWER = '{"answer": "Two."}'
CALL = ToolCall(id="c1", name="count", arguments='{"text": "a b"}')
USER = Message(role="user", content="How many?")
CALLED = Message(role="assistant", tool_calls=(CALL,))
TOOL_ANSWER = Message(role="tool", content='{"words":2}', tool_call_id="c1", name="count")


def asking(*messages: Message, tools: tuple[ToolDefinition, ...] = (COUNT,), **fields: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=messages or (USER,), tools=tools, step_id="job.0", **fields)


def reply(content: str, **fields: Any) -> ChatReply:
    known = {"finish_reason": "stop", "model": "m", "usage": Usage(prompt_tokens=5, completion_tokens=3)}
    return ChatReply(content=content, **{**known, **fields})


async def sent(request: ChatRequest, content: str = ANSWER) -> ChatRequest:
    """Return what the provider is asked."""
    provider = FakeProvider([reply(content)])
    await SchemaTools(provider).complete(request)
    return provider.requests[0]


async def allows(request: ChatRequest, value: Any) -> bool:
    """Return whether the schema of the provider's request lets the model write this."""
    schema = (await sent(request)).response_schema
    assert schema is not None
    return jsonschema_rs.validator_for(schema).is_valid(value)


async def read(content: str, request: ChatRequest | None = None, **fields: Any) -> ChatReply:
    """Return what a reply of the model is read as."""
    return await SchemaTools(FakeProvider([reply(content, **fields)])).complete(request or asking())


class TestRequest:
    async def test_the_provider_hears_of_the_tools_by_words_and_schema_only(self) -> None:
        request = await sent(asking(tool_choice="auto", parallel_tool_calls=True, temperature=0.5))

        assert (request.tools, request.tool_choice, request.parallel_tool_calls) == ((), None, None)
        assert request.messages[0].role == "system"
        assert "- count: Counts words." in request.messages[0].text
        assert request.messages[1:] == (USER,)
        assert request.temperature == 0.5

    async def test_a_model_may_call_or_answer(self) -> None:
        assert await allows(asking(), {"tool": "count", "arguments": {"text": "a b"}})
        assert await allows(asking(), {"answer": "Two."})

    @pytest.mark.parametrize(
        "value",
        [
            {"tool": "other", "arguments": {"text": "a"}},
            {"tool": "count", "arguments": {}},
            {"tool": "count", "arguments": {"text": "a"}, "answer": "Two."},
            {"tool": "count"},
            {"answer": 2},
            {},
            "Two.",
        ],
    )
    async def test_nothing_else_fits_the_schema(self, value: Any) -> None:
        assert not await allows(asking(), value)

    async def test_with_tool_choice_required_a_call_comes_before_the_answer(self) -> None:
        assert not await allows(asking(tool_choice="required"), {"answer": "Two."})
        assert await allows(asking(USER, CALLED, TOOL_ANSWER, tool_choice="required"), {"answer": "Two."})

    async def test_a_call_of_an_earlier_turn_is_not_the_required_one(self) -> None:
        earlier = (USER, CALLED, TOOL_ANSWER, Message(role="assistant", content="Two."))

        assert not await allows(asking(*earlier, USER, tool_choice="required"), {"answer": "Two."})

    async def test_a_named_tool_is_the_only_one_that_may_be_called(self) -> None:
        choice = NamedToolChoice.model_validate({"type": "function", "function": {"name": "move"}})
        request = asking(tools=(COUNT, MOVE), tool_choice=choice)

        assert await allows(request, {"tool": "move", "arguments": {"to": "e4"}})
        assert not await allows(request, {"tool": "count", "arguments": {"text": "a"}})
        assert not await allows(request, {"answer": "Two."})

    async def test_references_within_the_schemas_still_lead_to_their_targets(self) -> None:
        request = asking(tools=(COUNT, MOVE), response_schema=MOVE.parameters)

        assert await allows(request, {"tool": "move", "arguments": {"to": "e4"}})
        assert not await allows(request, {"tool": "move", "arguments": {"to": "z9"}})
        assert await allows(request, {"answer": {"to": "e4"}})
        assert not await allows(request, {"answer": {"to": "z9"}})

    async def test_a_schema_that_refers_to_itself_stays_recursive(self) -> None:
        tree = {"type": "object", "properties": {"child": {"$ref": "#"}, "size": {"type": "integer"}}}
        request = asking(response_schema=tree)

        assert await allows(request, {"answer": {"child": {"child": {"size": 1}}}})
        assert not await allows(request, {"answer": {"child": {"child": {"size": "one"}}}})

    @pytest.mark.parametrize(
        ("response_format", "right", "wrong"),
        [
            ({"type": "json_object"}, {"any": 1}, "text"),
            ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}, 2, "text"),
            ({"type": "text"}, "text", {"any": 1}),
        ],
    )
    async def test_the_form_that_a_job_asks_for_is_the_answers(
        self, response_format: dict[str, Any], right: Any, wrong: Any
    ) -> None:
        request = asking(response_format=response_format)

        assert (await sent(request)).response_format is None
        assert await allows(request, {"answer": right})
        assert not await allows(request, {"answer": wrong})

    @pytest.mark.parametrize("fields", [{"tools": ()}, {"tool_choice": "none"}])
    async def test_without_tools_to_call_the_request_keeps_its_own_form(self, fields: dict[str, Any]) -> None:
        schema = {"type": "object"}
        request = await sent(asking(USER, response_schema=schema, **fields))

        assert request == ChatRequest(model="m", messages=(USER,), response_schema=schema, step_id="job.0")

    @pytest.mark.parametrize("tools", [(), (COUNT,)])
    async def test_calls_and_their_answers_are_shown_as_text(self, tools: tuple[ToolDefinition, ...]) -> None:
        request = await sent(asking(USER, CALLED, TOOL_ANSWER, tools=tools))

        assert request.messages[-3:] == (
            USER,
            Message(role="assistant", content='{"tool": "count", "arguments": {"text": "a b"}}'),
            Message(role="user", content='count says: {"words":2}'),
        )

    async def test_of_a_message_with_text_and_two_calls_nothing_is_lost(self) -> None:
        said = Message(role="assistant", content="Let me see.", tool_calls=(CALL, CALL))
        request = await sent(asking(USER, said, TOOL_ANSWER, TOOL_ANSWER))

        shown = '{"tool": "count", "arguments": {"text": "a b"}}'
        assert request.messages[-3].content == f"Let me see.\n{shown}\n{shown}"

    @pytest.mark.parametrize("content", ["Be brief.", (TextPart(text="Be brief."),)])
    async def test_instructions_and_the_word_on_tools_are_one_system_message(self, content: Any) -> None:
        request = await sent(asking(Message(role="system", content=content), USER))

        assert [message.role for message in request.messages] == ["system", "user"]
        assert request.messages[0].text.startswith("Be brief.\n\nTo use a tool")


class TestReply:
    async def test_a_call_is_a_tool_call(self) -> None:
        got = await read('{"tool": "count", "arguments": {"text": "naïve café"}}')

        call = ToolCall(id="call_job.0", name="count", arguments='{"text": "naïve café"}')
        assert (got.content, got.tool_calls, got.finish_reason) == ("", (call,), "tool_calls")
        assert got.usage == Usage(prompt_tokens=5, completion_tokens=3)

    async def test_calls_of_two_steps_have_different_ids(self) -> None:
        text = '{"tool": "count", "arguments": {}}'
        provider = SchemaTools(FakeProvider([reply(text), reply(text)]))
        ids = [(await provider.complete(ChatRequest("m", (USER,), tools=(COUNT,)))).tool_calls[0].id for _ in range(2)]

        assert ids[0] != ids[1]

    async def test_an_answer_is_its_text(self) -> None:
        got = await read('{"answer": "Two \\"words\\"."}')

        assert (got.content, got.tool_calls, got.finish_reason) == ('Two "words".', (), "stop")

    async def test_an_answer_of_a_schema_is_its_json(self) -> None:
        got = await read('{"answer": {"city": "Zürich"}}', asking(response_schema={"type": "object"}))

        assert got.content == '{"city": "Zürich"}'

    async def test_each_further_choice_is_its_text_too(self) -> None:
        got = await read(ANSWER, alternatives=('{"answer": "2"}', "two", '{"tool": "count", "arguments": {}}'))

        assert got.alternatives == ("2", "two", '{"tool": "count", "arguments": {}}')

    async def test_half_a_character_does_no_harm(self) -> None:
        assert (await read('{"answer": "a\\ud83d"}')).content == "a\N{REPLACEMENT CHARACTER}"

    @pytest.mark.parametrize("fields", [{"refusal": "I will not."}, {"finish_reason": "content_filter"}])
    async def test_a_refusal_stays_one(self, fields: dict[str, Any]) -> None:
        assert await read("", **fields) == reply("", **fields)

    @pytest.mark.parametrize("content", ["Two.", "", '{"answer": ', "[" * 100_000])
    async def test_what_is_no_json_is_a_malformed_reply(self, content: str) -> None:
        with pytest.raises(ReplyMalformed, match="neither a tool call nor an answer"):
            await read(content)


class TestReplyThatWasCutOff:
    async def test_an_answer_is_what_there_is_of_its_text(self) -> None:
        got = await read('{"answer": "Two wo', finish_reason="length")

        assert (got.content, got.finish_reason) == ("Two wo", "length")

    async def test_before_the_answer_began_there_is_no_text(self) -> None:
        assert (await read('{"ans', finish_reason="length")).content == ""

    @pytest.mark.parametrize(
        "content", ['{"tool": "count", "arguments": {"text": "a', '{"tool": "count", "argu', '{"tool": "count"']
    )
    async def test_half_a_call_has_arguments_that_cannot_be_used(self, content: str) -> None:
        (call,) = (await read(content, finish_reason="length")).tool_calls

        assert call.name == "count"
        with pytest.raises(json.JSONDecodeError):
            json.loads(call.arguments)

    async def test_a_call_that_only_lacks_its_end_is_whole(self) -> None:
        (call,) = (await read('{"tool": "count", "arguments": {"text": "a b"}', finish_reason="length")).tool_calls

        assert call == ToolCall(id="call_job.0", name="count", arguments='{"text": "a b"}')

    @pytest.mark.parametrize("content", ['{"answer": {"city": "Zür', '{"answer": {"size": 12', "Tw", ""])
    async def test_half_of_anything_else_is_left_as_it_is(self, content: str) -> None:
        assert (await read(content, finish_reason="length")) == reply(content, finish_reason="length")
