"""OpenAI's chat completions and models over the queue, as plain HTTP shows them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.at_work import Scene, completion
from tests.loopback_provider import Reply, answers, status
from tests.served_gateway import ServedGateway

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}


def ask(client: httpx.Client, scene: Scene, **body: Any) -> httpx.Response:
    return client.post(PATH, json={"model": scene.model, "messages": HELLO, **body})


def refused(answer: httpx.Response) -> tuple[int, str, str]:
    """Return status, code and param of an error, which must have OpenAI's form."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"], error["param"]


def test_a_chat_completion_is_a_job_of_its_own_that_leaves_no_thread(client: httpx.Client, scene: Scene) -> None:
    scene.replies(answers("Hello."))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answer = ask(client, scene, messages=messages)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello.", "refusal": None}
    assert scene.asked[0]["messages"] == messages
    job_id = answer.headers["x-request-id"]
    assert body["id"] == f"chatcmpl-{job_id}"
    assert scene.works.row(job_id).thread_id is None


def test_each_parameter_reaches_the_provider(client: httpx.Client, scene: Scene) -> None:
    scene.replies(completion("a"))
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.2,
        "seed": 7,
        "stop": ["END"],
        "n": 1,
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "user": "u-1",
    }
    answer = ask(client, scene, **given, max_completion_tokens=9, store=True, service_tier="auto", newest=1)
    assert answer.status_code == 200, answer.text
    assert {name: scene.asked[0][name] for name in given if name != "n"} | {"n": 1} == given
    assert 9 in (scene.asked[0].get("max_tokens"), scene.asked[0].get("max_completion_tokens"))


def test_n_choices_come_back_each_with_its_place(client: httpx.Client, scene: Scene) -> None:
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for index, text in enumerate(("one", "two"))
    ]
    scene.replies(Reply(body=json.dumps({"id": "c", "model": "x", "choices": choices, "usage": None}).encode()))
    body = ask(client, scene, n=2).json()
    assert [(each["index"], each["message"]["content"]) for each in body["choices"]] == [(0, "one"), (1, "two")]


def test_messages_of_every_role_and_kind_of_part_are_taken(client: httpx.Client, scene: Scene) -> None:
    scene.replies(answers("ok"))
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}
    answer = ask(
        client,
        scene,
        tools=[WEATHER],
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": [{"type": "text", "text": "Look"}, image], "name": "ann"},
            {"role": "assistant", "content": None, "refusal": "No.", "annotations": [], "audio": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": [{"type": "text", "text": "sun"}], "tool_call_id": "c1"},
        ],
    )
    assert answer.status_code == 200, answer.text
    assert scene.asked[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Look"}, image], "name": "ann"},
        {"role": "assistant", "content": "No."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sun", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"stop": 5}, "stop"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages[1]"),
        ({"temperature": 2.1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 1}}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True}}},
            "response_format.json_schema.schema",
        ),
    ],
)  # fmt: skip
def test_a_wrong_body_is_400_and_names_the_field(
    client: httpx.Client, scene: Scene, body: dict[str, Any], param: str
) -> None:
    assert refused(ask(client, scene, **body)) == (400, "invalid_request", param)
    assert not scene.asked


@pytest.mark.parametrize(
    "body",
    [{"logprobs": True}, {"audio": {"voice": "a"}}, {"modalities": ["text", "audio"]}, {"functions": [{"name": "f"}]}],
    ids=str,
)
def test_what_cannot_be_served_is_refused_with_what_to_do(
    client: httpx.Client, scene: Scene, body: dict[str, Any]
) -> None:
    assert refused(ask(client, scene, **body)) == (400, "unsupported_parameter", next(iter(body)))


def test_a_wrong_key_is_told_in_openais_form(gateway: ServedGateway) -> None:
    headers = {"authorization": "Bearer no"}
    denied = httpx.post(f"{gateway.url}{PATH}", json={}, headers=headers, trust_env=False)
    assert (denied.status_code, denied.json()["error"]["code"]) == (401, "invalid_api_key")


def test_text_that_is_no_unicode_is_a_bad_request(client: httpx.Client, scene: Scene) -> None:
    data = json.dumps({"model": scene.model, "messages": [{"role": "user", "content": "\ud800"}]})
    answer = client.post(PATH, content=data, headers={"content-type": "application/json"})
    assert refused(answer)[0] == 400


def test_a_provider_that_refuses_is_told_with_the_jobs_id(client: httpx.Client, scene: Scene) -> None:
    scene.plays(lambda _body, _n: status(400))
    answer = ask(client, scene)
    assert refused(answer)[:2] == (400, "request_refused")
    assert scene.works.row(answer.headers["x-request-id"]).status == "failed"


