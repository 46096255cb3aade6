"""From a job and its assistant to the request that is sent, or to why there is none."""

from __future__ import annotations

from typing import Any

import pytest

from schemas import JobRecord, Message, OutputSpec, Rejection, TemplateMessage
from schemas.outcome import Code, Failed
from tests.given import a_config, a_job, no_tools, user
from worker.flow.history import Turn
from worker.flow.moves import Ask
from worker.flow.output import wire_schema
from worker.flow.prepare import Prepared, prepare
from worker.flow.request import request_of as flow_request_of
from worker.providers.base import ChatRequest
from worker.store.base import JobContext, StoredAssistant

# What `prepared` is given besides the job's own fields.
OF_NO_JOB = ("config", "history", "default_model")
LABEL = OutputSpec(type="enum", enum=("a", "b"))


def a_record(**job: Any) -> JobRecord:
    return JobRecord(id="j", job=a_job("j", **job))


def prepared(
    *,
    config: dict[str, Any] | None = None,
    history: tuple[Turn, ...] = (),
    default_model: str | None = None,
    **job: Any,
) -> Prepared | Failed:
    record = a_record(**job)
    assistant = StoredAssistant(config=a_config(**(config or {})), version=3)
    context = JobContext(settled=None, assistant=assistant, history=history)
    return prepare(record, context, default_model=default_model)


def ready(**fields: Any) -> Prepared:
    outcome = prepared(**fields)
    assert isinstance(outcome, Prepared)
    return outcome


def request_of(**fields: Any) -> ChatRequest:
    """Return the first request of a job without tools."""
    record = a_record(**{name: value for name, value in fields.items() if name not in OF_NO_JOB})
    ask = Ask(messages=(), new_messages=())
    return flow_request_of(
        record, ready(**fields), ask, no_tools(), structured="native", step_id="j.0", thread_ref=None
    )


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
            history=(
                (user("earlier"), Message(role="assistant", content="answer")),
                (user("later"), Message(role="assistant", content="another")),
            ),
            messages=(user("now"),),
        )
        assert [(message.role, message.content) for message in request.messages] == [
            ("system", "Label good."),
            ("user", "bad"),
            ("assistant", "negative"),
            ("user", "good"),
            ("user", "earlier"),
            ("assistant", "answer"),
            ("user", "later"),
            ("assistant", "another"),
            ("user", "now"),
        ]

    def test_messages_of_the_thread_and_the_job_are_not_rendered(self) -> None:
        request = request_of(history=((user("{{ review }} {{"),),), messages=(user("{{ nobody }}"),))
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
        names = ("temperature", "top_p", "max_tokens", "seed", "stop", "response_schema", "response_format", "n")
        for name in (*names, "presence_penalty", "frequency_penalty", "tool_choice", "parallel_tool_calls", "user"):
            assert getattr(request, name) is None

    def test_its_model_goes_before_the_installations(self) -> None:
        assert request_of(default_model="default").model == "m1"
        assert request_of(config={"model": None}, default_model="default").model == "default"

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
        assert refused(config={"instructions": "{{shout review}}"}).code is Code.BAD_TEMPLATE

    def test_no_model_at_all_says_where_to_name_one(self) -> None:
        outcome = refused(config={"model": None})
        assert outcome.code is Code.MODEL_UNKNOWN
        assert "ASSISTQ_MODEL" in outcome.error

    def test_instructions_alone_are_nothing_to_send(self) -> None:
        config = {"instructions": "Label it.", "template": ()}
        assert refused(config=config).code is Code.NOTHING_TO_SEND
        assert request_of(config=config, messages=(user("x"),)).messages[1].content == "x"
        assert request_of(config=config, history=((user("x"),),)).messages[1].content == "x"

    @pytest.mark.parametrize(
        ("fields", "words"), [({"environment": "staging"}, "environment 'staging'"), ({"version": 9}, "version 9")]
    )
    def test_an_unknown_assistant_is_named_with_what_was_wanted(self, fields: dict[str, Any], words: str) -> None:
        record = JobRecord(id="j", job=a_job("j", **fields))
        context = JobContext(settled=None, assistant=None, history=())
        outcome = prepare(record, context, default_model=None)
        assert isinstance(outcome, Failed)
        assert outcome.code is Code.ASSISTANT_UNKNOWN
        assert words in outcome.error
        assert "acme/reviews/sentiment" in outcome.error

    def test_a_rejected_row_keeps_its_reason_whatever_else_is_wrong(self) -> None:
        record = JobRecord(id="j", job=a_job("j"), rejection=Rejection(code=Code.BAD_ROW, error="2 columns, not 3"))
        context = JobContext(settled=None, assistant=None, history=())
        outcome = prepare(record, context, default_model=None)
        assert outcome == Failed(code=Code.BAD_ROW, error="2 columns, not 3")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_choice_that_forces_calls_is_relaxed_once_a_tool_has_answered(choice: Any) -> None:
    def sent(*messages: Message) -> Any:
        ask = Ask(messages=messages, new_messages=messages)
        job = ready(tool_choice=choice)
        return flow_request_of(
            a_record(), job, ask, no_tools(), structured="native", step_id="j.0", thread_ref=None
        ).tool_choice

    assert sent() == ready(tool_choice=choice).parameters.tool_choice != "auto"
    assert sent(Message(role="tool", content="seen", tool_call_id="c1")) == "auto"
