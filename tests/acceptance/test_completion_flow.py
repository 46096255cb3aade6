"""The completion flow on the real worker: what is sent, structured output and its repair, and what is charged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas import InlineAssistant, InvokeJob
from schemas.outcome import Status
from tests.at_work import Scene, completion, said
from tests.loopback_provider import Reply, answers, status

CAT = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "legs": {"type": "integer", "minimum": 3}},
    "required": ["name", "legs"],
    "additionalProperties": False,
}
A_CAT = {"name": "Tom", "legs": 4}
NOT_SUPPORTED = status(
    400, {"error": {"message": "response_format is not supported by this model", "param": "response_format"}}
)


def in_result(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the object in which a value travels that is none itself."""
    return {
        "type": "object",
        "properties": {"result": schema},
        "required": ["result"],
        "additionalProperties": False,
    }


OUTPUTS = [
    ({"type": "object", "schema": CAT}, CAT, A_CAT, A_CAT),
    ({"type": "object"}, {"type": "object"}, {"any": [1, None]}, {"any": [1, None]}),
    (
        {"type": "array", "schema": CAT},
        in_result({"type": "array", "items": CAT}),
        {"result": [A_CAT, A_CAT]},
        [A_CAT, A_CAT],
    ),
    ({"type": "array"}, in_result({"type": "array", "items": {}}), {"result": []}, []),
    (
        {"type": "enum", "enum": ["good", "bad"]},
        in_result({"type": "string", "enum": ["good", "bad"]}),
        {"result": "bad"},
        "bad",
    ),
]
KINDS = ["object with a schema", "object", "array with a schema", "array", "enum"]


@pytest.mark.parametrize(("spec", "schema", "reply", "output"), OUTPUTS, ids=KINDS)
def test_an_output_is_asked_for_natively_and_validated(
    scene: Scene, spec: dict[str, Any], schema: dict[str, Any], reply: Any, output: Any
) -> None:
    scene.assistant(output=spec)
    scene.replies(completion(json.dumps(reply)))
    result = scene.succeeds("a cat")
    assert result.output == output
    assert scene.works.row(result.job_id).output == output
    (body,) = scene.asked
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "output", "strict": True, "schema": schema},
    }
    assert said(body) == [("system", "Help."), ("user", "a cat")]


@pytest.mark.parametrize(("spec", "schema", "reply", "output"), OUTPUTS, ids=KINDS)
def test_a_provider_that_refuses_response_format_is_asked_by_instruction_within_the_same_attempt(
    scene: Scene, spec: dict[str, Any], schema: dict[str, Any], reply: Any, output: Any
) -> None:
    scene.assistant(output=spec)
    scene.plays(lambda body, _: NOT_SUPPORTED if "response_format" in body else completion(json.dumps(reply)))
    result = scene.succeeds("a cat")
    assert (result.output, result.attempts, result.requests) == (output, 1, 1)
    refused, instructed = scene.asked
    assert refused["response_format"]["json_schema"]["schema"] == schema
    *prompt, (role, instruction) = said(instructed)
    assert prompt == [("system", "Help."), ("user", "a cat")]
    assert role == "system"
    assert json.dumps(schema, ensure_ascii=False) in instruction


def test_an_assistant_can_say_how_an_output_is_asked_for(scene: Scene) -> None:
    scene.assistant(output={"type": "enum", "enum": ["yes", "no"]}, structured_output="instructed")
    # Not every model keeps to the object in which the value travels, nor to JSON alone.
    scene.replies(completion("yes"), completion('```json\n{"result": "no"}\n```'))
    assert scene.succeeds("ok?").output == "yes"
    assert scene.succeeds("ok?").output == "no"
    assert not [body for body in scene.asked if "response_format" in body]

    scene.assistant(output={"type": "enum", "enum": ["yes", "no"]}, structured_output="native")
    scene.replies(NOT_SUPPORTED)
    result = scene.run("ok?")
    assert (result.status, result.error_code) == ("failed", "request_refused")
    assert "response_format is not supported" in (result.error or "")


