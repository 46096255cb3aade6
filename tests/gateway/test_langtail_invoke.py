"""Langtail's Invoke Assistant against the real gateway and worker: CONTRACT rows 1-9, 18-23, 27, 29-34 and 42."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.at_work import Scene, said
from tests.gateway.langtail_calls import asked_of, invoke, invoked, text_of, thread_of
from tests.loopback_provider import answers
from tests.served_gateway import ServedGateway

NOT_FOUND = (404, {"error": "Prompt deployment not found"})
FUNCTION = {"name": "look", "description": "Look it up.", "parameters": {"type": "object", "properties": {}}}


def told(answer: httpx.Response) -> tuple[int, Any]:
    return answer.status_code, answer.json()


def test_row_01_the_path_of_four_slugs_answers_with_a_chat_completion(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("Hello."))
    body = invoked(client, scene, messages=["Hi"]).json()
    assert (body["object"], body["model"], body["choices"][0]["finish_reason"]) == (
        "chat.completion",
        scene.model,
        "stop",
    )
    assert body["choices"][0]["message"]["content"] == "Hello."
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"] > 0
    assert isinstance(body["created"], int)


def test_row_01_a_request_without_a_body_asks_what_the_template_asks(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(template=[{"role": "user", "content": "Say hello."}])
    scene.replies(answers("Hello."))
    assert text_of(client.post(f"/{scene.address}/production")) == "Hello."


def test_row_01_names_that_other_paths_begin_with_are_no_workspaces(client: httpx.Client) -> None:
    for reserved in ("v1", "v2", "api", "assistant", "project-prompt", "metrics", "openapi.json"):
        answer = client.post(f"/{reserved}/p/a/production", json={})
        assert answer.status_code == 404
        assert answer.json() != NOT_FOUND[1], reserved


@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
def test_row_02_a_key_that_is_missing_or_wrong_is_401_in_either_header(
    gateway: ServedGateway, scene: Scene, header: str
) -> None:
    scene.assistant()
    scene.replies(answers("Hello."))
    url = f"{gateway.url}/{scene.address}/production"
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    prefix = "Bearer " if header == "Authorization" else ""
    for headers in ({}, {header: f"{prefix}aq_0_no"}):
        answer = httpx.post(url, json=body, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
    good = httpx.post(url, json=body, headers={header: prefix + gateway.key(scene.workspace)}, timeout=60)
    assert good.status_code == 200


def test_row_03_what_is_not_deployed_or_not_the_keys_is_404_in_langtails_own_words(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    scene.assistant()
    other = Scene(scene.works)
    other.assistant()
    for path in (
        f"/{scene.workspace}/tests/unknown/production",
        f"/{scene.address}/staging",
        f"/{scene.address}/production?v=99",
        f"/{scene.address}/production?v=first",
        f"/{scene.workspace}/tests/%00/production",
        f"/{other.address}/production",
    ):
        assert told(client.post(path, json={})) == NOT_FOUND
        assert told(client.get(path)) == NOT_FOUND
    with gateway.client(scene.workspace, assistants=[f"{scene.workspace}/tests/another"]) as shares_another:
        assert told(shares_another.post(f"/{scene.address}/production", json={})) == NOT_FOUND


def test_row_04_each_environment_answers_with_the_version_it_points_at(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(instructions="Be brief.", environment="production")
    scene.assistant(instructions="Be long.", environment="staging")
    scene.plays(lambda *_: answers("ok"))
    invoked(client, scene, messages=["Hi"])
    invoked(client, scene, environment="staging", messages=["Hi"])
    assert [said(body)[0] for body in scene.asked] == [("system", "Be brief."), ("system", "Be long.")]


def test_row_05_v_pins_a_version_whatever_the_environment(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(instructions="First.")
    scene.assistant(instructions="Second.")
    scene.plays(lambda *_: answers("ok"))
    for path in ("production?v=1", "preview?v=1", "production?v=2", "production"):
        assert client.post(f"/{scene.address}/{path}", json={"messages": [_user("Hi")]}).status_code == 200
    assert [said(body)[0][1] for body in scene.asked] == ["First.", "First.", "Second.", "Second."]


@pytest.mark.parametrize("stream", [False, True])
def test_row_06_the_thread_is_told_in_a_header_of_the_answer(client: httpx.Client, scene: Scene, stream: bool) -> None:
    scene.assistant()
    scene.replies(answers("Hello."))
    answer = invoked(client, scene, messages=["Hi"], stream=stream)
    assert answer.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    assert scene.turns(thread_of(answer)) == [("user", "Hi"), ("assistant", "Hello.")]


def test_row_07_no_thread_id_begins_a_fresh_thread_each_call(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.plays(lambda *_: answers("Hello."))
    first, second = (thread_of(invoked(client, scene, messages=["Hi"])) for _ in range(2))
    assert first != second
    assert [len(body["messages"]) for body in scene.asked] == [2, 2]


def test_row_07_an_unknown_thread_id_begins_the_thread_of_that_id(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("Hello."))
    answer = invoked(client, scene, threadId="of-before-the-move", messages=["Hi"])
    assert thread_of(answer) == "of-before-the-move"
    assert scene.turns("of-before-the-move") == [("user", "Hi"), ("assistant", "Hello.")]


def test_row_08_a_thread_that_goes_on_is_sent_and_extended(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("Hello, Bo."), answers("Bo."))
    thread_id = thread_of(invoked(client, scene, messages=["I am Bo."]))
    invoked(client, scene, threadId=thread_id, messages=["Who am I?"])
    turns = [("user", "I am Bo."), ("assistant", "Hello, Bo."), ("user", "Who am I?")]
    assert said(scene.asked[1]) == [("system", "Help."), *turns]
    assert scene.turns(thread_id) == [*turns, ("assistant", "Bo.")]


def test_row_08_a_thread_is_of_its_workspace_alone(gateway: ServedGateway, client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("Hello, Bo."))
    invoked(client, scene, threadId="same", messages=["I am Bo."])
    other = Scene(scene.works)
    other.assistant()
    other.replies(answers("Who?"))
    with gateway.client(other.workspace) as theirs:
        invoked(theirs, other, threadId="same", messages=["Who am I?"])
    assert said(other.asked[0]) == [("system", "Help."), ("user", "Who am I?")]


def test_row_09_the_messages_of_the_body_stand_in_the_thread_in_order_and_then_the_answer(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant()
    scene.replies(answers("Four."))
    messages = [_user("One."), {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Three."}]
    thread_id = thread_of(invoke(client, scene, {"messages": messages}))
    assert [text for _, text in scene.turns(thread_id)] == ["One.", "Two.", "Three.", "Four."]


def test_row_18_a_template_replaces_the_stored_messages_for_that_request_only(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant(instructions="", template=[{"role": "user", "content": "stored {{ x }}"}], variables={"x": "1"})
    scene.plays(lambda *_: answers("ok"))
    shots = [
        {"role": "system", "content": "mine {{ x }}"},
        {"role": "assistant", "content": None, "tool_calls": [_call("c1", "look")]},
        {"role": "tool", "content": "seen {{ x }}", "tool_call_id": "c1"},
        {"role": "user", "content": [{"type": "text", "text": "part {{ x }}"}]},
    ]
    invoke(client, scene, {"template": shots, "variables": {"x": "2"}})
    invoke(client, scene, {})
    assert [message["content"] for message in scene.asked[0]["messages"]] == [
        "mine 2",
        None,
        "seen 2",
        [{"type": "text", "text": "part 2"}],
    ]
    assert scene.asked[0]["messages"][1]["tool_calls"] == [_call("c1", "look")]
    assert said(scene.asked[1]) == [("user", "stored 1")]


def test_row_19_template_then_thread_then_messages(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(template=[{"role": "user", "content": "template"}])
    scene.plays(lambda *_: answers("answer"))
    invoked(client, scene, threadId="t", messages=["thread"])
    invoked(client, scene, threadId="t", messages=["message"])
    assert [text for _, text in said(scene.asked[1])] == ["Help.", "template", "thread", "answer", "message"]


def test_row_20_the_model_of_a_request_is_used_and_told(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("ok"))
    body = invoked(client, scene, messages=["Hi"], model=f"{scene.model}-large").json()
    assert body["model"] == scene.asked[0]["model"] == f"{scene.model}-large"


STORED: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "max_tokens": 100,
    "seed": 1,
    "stop": ["END"],
    "reasoning_effort": "high",
}
OVERRIDES: list[dict[str, Any]] = [
    {"temperature": 0},
    {"top_p": 0.1},
    {"presence_penalty": -2},
    {"frequency_penalty": 0},
    {"max_tokens": 7},
    {"seed": 0},
    {"stop": ["a", "b"]},
    {"reasoning_effort": "minimal"},
]


def test_row_21_each_sampling_override_reaches_the_provider_and_what_is_absent_is_as_stored(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant(**STORED)
    scene.plays(lambda *_: answers("ok"))
    for override in OVERRIDES:
        body = asked_of(client, scene, override | {"max_thinking_tokens": 5, "of_tomorrow": True})
        assert {name: body[name] for name in STORED} == STORED | override
        assert set(body) == {"model", "messages", *STORED}
    assert "max_tokens" not in asked_of(client, scene, {"max_tokens": -1})
    assert asked_of(client, scene, {"stop": "one"})["stop"] == ["one"]
    assert {name: asked_of(client, scene, {})[name] for name in STORED} == STORED


@pytest.mark.parametrize(
    "choice", ["auto", "required", "none", {"type": "function", "function": {"name": "look"}}], ids=str
)
def test_row_22_tool_choice_overrides_the_stored_one(client: httpx.Client, scene: Scene, choice: Any) -> None:
    scene.assistant(tools=[{"type": "function", **FUNCTION}], tool_choice="auto")
    scene.replies(answers("ok"))
    assert asked_of(client, scene, {"tool_choice": choice})["tool_choice"] == choice


def test_row_23_json_mode_is_sent_on_with_its_message(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.plays(lambda *_: answers('{"a": 1}'))
    body = asked_of(client, scene, {"response_format": {"type": "json_object"}})
    assert body["response_format"] == {"type": "json_object"}
    assert said(body) == [("system", "Help."), ("user", "Hi"), ("system", "format: JSON")]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert asked_of(client, scene, {"response_format": schema})["response_format"] == schema


@pytest.mark.parametrize("name", ["parallelToolCalls", "parallel_tool_calls"])
def test_row_27_parallel_tool_calls_are_allowed_or_not_as_asked(client: httpx.Client, scene: Scene, name: str) -> None:
    scene.assistant(tools=[{"type": "function", **FUNCTION}])
    scene.replies(answers("ok"))
    assert asked_of(client, scene, {name: False})["parallel_tool_calls"] is False


def test_row_29_the_end_users_id_reaches_the_provider(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("ok"))
    assert asked_of(client, scene, {"user": "end-user-7"})["user"] == "end-user-7"


def test_row_30_metadata_of_the_body_and_of_headers_is_kept_with_the_job(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("ok"))
    headers = {"x-langtail-metadata-Page": "home", "x-langtail-metadata-shared": "header"}
    body = {"messages": [_user("Hi")], "metadata": {"Row": 3, "shared": "body"}}
    answer = client.post(f"/{scene.address}/production", json=body, headers=headers)
    row = scene.works.row(_job_of(answer))
    assert row.job_metadata == {"page": "home", "shared": "body", "Row": 3}


@pytest.mark.parametrize("metadata", [{"k" * 65: "v"}, {"k": [1]}, {"k": None}, {"k": True}, "text"], ids=str)
def test_row_30_metadata_that_is_none_is_refused(client: httpx.Client, scene: Scene, metadata: Any) -> None:
    scene.assistant()
    answer = invoke(client, scene, {"metadata": metadata})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("metadata")
    assert scene.asked == []


@pytest.mark.parametrize("by", ["body", "header"])
def test_row_31_of_what_is_not_to_be_recorded_the_row_stays_without_its_words(
    client: httpx.Client, scene: Scene, by: str
) -> None:
    scene.assistant(template=[{"role": "user", "content": "{{ secret }}"}])
    scene.plays(lambda *_: answers("said canary"))
    headers = {"x-langtail-do-not-record": "true" if by == "header" else "false"}
    body: dict[str, Any] = {"variables": {"secret": "canary"}, "metadata": {"of": "canary"}}
    body |= {"doNotRecord": True} if by == "body" else {}
    answer = client.post(f"/{scene.address}/production", json=body, headers=headers)
    assert text_of(answer) == "said canary"
    # There is no thread that could go on.
    assert "x-langtail-thread-id" not in answer.headers
    row = scene.works.row(_job_of(answer))
    assert (row.status, row.output, row.variables, row.job_metadata, row.thread_id) == ("succeeded", None, {}, {}, None)
    assert row.prompt_tokens > 0


def test_row_31_a_thread_that_the_request_names_keeps_its_messages_all_the_same(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant()
    scene.replies(answers("said"))
    answer = invoked(client, scene, threadId="named", messages=["secret"], doNotRecord=True)
    assert thread_of(answer) == "named"
    assert scene.works.row(_job_of(answer)).output is None
    assert scene.turns("named") == [("user", "secret"), ("assistant", "said")]


def test_row_32_the_log_is_the_jobs_row_to_which_each_message_points(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(template=[{"role": "user", "content": "{{ x }}"}])
    scene.replies(answers("Hello."))
    answer = invoked(client, scene, messages=["Hi"], variables={"x": "1"})
    listed = client.get(f"/v2/threads/{thread_of(answer)}/messages").json()["data"]
    assert [message["requestLogId"] for message in listed] == [_job_of(answer)] * 2
    row = scene.works.row(_job_of(answer))
    assert (row.variables, row.output, row.finish_reason, row.requests) == ({"x": "1"}, "Hello.", "stop", 1)


def test_row_33_text_and_image_parts_reach_the_provider(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("A cat."))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    parts = [{"type": "text", "text": "What is {{ this }}?", "cache": 1}, image]
    thread_id = thread_of(invoke(client, scene, {"messages": [{"role": "user", "content": parts}]}))
    sent = [{"type": "text", "text": "What is {{ this }}?"}, image]
    assert scene.asked[0]["messages"][-1]["content"] == sent
    kept = client.get(f"/v2/threads/{thread_id}/messages").json()["data"][0]
    assert kept["content"] == {"role": "user", "content": sent}


def test_row_33_the_older_forms_of_messages_are_taken(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("Blue."))
    call = {"name": "look", "arguments": "{}"}
    messages = [
        {"role": "user", "content": None, "name": "Bo", "cache_enabled": True},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "look", "content": "blue"},
    ]
    invoke(client, scene, {"messages": messages})
    _, user, assistant, tool = scene.asked[0]["messages"]
    assert user == {"role": "user", "content": "", "name": "Bo"}
    assert assistant["tool_calls"][0]["function"] == call
    assert (tool["role"], tool["tool_call_id"]) == ("tool", assistant["tool_calls"][0]["id"])


BAD = {
    "a role that is none": ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    "a tool's answer to nothing": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
    "a function's answer to nothing": ({"messages": [{"role": "function", "name": "f"}]}, "messages[0]"),
    "calls of a user": (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1", "function": FUNCTION}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    "a part of another kind": (
        {"messages": [{"role": "user", "content": [{"type": "gemini_media_url", "gemini_media_url": {}}]}]},
        "messages[0].content",
    ),
    "too hot": ({"temperature": 2.5}, "temperature"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "a thread id that is none": ({"threadId": "a b"}, "threadId"),
    "a tool without a name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    "a schema that is none": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 7}}}]},
        "tools[0]",
    ),
    "variables that are none": ({"variables": ["x"]}, "variables"),
    "no object": (["x"], ""),
}


@pytest.mark.parametrize("fault", BAD)
def test_row_41_a_request_that_cannot_be_is_400_with_where_and_what(
    client: httpx.Client, scene: Scene, fault: str
) -> None:
    body, where = BAD[fault]
    scene.assistant()
    answer = invoke(client, scene, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").startswith(where)
    assert scene.asked == []


def test_row_34_a_model_of_another_vendor_is_asked_for_by_its_name(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("ok"))
    model = f"{scene.model}-vendor/other-model"
    assert asked_of(client, scene, {"model": model})["model"] == model


def test_row_42_the_configuration_is_shown_in_langtails_shape(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(
        instructions="Help {{ name }}.",
        template=[{"role": "user", "content": "Hi"}],
        variables={"name": "Bo", "n": 3},
        temperature=0.5,
        max_tokens=9,
        stop=["END"],
        tools=[
            {"type": "function", **FUNCTION},
            {
                "type": "http",
                "name": "fetch",
                "url": "https://inside.example/x",
                "secret": "mine",
                "headers": {"authorization": "Bearer {{ secret }}"},
            },
        ],
    )
    answer = client.get(f"/{scene.address}/production?open-ai-completion-config-payload=true")
    assert answer.status_code == 200
    assert answer.json() == {
        "state": {
            "type": "chat",
            "template": [{"role": "system", "content": "Help {{ name }}."}, {"role": "user", "content": "Hi"}],
            "tools": [
                {"type": "function", "function": FUNCTION},
                {
                    "type": "function",
                    "function": {
                        "name": "fetch",
                        "description": "",
                        "parameters": {"type": "object", "properties": {}},
                        "handler": {"enabled": True},
                    },
                },
            ],
            "functions": [],
            "args": {"model": scene.model, "stop": ["END"], "max_tokens": 9, "temperature": 0.5},
        },
        "chatInput": {"name": "Bo", "n": "3"},
    }


def test_row_42_the_deployments_of_what_the_key_may_use_are_listed(gateway: ServedGateway, scene: Scene) -> None:
    scene.assistant()
    scene.assistant(instructions="Other.", environment="staging")
    hidden = f"{scene.workspace}/other/hidden"
    scene.works.assistants.apply(scene.assistant().model_copy(update={"assistant": hidden}))
    with gateway.client(scene.workspace) as whole, gateway.client(scene.workspace, assistants=[scene.address]) as part:
        everything, shared = (each.get("/list-deployments").json()["deployments"] for each in (whole, part))
    slug = scene.address.rsplit("/", 1)[1]
    assert [(each["promptSlug"], each["environment"], each["version"]) for each in shared] == [
        (slug, "production", "1"),
        (slug, "staging", "2"),
    ]
    assert all(each["deployedAt"].endswith("Z") for each in shared)
    assert {each["promptSlug"] for each in everything} == {slug, "hidden"}


def test_row_42_a_key_of_one_project_may_leave_workspace_and_project_away(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    scene.assistant()
    scene.replies(answers("Hello."))
    slug = scene.address.rsplit("/", 1)[1]
    path = f"/project-prompt/{slug}/production"
    with gateway.client(scene.workspace, assistants=[scene.address, f"{scene.workspace}/tests/b"]) as of_project:
        assert text_of(of_project.post(path, json={"messages": [_user("Hi")]})) == "Hello."
        assert of_project.get(path).json()["state"]["args"]["model"] == scene.model
        assert told(of_project.post("/project-prompt/unknown/production", json={})) == NOT_FOUND
    with gateway.client(scene.workspace, assistants=[scene.address, f"{scene.workspace}/p/b"]) as of_two:
        for of_none in (client, of_two):
            answer = of_none.post(path, json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_project")


@pytest.mark.parametrize("stream", [False, True])
def test_an_invocation_that_is_sent_again_with_its_key_is_answered_by_the_first_ones_job(
    client: httpx.Client, scene: Scene, stream: bool
) -> None:
    scene.assistant()
    scene.replies(answers("once"))
    client.headers["idempotency-key"] = "k-1"
    body = {"messages": [_user("Hi")], "stream": stream}
    first, second = (invoke(client, scene, body) for _ in range(2))
    assert (first.status_code, "once" in first.text, "once" in second.text) == (200, True, True)
    assert thread_of(first) == thread_of(second)
    assert len(scene.turns(thread_of(first))) == 2
    # Redis forgets a result; SQL does not.
    scene.works.redis.delete(f"aq:result:{first.headers['x-request-id']}")
    assert "once" in invoke(client, scene, body).text
    client.headers["x-langtail-metadata-tenant"] = "b"
    other = invoke(client, scene, body)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


def test_an_invocation_that_is_not_recorded_runs_each_time_whatever_its_key(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("one"), answers("two"))
    client.headers["idempotency-key"] = "k-1"
    body = {"messages": [_user("Hi")], "doNotRecord": True}
    assert [text_of(invoke(client, scene, body)) for _ in range(2)] == ["one", "two"]


def test_a_thread_id_that_cannot_be_one_is_refused_before_it_is_looked_for(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    answer = invoke(client, scene, {"messages": [_user("Hi")], "threadId": "a\0b"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "threadId")


def _job_of(answer: httpx.Response) -> str:
    return str(answer.json()["id"]).removeprefix("chatcmpl-")


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _call(call_id: str, name: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps({})}}