def test_a_strict_schema_is_checked_here_and_the_answer_mended(client: httpx.Client, scene: Scene) -> None:
    scene.replies(answers('{"age": "old"}'), answers('{"age": 7}'))
    format_ = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    answer = ask(client, scene, response_format=format_)
    assert json.loads(answer.json()["choices"][0]["message"]["content"]) == {"age": 7}
    assert scene.asked[0]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_a_schema_that_is_not_strict_and_json_mode_go_to_the_provider_as_they_are(
    client: httpx.Client, scene: Scene
) -> None:
    scene.replies(answers("not even JSON"), answers("{}"))
    format_ = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    assert ask(client, scene, response_format=format_).json()["choices"][0]["message"]["content"] == "not even JSON"
    ask(client, scene, response_format={"type": "json_object"})
    assert [body["response_format"] for body in scene.asked] == [format_, {"type": "json_object"}]


def test_an_assistants_address_runs_it_with_its_tools_beside_the_callers(
    client: httpx.Client, gateway: ServedGateway, scene: Scene
) -> None:
    own = {"type": "function", "name": "own", "description": "Ours"}
    scene.assistant(instructions="Say hello.", temperature=0.3, tools=[own])
    scene.assistant(instructions="Say bye.", environment="staging")
    scene.replies(*(answers(text) for text in ("production", "staging", "first")))
    for model in (scene.address, f"{scene.address}@staging", f"{scene.address}@1"):
        answer = ask(client, scene, model=model, tools=[WEATHER])
        assert answer.status_code == 200, answer.text
    production, staging, first = scene.asked
    assert [body["messages"][0]["content"] for body in scene.asked] == ["Say hello.", "Say bye.", "Say hello."]
    assert [tool["function"]["name"] for tool in production["tools"]] == ["own", "weather"]
    assert (production["temperature"], first["temperature"]) == (0.3, 0.3)
    assert [tool["function"]["name"] for tool in staging["tools"]] == ["weather"]


def test_an_assistant_that_is_unknown_foreign_or_not_shared_is_no_model(
    client: httpx.Client, gateway: ServedGateway, scene: Scene
) -> None:
    scene.assistant()
    foreign = Scene(scene.works)
    foreign.assistant()
    for model in (foreign.address, f"{scene.workspace}/tests/none", f"{scene.address}@none", f"{scene.address}@99"):
        assert refused(ask(client, scene, model=model)) == (404, "model_not_found", "model")
    with gateway.client(scene.workspace, assistants=[f"{scene.workspace}/tests/other"]) as restricted:
        assert refused(ask(restricted, scene, model=scene.address)) == (404, "model_not_found", "model")


def test_a_request_that_is_sent_again_with_its_key_is_answered_by_the_first_ones_job(
    client: httpx.Client, scene: Scene
) -> None:
    scene.replies(answers("once"))
    client.headers["idempotency-key"] = "k-1"
    first, second = (ask(client, scene) for _ in range(2))
    assert first.headers["x-request-id"] == second.headers["x-request-id"]
    assert second.json()["choices"][0]["message"]["content"] == "once"
    assert refused(ask(client, scene, temperature=1))[:2] == (422, "idempotency_key_reused")
    # Redis forgets a result; SQL does not.
    scene.works.redis.delete(f"aq:result:{first.headers['x-request-id']}")
    assert ask(client, scene).json()["choices"] == first.json()["choices"]


def test_models_are_those_of_the_keys_assistants_and_these_themselves(
    client: httpx.Client, gateway: ServedGateway, scene: Scene
) -> None:
    scene.assistant()
    scene.assistant(environment="staging", instructions="Other.")
    Scene(scene.works).assistant()
    body = client.get("/v1/models").json()
    assert [model["id"] for model in body["data"]] == [scene.model, scene.address, f"{scene.address}@staging"]
    found = client.get(f"/v1/models/{scene.address.replace('/', '%2F')}").json()
    assert found == body["data"][1]
    assert (found["object"], found["owned_by"]) == ("model", scene.workspace)
    assert refused(client.get("/v1/models/none")) == (404, "model_not_found", "model")
    with gateway.client(scene.workspace, assistants=[]) as restricted:
        assert restricted.get("/v1/models").json() == {"object": "list", "data": []}
    with gateway.client(scene.workspace, assistants=[scene.address]) as shared:
        assert shared.get("/v1/models").json()["data"] == body["data"][1:]
