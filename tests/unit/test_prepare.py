"""From a job and its assistant to the request that is sent, or to why there is none."""

from __future__ import annotations

from typing import Any

import pytest

from schemas import JobRecord, Message, OutputSpec, Rejection, TemplateMessage
from schemas.lane import Lane
from schemas.outcome import Code, Failed
from tests.given import a_config, a_job, user
from worker.flow.output import wire_schema
from worker.flow.prepare import Prepared, prepare
from worker.providers.base import ChatRequest
from worker.store.base import JobContext, StoredAssistant

LABEL = OutputSpec(type="enum", enum=("a", "b"))


def prepared(
    *,
    config: dict[str, Any] | None = None,
    history: tuple[Message, ...] = (),
    default_model: str | None = None,
    **job: Any,
) -> Prepared | Failed:
    record = JobRecord(id="j", job=a_job("j", **job))
    assistant = StoredAssistant(config=a_config(**(config or {})), version=3)
    context = JobContext(settled=None, assistant=assistant, history=history)
    return prepare(record, context, provider_name="example.com", default_model=default_model)


def request_of(**fields: Any) -> ChatRequest:
    ready = prepared(**fields)
    assert isinstance(ready, Prepared)
    return ready.request


def refused(**fields: Any) -> Failed:
    outcome = prepared(**fields)
    assert isinstance(outcome, Failed)
    return outcome


class TestMessages:
    def test_instructions_template_thread_and_messages_come_in_this_order(self) -> None:
        request = request_of(
            config={
                "instructions": "Label {{ review }}.",
                "template": (
                    TemplateMessage(role="user", content="bad"),
                    TemplateMessage(role="assistant", content="negative"),
                    TemplateMessage(role="user", content="{{ review }}"),
                ),
            },
            history=(user("earlier"), Message(role="assistant", content="answer")),
            messages=(user("now"),),
        )
        assert [(message.role, message.content) for message in request.messages] == [
            ("system", "Label good."),
            ("user", "bad"),
            ("assistant", "negative"),
            ("user", "good"),
            ("user", "earlier"),
            ("assistant", "answer"),
            ("user", "now"),
        ]

    def test_messages_of_the_thread_and_the_job_are_not_rendered(self) -> None:
        request = request_of(history=(user("{{ review }} {{"),), messages=(user("{{ nobody }}"),))
        assert [message.content for message in request.messages] == [
            "Review: good",
            "{{ review }} {{",
            "{{ nobody }}",
        ]

    def test_a_variables_value_is_not_rendered(self) -> None:
        request = request_of(variables={"review": "{{ secret }}", "secret": "S3CRET"})
        assert request.messages[0].content == "Review: {{ secret }}"


class TestParameters:
    def test_what_the_assistant_says_is_asked_for(self) -> None:
        fields = {"temperature": 0.0, "top_p": 0.5, "max_tokens": 8, "seed": 7, "stop": ("x",)}
        request = request_of(config=fields)
        assert {name: getattr(request, name) for name in fields} == fields

    def test_what_it_does_not_say_is_left_to_the_provider(self) -> None:
        request = request_of()
        for name in ("temperature", "top_p", "max_tokens", "seed", "stop", "response_schema"):
            assert getattr(request, name) is None

    def test_its_model_goes_before_the_installations(self) -> None:
        assert request_of(default_model="default").model == "m1"
        assert request_of(config={"model": None}, default_model="default").model == "default"

    def test_its_lane_is_workspace_provider_and_model(self) -> None:
        ready = prepared()
        assert isinstance(ready, Prepared)
        assert ready.lane == Lane(workspace="acme", provider="example.com", model="m1")

    def test_the_jobs_output_spec_replaces_the_assistants(self) -> None:
        assert request_of(config={"output": LABEL}).response_schema == wire_schema(LABEL)
        array = OutputSpec(type="array")
        assert request_of(config={"output": LABEL}, output=array).response_schema == wire_schema(array)


class TestRefusals:
    def test_a_missing_variable_is_named(self) -> None:
        outcome = refused(variables={})
        assert outcome.code is Code.MISSING_VARIABLE
        assert "'review'" in outcome.error

    def test_a_missing_variable_is_empty_where_the_assistant_says_so(self) -> None:
        assert request_of(config={"strict_variables": False}, variables={}).messages[0].content == "Review: "

    def test_a_template_that_cannot_be_rendered_is_told(self) -> None:
        assert refused(config={"instructions": "{{> partial}}"}).code is Code.BAD_TEMPLATE

    def test_no_model_at_all_says_where_to_name_one(self) -> None:
        outcome = refused(config={"model": None})
        assert outcome.code is Code.MODEL_UNKNOWN
        assert "ASSISTQ_MODEL" in outcome.error

    def test_instructions_alone_are_nothing_to_send(self) -> None:
        config = {"instructions": "Label it.", "template": ()}
        assert refused(config=config).code is Code.NOTHING_TO_SEND
        assert request_of(config=config, messages=(user("x"),)).messages[1].content == "x"
        assert request_of(config=config, history=(user("x"),)).messages[1].content == "x"

    @pytest.mark.parametrize(
        ("fields", "words"), [({"environment": "staging"}, "environment 'staging'"), ({"version": 9}, "version 9")]
    )
    def test_an_unknown_assistant_is_named_with_what_was_wanted(self, fields: dict[str, Any], words: str) -> None:
        record = JobRecord(id="j", job=a_job("j", **fields))
        context = JobContext(settled=None, assistant=None, history=())
        outcome = prepare(record, context, provider_name="p", default_model=None)
        assert isinstance(outcome, Failed)
        assert outcome.code is Code.ASSISTANT_UNKNOWN
        assert words in outcome.error
        assert "acme/reviews/sentiment" in outcome.error

    def test_a_rejected_row_keeps_its_reason_whatever_else_is_wrong(self) -> None:
        record = JobRecord(id="j", job=a_job("j"), rejection=Rejection(code=Code.BAD_ROW, error="2 columns, not 3"))
        context = JobContext(settled=None, assistant=None, history=())
        outcome = prepare(record, context, provider_name="p", default_model=None)
        assert outcome == Failed(code=Code.BAD_ROW, error="2 columns, not 3")
