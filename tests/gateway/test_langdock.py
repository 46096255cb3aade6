"""Langdock's chat completions: CONTRACT.md rows 59-72, 76-83."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from sqlmodel import Session, func, select

from schemas.tables import Thread
from tests.at_work import Scene, completion, said
from tests.loopback_provider import Reply
from tests.served_gateway import ServedGateway

URL = "/assistant/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"name": "look_up", "description": "Looks up", "method": "GET"}


def temporary(scene: Scene, **fields: Any) -> dict[str, Any]:
    return {"name": "Helper", "instructions": "Be brief.", "model": scene.model, **fields}


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post(URL, json={"messages": HELLO} | body)


def answered(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = ask(client, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def refused(client: httpx.Client, **body: Any) -> tuple[int, str]:
    answer = ask(client, **body)
    assert answer.json().keys() == {"message"}, answer.text
    return answer.status_code, answer.json()["message"]


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def kept_threads(scene: Scene) -> int:
    with Session(scene.works.engine) as session:
        return session.exec(select(func.count()).select_from(Thread).where(Thread.workspace == scene.workspace)).one()


def test_row_59_a_stored_assistant_answers_a_key_that_it_is_shared_with(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    scene.assistant()
    scene.replies(Reply(text="Hi."))
    body = answered(client, assistantId=scene.address)
    assert [item["role"] for item in body["result"]] == ["assistant"]
    assert said(scene.asked[0]) == [("system", "Help."), ("user", "Hello")]
    assert kept_threads(scene) == 0
    with gateway.client(scene.workspace, assistants=[f"{scene.workspace}/tests/other"]) as narrow:
        status, message = refused(narrow, assistantId=scene.address)
        assert (status, "not shared" in message) == (403, True)
    # What another workspace owns answers as what is not there.
    with gateway.client(f"{scene.workspace}-else") as foreign:
        theirs, nothings = refused(foreign, assistantId=scene.address), refused(foreign, assistantId="a/b/c")
        assert theirs == (404, nothings[1].replace("a/b/c", scene.address))
    assert refused(client, assistantId=f"{scene.workspace}/tests/nothing")[0] == 404
    assert refused(client, assistantId="asst_123")[0] == 404


def test_row_60_a_temporary_assistant_works_without_being_saved_and_its_instructions_are_text(
    client: httpx.Client, scene: Scene
) -> None:
    scene.replies(Reply(text="Hi."))
    answered(client, assistant=temporary(scene, instructions="Use {{x}} and {{#if}}.", temperature=0.5))
    assert said(scene.asked[0]) == [("system", "Use {{x}} and {{#if}}."), ("user", "Hello")]
    assert scene.asked[0]["temperature"] == 0.5
    assert not [each for each in scene.works.assistants.all() if each.address.startswith(f"{scene.workspace}/")]


def test_row_61_exactly_one_of_assistant_id_and_assistant(client: httpx.Client, scene: Scene) -> None:
    for both_or_none in ({}, {"assistantId": scene.address, "assistant": temporary(scene)}):
        status, message = refused(client, **both_or_none)
        assert (status, "exactly one of" in message) == (400, True)


@pytest.mark.parametrize(
    "over",
    [{"name": "n" * 65}, {"instructions": "i" * 16_385}, {"description": "d" * 257}, {"temperature": 1.01},
     {"temperature": -0.01}],
)  # fmt: skip
def test_row_62_a_config_over_its_limits_is_refused(client: httpx.Client, scene: Scene, over: dict[str, Any]) -> None:
    status, message = refused(client, assistant=temporary(scene, **over))
    assert (status, f"assistant.{next(iter(over))}" in message) == (400, True)


def test_row_62_a_config_at_its_limits_is_taken(client: httpx.Client, scene: Scene) -> None:
    scene.replies(Reply(text="Hi."))
    at_limits = {"name": "n" * 64, "instructions": "i" * 16_384, "description": "d" * 256, "temperature": 1}
    answered(client, assistant=temporary(scene, **at_limits))


def test_row_63_name_and_instructions_are_required(client: httpx.Client, scene: Scene) -> None:
    for name in ("name", "instructions"):
        config = temporary(scene)
        del config[name]
        assert refused(client, assistant=config) == (400, f"assistant.{name}: Field required")


def test_row_64_messages_have_three_roles_and_strings(client: httpx.Client, scene: Scene) -> None:
    for message in (
        {"role": "system", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": None},
        {"role": "user"},
        {"content": "x"},
    ):
        status, why = refused(client, assistant=temporary(scene), messages=[message])
        assert (status, why.startswith("messages[0].")) == (400, True), why
    assert refused(client, assistant=temporary(scene), messages=[])[0] == 400


def test_row_64_a_conversation_with_tools_is_sent_as_the_provider_takes_it(client: httpx.Client, scene: Scene) -> None:
    scene.plays(lambda _body, _n: Reply(text="Done."))
    call = {"type": "tool-call", "toolCallId": "c1", "toolName": "look", "args": {"id": 7}}
    calls = {"role": "assistant", "content": json.dumps([{"type": "text", "text": "I look."}, call])}
    result = json.dumps([{"type": "tool-result", "toolCallId": "c1", "result": {"price": 3}}])
    for content in (result, '{"price": 3}'):
        answered(client, assistant=temporary(scene), messages=[*HELLO, calls, {"role": "tool", "content": content}])
        _, user, assistant, tool = scene.asked[-1]["messages"]
        assert user["content"] == "Hello"
        assert assistant["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"id": 7}'}
        assert (assistant["content"], tool["role"], tool["tool_call_id"]) == ("I look.", "tool", "c1")
        assert json.loads(tool["content"]) == {"price": 3}
    # A result that nothing asked for.
    answered(client, assistant=temporary(scene), messages=[*HELLO, {"role": "tool", "content": "42"}])
    assert said(scene.asked[-1])[-1] == ("user", "[Result of a tool]\n42")
    # A call that nobody answered.
    assert refused(client, assistant=temporary(scene), messages=[*HELLO, calls])[0] == 400


def test_row_65_the_result_has_all_that_was_said_since_in_order(client: httpx.Client, scene: Scene) -> None:
    function = {"type": "function", "name": "ask_user", "parameters": {"type": "object", "properties": {}}}
    scene.assistant(tools=[{"type": "python", "name": "echo"}, function])
    scene.replies(
        completion("I look.", calls=[("c1", "echo", {"text": "one"}), ("c2", "echo", {"text": "two"})]),
        completion(calls=[("c3", "echo", {"text": "three"})]),
        completion("All done."),
    )
    history = [*HELLO, {"role": "assistant", "content": "Said before."}, *HELLO]
    items = answered(client, assistantId=scene.address, messages=history)["result"]
    assert len({item["id"] for item in items}) == 5
    told = [(item["role"], [part["type"] for part in item["content"]]) for item in items]
    assert told == [
        ("assistant", ["text", "tool-call", "tool-call"]),
        ("tool", ["tool-result", "tool-result"]),
        ("assistant", ["tool-call"]),
        ("tool", ["tool-result"]),
        ("assistant", ["text"]),
    ]
    call = items[0]["content"][1]
    assert call == {"type": "tool-call", "toolCallId": "c1", "toolName": "echo", "args": {"text": "one"}}
    assert [part["toolCallId"] for part in items[1]["content"]] == ["c1", "c2"]
    assert all(isinstance(part["result"], dict) for part in items[1]["content"])
    assert items[4]["content"] == [{"type": "text", "text": "All done."}]
    # A call that the client has to answer ends the result.
    scene.replies(completion(calls=[("c4", "ask_user", {})]))
    items = answered(client, assistantId=scene.address)["result"]
    assert [part["toolName"] for item in items for part in item["content"]] == ["ask_user"]


PRICE = {"type": "object", "properties": {"price": {"type": "number"}}, "required": ["price"]}


def test_row_66_an_object_without_a_schema(client: httpx.Client, scene: Scene) -> None:
    scene.replies(Reply(text='{"a": [1]}'))
    assert answered(client, assistant=temporary(scene), output={"type": "object"})["output"] == {"a": [1]}


def test_row_67_an_object_with_a_schema_is_valid_or_no_answer(client: httpx.Client, scene: Scene) -> None:
    scene.replies(Reply(text='{"price": "3"}'), Reply(text='{"price": 3}'))
    output = {"type": "object", "schema": PRICE}
    body = answered(client, assistant=temporary(scene), output=output)
    assert body["output"] == {"price": 3}
    # The repair is no part of what was said.
    assert [part["text"] for item in body["result"] for part in item["content"]] == ['{"price": 3}']
    scene.plays(lambda _body, _n: Reply(text="no"))
    assert refused(client, assistant=temporary(scene), output=output)[0] == 502
    assert refused(client, assistant=temporary(scene), output={"type": "object", "schema": {"type": 7}})[0] == 400


def test_row_68_an_array_has_items_of_the_schema(client: httpx.Client, scene: Scene) -> None:
    scene.replies(Reply(text='[{"price": 1}, {"price": 2}]'))
    output = {"type": "array", "schema": PRICE}
    assert answered(client, assistant=temporary(scene), output=output)["output"] == [{"price": 1}, {"price": 2}]


def test_row_69_an_enum_is_one_of_its_strings(client: httpx.Client, scene: Scene) -> None:
    scene.replies(Reply(text="good"))
    output = {"type": "enum", "enum": ["good", "bad"]}
    assert answered(client, assistant=temporary(scene), output=output)["output"] == "good"
    status, message = refused(client, assistant=temporary(scene), output={"type": "enum"})
    assert (status, "needs `enum`" in message) == (400, True)


def test_row_70_there_is_no_output_unless_it_is_asked_for(client: httpx.Client, scene: Scene) -> None:
    scene.replies(Reply(text='{"a": 1}'))
    assert answered(client, assistant=temporary(scene)).keys() == {"result"}


def test_row_71_max_steps_are_one_to_twenty_and_end_the_loop(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(tools=[{"type": "python", "name": "echo"}])
    for steps in (0, 21, 1.5):
        status, message = refused(client, assistantId=scene.address, maxSteps=steps)
        assert (status, message.startswith("maxSteps:")) == (400, True)
    scene.plays(lambda _body, n: completion(calls=[(f"c{n}", "echo", {"text": "again"})]))
    given: dict[str, int]
    for given, asked in (({"maxSteps": 3}, 3), ({}, 10)):
        before = len(scene.asked)
        status, message = refused(client, assistantId=scene.address, **given)
        assert (status, "tools" in message) == (502, True)
        assert len(scene.asked) - before == asked


def test_row_72_a_stream_tells_the_answer_its_tools_and_its_output_in_events(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant(tools=[{"type": "python", "name": "echo"}])
    scene.replies(completion(calls=[("c1", "echo", {"text": "x"})]), completion('{"a": 1}', usage=(30, 7)))
    answer = ask(client, assistantId=scene.address, stream=True, output={"type": "object"})
    told = events(answer)
    kinds = [event["type"] for event in told if event["type"] != "finish-step"]
    assert list(dict.fromkeys(kinds)) == ["tool-call", "tool-result", "text-delta", "finish"]
    assert "".join(event["delta"] for event in told if event["type"] == "text-delta") == '{"a": 1}'
    (call,) = [event for event in told if event["type"] == "tool-call"]
    assert call == {"type": "tool-call", "toolCallId": "c1", "toolName": "echo", "args": {"text": "x"}}
    assert (told[-1]["output"], told[-1]["finishReason"], told[-1]["usage"]["promptTokens"]) == ({"a": 1}, "stop", 40)
    # What goes wrong before anything was told is the request's own error.
    scene.plays(lambda _body, _n: Reply(status=400, text="no such thing"))
    failed = ask(client, assistantId=scene.address, stream=True)
    assert (failed.status_code, failed.json().keys()) == (400, {"message"})


def test_row_76_the_models_are_listed_and_can_be_named(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    scene.assistant()
    answer = client.get("/assistant/v1/models").json()
    assert answer["object"] == "list"
    (model,) = [model for model in answer["data"] if model["id"] == scene.model]
    assert (model["object"], model["owned_by"]) == ("model", "system")
    assert 1_600_000_000_000 < model["created"] < 3_000_000_000_000
    scene.replies(Reply(text="Hi."))
    answered(client, assistant=temporary(scene, model=model["id"]))
    with gateway.client(f"{scene.workspace}-else") as foreign:
        assert scene.model not in foreign.get("/assistant/v1/models").text


def test_row_77_capabilities_that_are_lacking_are_told_and_others_ignored(client: httpx.Client, scene: Scene) -> None:
    scene.replies(Reply(text="Hi."))
    flags = {"webSearch": False, "dataAnalyst": True, "imageGeneration": False}
    answered(client, assistant=temporary(scene, capabilities=flags))
    for flag in ("webSearch", "imageGeneration"):
        status, message = refused(client, assistant=temporary(scene, capabilities={flag: True}))
        assert (status, "not supported here" in message) == (501, True)


def test_row_78_an_action_is_an_http_tool_without_secrets(client: httpx.Client, scene: Scene) -> None:
    scene.replies(completion("Hi."))
    action = {**TOOL, "url": "https://example.com/{{ id }}", "parameters": PRICE, "requiresConfirmation": False}
    answered(client, assistant=temporary(scene, actions=[action], vectorDb=[]))
    (tool,) = scene.asked[0]["tools"]
    assert (tool["function"]["name"], tool["function"]["parameters"]) == ("look_up", PRICE)
    secret = refused(client, assistant=temporary(scene, actions=[{**action, "secret": "crm"}]))
    assert (secret[0], "secret" in secret[1]) == (403, True)
    wrong = refused(client, assistant=temporary(scene, actions=[{**action, "url": "file:///etc/passwd"}]))
    assert (wrong[0], wrong[1].startswith("assistant.actions[0].url")) == (400, True)
    theirs = [{"actionId": "3c90c3cc-0d44-4b50-8888-8dd25736052a", "requiresConfirmation": True}]
    assert refused(client, assistant=temporary(scene, actions=theirs))[0] == 501
    assert refused(client, assistant=temporary(scene, vectorDb=[{"kind": "qdrant"}]))[0] == 501


def test_row_79_knowledge_folders_are_told_to_be_lacking(client: httpx.Client, scene: Scene) -> None:
    status, message = refused(client, assistant=temporary(scene, knowledgeFolderIds=["f1"]))
    assert (status, "knowledgeFolderIds" in message) == (501, True)
    scene.replies(Reply(text="Hi."))
    answered(client, assistant=temporary(scene, knowledgeFolderIds=[]))


def test_row_80_a_bearer_key_is_needed_and_must_be_good(client: httpx.Client, scene: Scene) -> None:
    for headers in ({}, {"authorization": "Bearer aq_no"}, {"authorization": "Basic eDp5"}):
        denied = httpx.post(f"{client.base_url}{URL}", json={"messages": HELLO}, headers=headers)
        assert (denied.status_code, denied.json().keys()) == (401, {"message"})


def test_row_83_errors_are_a_message(client: httpx.Client, scene: Scene) -> None:
    scene.plays(lambda _body, _n: Reply(status=400, text="the provider says no"))
    status, message = refused(client, assistant=temporary(scene))
    assert (status, "the provider says no" in message) == (400, True)
    scene.plays(lambda _body, _n: Reply(status=500, text="x"))
    assert refused(client, assistant=temporary(scene))[0] == 502
    broken = client.post(URL, content=b'{"messages": ', headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json().keys()) == (400, {"message"})
    # A lone surrogate is no text that a provider takes.
    for bad in (
        r'"messages": [{"role": "user", "content": "\ud800"}]',
        r'"output": {"type": "object", "schema": {"title": "\ud800"}}',
    ):
        text = json.dumps({"messages": HELLO, "assistant": temporary(scene)})[:-1] + ", " + bad + "}"
        broken = client.post(URL, content=text, headers={"content-type": "application/json"})
        assert (broken.status_code, broken.json().keys()) == (400, {"message"}), broken.text
    assert client.get("/assistant/v1/nothing").json().keys() == {"message"}
