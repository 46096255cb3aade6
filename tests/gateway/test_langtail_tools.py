"""Tools and streams in Langtail's dialect, through the real worker: CONTRACT rows 24-26 and 28."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx

from tests.at_work import AT_HOME, Scene, completion, said
from tests.gateway.langtail_calls import invoke, invoked, text_of, thread_of
from tests.loopback_http import DEADLINE_S, LoopbackHttp, Told
from tests.loopback_provider import Reply, answers
from tests.served_gateway import ServedGateway

ASK = {"name": "ask_person", "description": "Ask.", "parameters": {"type": "object", "properties": {}}}
COUNT = {"type": "python", "name": "word_count"}


def events_of(answer: httpx.Response) -> list[Any]:
    """Return the data of the events of a stream that ends as it should."""
    assert answer.status_code == 200, answer.text
    *events, done = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def said_in(events: list[Any]) -> str:
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)


def answered(body: Any) -> list[tuple[str, str]]:
    return [(each["tool_call_id"], each["content"]) for each in body["messages"] if each["role"] == "tool"]


def test_row_24_the_calls_of_one_turn_run_at_once_and_all_are_answered_before_the_model_goes_on(
    gateway: ServedGateway,
) -> None:
    together = threading.Barrier(2)

    def answer(asked: Any) -> Told:
        # Neither is answered before both were asked for.
        together.wait(DEADLINE_S)
        return Told(f"at {asked.target}".encode())

    home = Scene(gateway.works, workspace=AT_HOME)
    with LoopbackHttp(answer) as server, gateway.client(AT_HOME) as client:
        home.assistant(tools=[{"type": "http", "name": each, "url": f"{server.url}/{each}"} for each in ("a", "b")])
        home.replies(completion(calls=[("c1", "a", {}), ("c2", "b", {})]), answers("Done."))
        answered_so = invoked(client, home, messages=["go"])
    assert text_of(answered_so) == "Done."
    assert answered(home.asked[1]) == [("c1", "at /a"), ("c2", "at /b")]
    assert [role for role, _ in home.turns(thread_of(answered_so))] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]


def test_row_25_hosted_tools_run_on_the_server_and_their_errors_go_to_the_model(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant(tools=[COUNT])
    calls = [("c1", "word_count", {"text": "a b"}), ("c2", "word_count", {"txt": 1}), ("c3", "unheard_of", {})]
    scene.replies(completion(calls=calls), answers("Two."))
    assert text_of(invoked(client, scene, messages=["count"])) == "Two."
    (_, counted), (_, refused), (_, unknown) = answered(scene.asked[1])
    assert json.loads(counted)["words"] == 2
    assert "the arguments do not fit" in refused
    assert "there is no tool 'unheard_of'" in unknown


def test_row_25_a_model_that_only_calls_tools_meets_the_assistants_step_limit(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant(tools=[COUNT], max_steps=2)
    scene.plays(lambda *_: completion(calls=[("c", "word_count", {"text": "a"})]))
    answer = invoke(client, scene, {"messages": [{"role": "user", "content": "go"}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "step_limit")
    assert len(scene.asked) == 2


def test_row_25_a_tool_of_the_request_runs_on_the_server_only_where_the_assistant_hosts_it(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant(tools=[COUNT])
    hosted = {"type": "function", "function": {"name": "word_count", "description": "?", "handler": {"enabled": True}}}
    feigned = {"type": "function", "function": {**ASK, "handler": {"enabled": True}}}
    scene.replies(
        completion(calls=[("c1", "word_count", {"text": "a b"})]), completion(calls=[("c2", "ask_person", {})])
    )
    body = invoked(client, scene, messages=["go"], tools=[hosted, feigned]).json()
    assert json.loads(answered(scene.asked[1])[0][1])["words"] == 2
    assert [call["id"] for call in body["choices"][0]["message"]["tool_calls"]] == ["c2"]


def test_row_26_calls_of_the_callers_tools_come_back_and_the_thread_waits_for_their_answers(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant()
    call = ("c1", "ask_person", {"q": "Which?"})
    scene.replies(completion("One moment.", calls=[call]), answers("Blue it is."))
    tool = {"type": "function", "function": {"id": "internal", **ASK}}
    first = invoked(client, scene, messages=["What colour?"], tools=[tool])
    choice = first.json()["choices"][0]
    assert scene.asked[0]["tools"] == [{"type": "function", "function": ASK}]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "One moment.")
    asked = {"name": "ask_person", "arguments": json.dumps(call[2])}
    assert choice["message"]["tool_calls"] == [{"id": "c1", "type": "function", "function": asked}]

    thread_id = thread_of(first)
    too_early = invoke(client, scene, {"threadId": thread_id, "messages": [{"role": "user", "content": "And?"}]})
    assert (too_early.status_code, too_early.json()["error"]["code"]) == (400, "tool_answers_missing")
    answer = {"role": "tool", "content": "Blue.", "tool_call_id": "c1"}
    assert text_of(invoke(client, scene, {"threadId": thread_id, "messages": [answer]})) == "Blue it is."
    assert [role for role, _ in said(scene.asked[-1])] == ["system", "user", "assistant", "tool"]


def test_row_26_an_empty_list_of_tools_removes_the_stored_ones(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(tools=[COUNT], tool_choice="auto")
    scene.replies(answers("ok"))
    invoked(client, scene, messages=["Hi"], tools=[])
    assert set(scene.asked[0]) == {"model", "messages"}


def test_row_28_a_stream_is_chunks_and_done_and_the_thread_is_saved_after_it(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant()
    scene.replies(answers("Hello, Bo."), answers("Bo."))
    answer = invoked(client, scene, messages=["I am Bo."], stream=True)
    events = events_of(answer)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert said_in(events) == "Hello, Bo."
    assert [event["choices"][0]["finish_reason"] for event in events][-1] == "stop"
    thread_id = thread_of(answer)
    assert scene.turns(thread_id) == [("user", "I am Bo."), ("assistant", "Hello, Bo.")]
    assert said_in(events_of(invoked(client, scene, messages=["Who?"], stream=True, threadId=thread_id))) == "Bo."
    assert len(scene.asked[1]["messages"]) == 4


def test_row_28_the_callers_tool_calls_are_streamed_too(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(tools=[{"type": "function", **ASK}])
    scene.replies(completion(calls=[("c1", "ask_person", {"q": "Which?"})]))
    events = events_of(invoked(client, scene, messages=["go"], stream=True))
    calls = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls") or ()]
    assert (calls[0]["id"], calls[0]["function"]["name"]) == ("c1", "ask_person")
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"q": "Which?"}
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_row_28_what_fails_before_the_first_token_is_answered_as_json(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(Reply(status=400, body=b'{"error": {"message": "no such thing"}}'))
    answer = invoke(client, scene, {"messages": [{"role": "user", "content": "Hi"}], "stream": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "request_refused"