def test_an_output_is_repaired_by_showing_the_model_its_error_and_the_job_is_charged_for_all(scene: Scene) -> None:
    scene.assistant(output={"type": "object", "schema": CAT})
    too_few = json.dumps({**A_CAT, "legs": 2})
    scene.replies(
        completion("A cat, of course!", usage=(10, 1)),
        completion(too_few, usage=(20, 2)),
        completion(json.dumps(A_CAT), usage=(30, 3)),
    )
    result = scene.succeeds("a cat", thread_id="repaired")
    assert (result.output, result.attempts, result.requests) == (A_CAT, 1, 3)
    assert (result.prompt_tokens, result.completion_tokens) == (60, 6)
    row = scene.works.row(result.job_id)
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (3, 60, 6)
    first, second, third = map(said, scene.asked)
    assert second[: len(first)] == first
    assert second[len(first)] == ("assistant", "A cat, of course!")
    assert "the reply is not JSON" in second[-1][1]
    assert third[: len(second)] == second
    assert third[len(second)] == ("assistant", too_few)
    assert "less than the minimum of 3 at /legs" in third[-1][1]
    # The repair is nobody's business later on.
    assert scene.turns("repaired") == [("user", "a cat"), ("assistant", json.dumps(A_CAT))]


@pytest.mark.parametrize("repairs", [0, 1, 2])
def test_an_output_that_is_not_repaired_within_max_repairs_is_invalid_and_its_last_reply_is_kept(
    scene: Scene, repairs: int
) -> None:
    scene.assistant(output={"type": "array", "schema": CAT}, max_repairs=repairs)
    scene.replies(*(completion(json.dumps([{"name": str(n), "legs": 0}]), usage=(10, 5)) for n in range(repairs + 1)))
    result = scene.run("cats", thread_id="invalid")
    assert result.status is Status.INVALID_OUTPUT
    assert (result.error_code, result.requests, result.output) == ("output_not_valid", repairs + 1, None)
    assert "minimum of 3 at /0/legs" in (result.error or "")
    assert result.raw_reply == json.dumps([{"name": str(repairs), "legs": 0}])
    assert (result.prompt_tokens, result.completion_tokens) == (10 * (repairs + 1), 5 * (repairs + 1))
    row = scene.works.row(result.job_id)
    assert (row.status, row.raw_reply) == ("invalid_output", result.raw_reply)
    assert not scene.has_thread("invalid")


def test_an_output_that_is_no_json_to_the_end_has_a_code_of_its_own(scene: Scene) -> None:
    scene.assistant(output={"type": "object"}, max_repairs=1)
    scene.plays(lambda *_: completion("no"))
    result = scene.run("go")
    assert (result.status, result.error_code, result.raw_reply) == ("invalid_output", "output_not_json", "no")
    assert result.requests == 2


def test_an_output_that_was_cut_off_is_not_asked_for_again(scene: Scene) -> None:
    scene.assistant(output={"type": "object"}, max_tokens=4)
    scene.replies(completion('{"a": "b', finish_reason="length"))
    result = scene.run("go")
    assert (result.status, result.error_code, result.requests) == ("invalid_output", "output_cut_off", 1)
    assert result.raw_reply == '{"a": "b'


def test_an_output_follows_the_tools(scene: Scene) -> None:
    scene.assistant(
        output={"type": "object", "schema": CAT}, tools=[{"type": "python", "name": "word_count"}], max_steps=4
    )
    scene.replies(
        completion(calls=[("c1", "word_count", {"text": "a b"})]),
        completion("nearly"),
        completion(calls=[("c2", "word_count", {"text": "a"})]),
        completion(json.dumps(A_CAT)),
    )
    result = scene.succeeds("go", thread_id="t")
    assert (result.output, result.requests) == (A_CAT, 4)
    # The tools stay in the thread, with their answers; the answer that was mended does not.
    assert [message.role for message in scene.thread("t")] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]


