"""The agent dialect, row by row (CONTRACT.md section 4, rows 43-58)."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.at_work import Scene, Works, completion, said
from tests.loopback_hosted import AGENT_BASE, KEY, PASSAGE, LoopbackHosted
from tests.loopback_provider import Reply, answers
from tests.processes import until
from tests.served_gateway import ServedGateway

BASE = "/api/v1/compatibility/openai/v1"
HELLO = [{"role": "user", "content": "Hi"}]
LOOK_UP = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


def agent_id(scene: Scene) -> str:
    return scene.address.partition("/")[2].replace("/", ":")


def ask(client: httpx.Client, scene: Scene, *, kind: str = "assistants", **body: Any) -> httpx.Response:
    return client.post(f"{BASE}/{kind}/{agent_id(scene)}/chat/completions", json={"messages": HELLO, **body})


def answer(client: httpx.Client, scene: Scene, **body: Any) -> Any:
    response = ask(client, scene, **body)
    assert response.status_code == 200, response.text
    return response.json()


def chunks(client: httpx.Client, scene: Scene, **body: Any) -> list[Any]:
    """Return the chunks of a stream, which must end in `[DONE]`."""
    response = ask(client, scene, stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *found, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in found]


def text_of(found: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in found for choice in chunk["choices"])


@pytest.mark.parametrize("kind", ["assistants", "agents"])
def test_row_43_an_agent_answers_a_chat_completion_with_usage(client: httpx.Client, scene: Scene, kind: str) -> None:
    scene.assistant()
    scene.replies(completion("Hello.", usage=(10, 5)))
    body = answer(client, scene, kind=kind)
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "Hello."
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def test_row_44_an_id_fits_into_a_base_url_whichever_way_it_names_the_assistant(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant(instructions="Production.")
    scene.assistant(instructions="Staging.", environment="staging")
    _, project, name = scene.address.split("/")
    ids = [
        f"{project}:{name}",
        f"{project}:{name}@staging",
        f"{project}%3A{name}@1",
        scene.address.replace("/", "%2F"),
        scene.address.replace("/", ":"),
        f"{scene.address}@2",
    ]
    scene.replies(*[answers("ok")] * len(ids))
    for each in ids:
        response = client.post(f"{BASE}/assistants/{each}/chat/completions", json={"messages": HELLO})
        assert response.status_code == 200, response.text
    instructions = [body["messages"][0]["content"] for body in scene.asked]
    assert instructions == ["Production.", "Staging.", "Production.", "Production.", "Production.", "Staging."]


def test_row_44_agents_and_their_models_can_be_looked_up(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(description="Helps.", history_tokens=900)
    scene.assistant(environment="staging")
    listed = client.get(f"{BASE}/agents", params={"limit": 1}).json()
    assert (listed["has_more"], [agent["id"] for agent in listed["data"]]) == (True, [agent_id(scene)])
    found = client.get(f"{BASE}/assistants/{agent_id(scene)}").json()
    assert found == listed["data"][0]
    assert (found["model"], found["description"], found["session_max_length"]) == (scene.model, "Helps.", 900)
    models = client.get(f"{BASE}/assistants/{agent_id(scene)}/models").json()
    assert [model["id"] for model in models["data"]] == [scene.model]


def test_row_45_create_session_returns_a_uuid_and_stores_the_interaction(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("Hello."))
    session_id = answer(client, scene, create_session=True)["session_id"]
    assert str(uuid.UUID(session_id)) == session_id
    assert scene.turns(session_id) == [("user", "Hi"), ("assistant", "Hello.")]


def test_row_46_without_a_session_nothing_is_kept(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("one"), answers("two"))
    assert "session_id" not in answer(client, scene)
    response = ask(client, scene, create_session=False)
    assert said(scene.asked[1]) == said(scene.asked[0])
    assert scene.works.row(response.headers["x-request-id"]).thread_id is None


def test_row_47_store_in_session_uses_and_extends_its_context(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("one"), answers("two"), answers("three"))
    session_id = answer(client, scene, create_session=True)["session_id"]
    assert answer(client, scene, store_in_session=session_id)["session_id"] == session_id
    answer(client, scene, store_in_session=session_id.upper())
    spoken = [("user", "Hi"), ("assistant", "one"), ("user", "Hi"), ("assistant", "two"), ("user", "Hi")]
    assert said(scene.asked[2])[1:] == spoken
    assert scene.turns(session_id) == [*spoken, ("assistant", "three")]


def test_row_47_turns_of_one_session_at_once_run_one_after_the_other_and_none_is_lost(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant()
    scene.plays(lambda body, _: answers(f"turn {len(body['messages']) // 2}"))
    session_id = answer(client, scene, create_session=True)["session_id"]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: answer(client, scene, store_in_session=session_id), range(6)))
    spoken = [text for role, text in scene.turns(session_id) if role == "assistant"]
    assert spoken == [f"turn {n}" for n in range(1, 8)]


def test_row_47_a_session_is_known_while_its_first_turn_still_runs(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    queue, released = scene.works.redis, threading.Event()
    scene.replies(Reply(text="one", hold=released), answers("two"))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(answer, client, scene, create_session=True)
        until(lambda: queue.keys(f"aq:thread:{scene.workspace}:*"), what="the first turn is enqueued")
        (thread,) = queue.keys(f"aq:thread:{scene.workspace}:*")
        session_id = thread.decode().rsplit(":", 1)[1]
        second = pool.submit(answer, client, scene, store_in_session=session_id)
        until(lambda: queue.llen(thread) == 2 or second.done(), what="the second turn waits for the first")
        released.set()
        assert first.result()["session_id"] == second.result()["session_id"] == session_id
    assert [text for _, text in scene.turns(session_id)] == ["Hi", "one", "Hi", "two"]


def test_row_47_an_unknown_or_foreign_session_is_404_and_one_that_is_no_uuid_422(
    client: httpx.Client, gateway: ServedGateway, scene: Scene
) -> None:
    scene.assistant()
    other = Scene(scene.works)
    other.assistant()
    other.replies(answers("theirs"))
    with gateway.client(other.workspace) as theirs:
        foreign = answer(theirs, other, create_session=True)["session_id"]
    for session_id in (str(uuid.uuid4()), foreign):
        refused = ask(client, scene, store_in_session=session_id)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "session_not_found")
    wrong = ask(client, scene, store_in_session="session-1")
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["body", "store_in_session"])
    assert not scene.asked


def test_row_48_both_session_fields_are_400(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    refused = ask(client, scene, create_session=True, store_in_session=str(uuid.uuid4()))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "two_sessions")


def test_row_49_the_agents_instructions_and_template_come_before_what_is_said(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant(
        instructions="Be {{ mood }}.", variables={"mood": "kind"}, template=[{"role": "user", "content": "Begin."}]
    )
    scene.replies(answers("ok"))
    answer(client, scene)
    assert said(scene.asked[0]) == [("system", "Be kind."), ("user", "Begin."), ("user", "Hi")]


@pytest.fixture(scope="module")
def retrieving(servers_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    """A gateway whose worker knows agents that are hosted elsewhere and look passages up."""
    with LoopbackHosted() as hosted:
        settings = {"ASSISTQ_AGENT_BASE_URL": f"{hosted.url}{AGENT_BASE}", "ASSISTQ_AGENT_API_KEY": KEY}
        directory = tmp_path_factory.mktemp("retrieving")
        with (
            Works(directory, servers_dir=servers_dir, ASSISTQ_PROCESSES="1", **settings) as works,
            ServedGateway(works) as served,
        ):
            yield served


@pytest.mark.parametrize("stream", [False, True])
def test_row_49_retrieved_passages_are_reported_in_index_context_info(retrieving: ServedGateway, stream: bool) -> None:
    scene = Scene(retrieving.works)
    scene.assistant(provider="agent", provider_assistant="agent-1", model=None)
    with retrieving.client(scene.workspace) as client:
        last = chunks(client, scene)[-1] if stream else answer(client, scene)
    assert last["index_context_info"] == [PASSAGE]


def test_row_50_the_model_may_be_absent_empty_or_the_agents_and_no_other(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.plays(lambda _body, _n: answers("ok"))
    for body in ({}, {"model": None}, {"model": ""}, {"model": scene.model}):
        answer(client, scene, **body)
    refused = ask(client, scene, model=f"{scene.model}-large")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unexpected_model")
    assert {body["model"] for body in scene.asked} == {scene.model}


@pytest.mark.parametrize("role", ["system", "developer", "function", "robot"])
def test_row_51_a_system_message_or_any_other_role_is_400(client: httpx.Client, scene: Scene, role: str) -> None:
    scene.assistant()
    refused = ask(client, scene, messages=[{"role": role, "content": "x"}, *HELLO])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[0].role")
    assert "unsupported role" in refused.json()["detail"]


def test_row_52_an_unknown_foreign_or_unshared_agent_is_404(
    client: httpx.Client, gateway: ServedGateway, scene: Scene
) -> None:
    scene.assistant()
    foreign = Scene(scene.works)
    foreign.assistant()
    told = set()
    for each in ("none", "tests:none", f"{agent_id(scene)}@none", foreign.address, "a/b/c/d", "%00:%00"):
        response = client.post(f"{BASE}/agents/{each}/chat/completions", json={"messages": HELLO})
        told.add((response.status_code, response.json()["error"]["code"]))
        assert client.get(f"{BASE}/agents/{each}").status_code == 404
    with gateway.client(scene.workspace, assistants=[]) as restricted:
        response = ask(restricted, scene)
        told.add((response.status_code, response.json()["error"]["code"]))
        assert restricted.get(f"{BASE}/agents").json()["data"] == []
    assert told == {(404, "agent_not_found")}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"messages": []}, ["body", "messages"]),
        ({"messages": [{"role": "user"}]}, ["body", "messages", 0]),
        ({"temperature": 2.1}, ["body", "temperature"]),
        ({"temperature": -0.1}, ["body", "temperature"]),
        ({"n": 0}, ["body", "n"]),
        ({"max_tokens": 0}, ["body", "max_tokens"]),
        ({"stop": []}, ["body", "stop"]),
        ({"stream_options": {"include_usage": True}}, ["body"]),
    ],
)
def test_row_53_what_breaks_the_schema_is_422_with_details(
    client: httpx.Client, scene: Scene, body: dict[str, Any], place: list[Any]
) -> None:
    scene.assistant()
    refused = ask(client, scene, **body)
    assert refused.status_code == 422
    (detail,) = refused.json()["detail"]
    assert set(detail) == {"loc", "msg", "type"}
    assert detail["loc"] == place


def test_row_54_temperature_is_0_and_there_is_one_choice_unless_the_agent_or_the_request_says_more(
    client: httpx.Client, scene: Scene
) -> None:
    scene.plays(lambda _body, _n: answers("ok"))
    scene.assistant()
    assert len(answer(client, scene)["choices"]) == 1
    answer(client, scene, temperature=1)
    scene.assistant(temperature=0.7)
    answer(client, scene)
    answer(client, scene, temperature=0)
    assert [(body["temperature"], body.get("n", 1)) for body in scene.asked] == [(0, 1), (1, 1), (0.7, 1), (0, 1)]


def test_row_55_n_choices_come_back_and_stop_seed_and_max_tokens_go_on(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for index, text in enumerate(("one", "two"))
    ]
    scene.replies(Reply(body=json.dumps({"id": "c", "model": "x", "choices": choices, "usage": None}).encode()))
    body = answer(client, scene, n=2, stop=["END"], seed=7, max_tokens=9)
    assert [choice["message"]["content"] for choice in body["choices"]] == ["one", "two"]
    asked = scene.asked[0]
    assert (asked["n"], asked["stop"], asked["seed"]) == (2, ["END"], 7)
    assert 9 in (asked.get("max_tokens"), asked.get("max_completion_tokens"))


def test_row_56_a_stream_tells_the_answer_its_session_and_the_usage_when_asked(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant()
    scene.replies(completion("Hello.", usage=(10, 5)), completion("Again."))
    found = chunks(client, scene, create_session=True, stream_options={"include_usage": True})
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert text_of(found) == "Hello."
    assert found[-1]["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    (session_id,) = {chunk["session_id"] for chunk in found}
    assert scene.turns(session_id) == [("user", "Hi"), ("assistant", "Hello.")]
    again = chunks(client, scene, store_in_session=session_id)
    assert not any("usage" in chunk for chunk in again)
    assert [text for _, text in scene.turns(session_id)] == ["Hi", "Hello.", "Hi", "Again."]


@pytest.mark.parametrize("stream", [False, True])
def test_row_57_calls_of_the_callers_tools_come_back_and_their_answers_go_on(
    client: httpx.Client, scene: Scene, stream: bool
) -> None:
    scene.assistant()
    scene.replies(completion(calls=[("c1", "look_up", {"q": "Oslo"})]), answers("Norway."))
    asked = {"tools": [LOOK_UP], "tool_choice": "auto", "create_session": True}
    if stream:
        found = chunks(client, scene, **asked)
        session_id = found[0]["session_id"]
        (call,) = [
            call for chunk in found for choice in chunk["choices"] for call in choice["delta"].get("tool_calls", ())
        ]
        assert call.pop("index") == 0
        reason = found[-1]["choices"][0]["finish_reason"]
    else:
        body = answer(client, scene, **asked)
        session_id = body["session_id"]
        (call,) = body["choices"][0]["message"]["tool_calls"]
        reason = body["choices"][0]["finish_reason"]
    assert reason == "tool_calls"
    assert call == {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "Oslo"}'}}
    told = {"role": "tool", "tool_call_id": "c1", "content": "in Norway"}
    body = answer(client, scene, messages=[told], store_in_session=session_id, tools=[LOOK_UP])
    assert body["choices"][0]["message"]["content"] == "Norway."
    assert scene.asked[0]["tool_choice"] == "auto"
    assert scene.asked[1]["messages"][-1] == told
    unanswered = ask(client, scene, tools=[LOOK_UP], messages=[{"role": "assistant", "tool_calls": [call]}])
    assert (unanswered.status_code, unanswered.json()["error"]["code"]) == (400, "tool_answers_missing")


def test_row_58_the_oldest_turns_of_a_session_are_left_out_beyond_history_tokens(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant(history_tokens=200)
    scene.plays(lambda _body, _n: answers("ok " * 100))
    session_id = answer(client, scene, create_session=True, messages=[{"role": "user", "content": "first"}])[
        "session_id"
    ]
    for text in ("second", "third", "fourth"):
        answer(client, scene, store_in_session=session_id, messages=[{"role": "user", "content": text}])
    spoken = [text for role, text in said(scene.asked[-1]) if role == "user"]
    assert "first" not in spoken
    assert spoken[-2:] == ["third", "fourth"]
    assert scene.turns(session_id)[0] == ("user", "first")


def test_a_failure_of_the_provider_is_told_for_both_kinds_of_clients(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.plays(lambda _body, _n: Reply(status=400, body=b"{}"))
    for stream in (False, True):
        refused = ask(client, scene, stream=stream)
        assert refused.status_code == 400
        assert refused.json()["detail"] == refused.json()["error"]["message"]