def test_instructions_and_template_are_rendered_and_what_people_say_is_not(scene: Scene) -> None:
    scene.assistant(
        instructions="You serve {{ who }}.",
        template=[{"role": "user", "content": "{{#if polite}}Please: {{/if}}{{ ask }}"}],
        variables={"who": "nobody", "polite": "yes"},
    )
    scene.plays(lambda *_: answers("{{ who }}"))
    first = scene.succeeds("{{ literally }}", variables={"who": "Ann", "ask": "{{ who }}"})
    expected = [("system", "You serve Ann."), ("user", "Please: {{ who }}"), ("user", "{{ literally }}")]
    assert said(scene.asked[0]) == expected
    scene.succeeds("again", thread_id=first.thread_id, variables={"ask": "x"})
    # Order: instructions and template, the thread, the messages.
    assert said(scene.asked[1]) == [
        ("system", "You serve nobody."),
        ("user", "Please: x"),
        ("user", "{{ literally }}"),
        ("assistant", "{{ who }}"),
        ("user", "again"),
    ]


def test_a_variable_that_nobody_gives_fails_the_job_before_anything_is_paid_for_or_is_empty_if_not_strict(
    scene: Scene,
) -> None:
    scene.assistant(template=[{"role": "user", "content": "Hello, {{ name }}!"}])
    result = scene.run()
    assert (result.status, result.error_code, result.requests) == ("failed", "missing_variable", 0)
    assert "'name'" in (result.error or "")
    assert scene.asked == []
    scene.assistant(template=[{"role": "user", "content": "Hello, {{ name }}!"}], strict_variables=False)
    scene.succeeds()
    assert said(scene.asked[0])[-1] == ("user", "Hello, !")


def test_a_job_may_bring_its_assistant_along(scene: Scene) -> None:
    inline = InlineAssistant(
        workspace=scene.workspace,
        name="temporary",
        instructions="Count {{ what }}.",
        temperature=0.25,
        model=scene.model,
        tools=({"type": "python", "name": "word_count"},),  # type: ignore[arg-type]
    )
    job = InvokeJob(inline=inline, variables={"what": "words"}, messages=({"role": "user", "content": "a b"},))  # type: ignore[arg-type]
    scene.replies(completion(calls=[("c1", "word_count", {"text": "a b"})]), completion("2"))
    (result,) = scene.works.results([scene.works.producer.enqueue(job).id])
    assert (result.output, result.version, result.assistant) == ("2", None, f"{scene.workspace}/inline/inline")
    assert said(scene.asked[0]) == [("system", "Count words."), ("user", "a b")]
    assert scene.asked[0]["temperature"] == 0.25
    assert scene.turns(result.thread_id)[-1] == ("assistant", "2")


def test_an_assistant_that_is_not_stored_is_told_before_anything_is_asked(scene: Scene) -> None:
    scene.assistant()
    for fields in ({"environment": "staging"}, {"version": 9}, {"assistant": f"{scene.workspace}/tests/nobody"}):
        result = scene.run("go", **fields)
        assert (result.status, result.error_code) == ("failed", "assistant_unknown")
    assert scene.asked == []


def test_nothing_to_say_is_told_before_anything_is_asked(scene: Scene) -> None:
    scene.assistant()
    result = scene.run()
    assert (result.status, result.error_code, result.requests) == ("failed", "nothing_to_send", 0)
    assert scene.asked == []


def test_a_model_without_tools_of_its_own_calls_them_through_a_schema(scene: Scene) -> None:
    scene.assistant(tools=[{"type": "python", "name": "word_count"}], tool_calling="schema")

    def script(body: Any, n: int) -> Reply:
        assert "tools" not in body
        called = any("word_count says" in text for _, text in said(body))
        return answers(
            json.dumps({"answer": "2 words"} if called else {"tool": "word_count", "arguments": {"text": "a b"}})
        )

    scene.plays(script)
    result = scene.succeeds("How many words are in: a b", thread_id="t")
    assert (result.output, result.requests) == ("2 words", 2)
    assert '{"words":2,"characters":3}' in said(scene.asked[1])[-1][1]
    assert [message.role for message in scene.thread("t")] == ["user", "assistant", "tool", "assistant"]
