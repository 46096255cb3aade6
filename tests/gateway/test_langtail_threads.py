"""Langtail's threads API against the real gateway and worker: CONTRACT rows 35-41."""

from __future__ import annotations

import re
import threading
from typing import Any

import httpx
import pytest

from tests.at_work import Scene, completion, said
from tests.gateway.langtail_calls import invoke, invoked, thread_of
from tests.loopback_provider import answers, hang_until
from tests.processes import until
from tests.served_gateway import ServedGateway

THREADS = "/v2/threads"
ASK = {"type": "function", "name": "ask_person", "parameters": {"type": "object", "properties": {}}}


def created(client: httpx.Client, **body: Any) -> str:
    """Begin a thread and return its id."""
    answer = client.post(THREADS, json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def add(client: httpx.Client, thread_id: str, content: str, **fields: Any) -> httpx.Response:
    return client.post(f"{THREADS}/{thread_id}/messages", json={"role": "user", "content": content, **fields})


def added(client: httpx.Client, thread_id: str, content: str, **fields: Any) -> str:
    """Add a message and return its id."""
    answer = add(client, thread_id, content, **fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def texts(client: httpx.Client, thread_id: str, **params: Any) -> list[str]:
    """Return the texts of the messages that a list tells."""
    listed = client.get(f"{THREADS}/{thread_id}/messages", params=params)
    assert listed.status_code == 200, listed.text
    return [message["content"]["content"] for message in listed.json()["data"]]


def refused(answer: httpx.Response, status: int, code: str) -> bool:
    """Return whether the answer is this error, in the envelope."""
    error = answer.json()["error"]
    return (answer.status_code, error["code"], set(error)) == (status, code, {"message", "type", "param", "code"})


def test_row_35_threads_are_listed_youngest_first_in_pages_behind_a_cursor(client: httpx.Client, scene: Scene) -> None:
    ids = [created(client) for _ in range(5)][::-1]
    first = client.get(THREADS, params={"limit": 2}).json()
    assert ([each["id"] for each in first["data"]], first["has_more"]) == (ids[:2], True)
    assert (first["object"], first["first_id"], first["last_id"]) == ("list", ids[0], ids[1])
    # A thread that is deleted meanwhile moves no page.
    client.delete(f"{THREADS}/{ids[1]}")
    second = client.get(THREADS, params={"limit": 2, "after": ids[1]}).json()
    last = client.get(THREADS, params={"limit": 2, "after": second["last_id"]}).json()
    assert [each["id"] for page in (second, last) for each in page["data"]] == ids[2:]
    assert (second["has_more"], last["has_more"]) == (True, False)
    assert len(client.get(THREADS).json()["data"]) == 4


def test_row_35_a_list_of_nothing_has_no_ends(client: httpx.Client) -> None:
    empty: dict[str, Any] = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert client.get(THREADS).json() == empty
    assert client.get(f"{THREADS}/{created(client)}/messages").json() == empty


@pytest.mark.parametrize(
    "params", [{"limit": 101}, {"limit": 0}, {"limit": "all"}, {"after": "thread_of_nobody"}], ids=str
)
def test_row_35_a_page_that_cannot_be_is_refused(client: httpx.Client, params: dict[str, Any]) -> None:
    answer = client.get(THREADS, params=params)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(params)))


def test_row_35_threads_of_jobs_are_threads_too(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("Hello."))
    thread_id = thread_of(invoked(client, scene, messages=["Hi"]))
    (thread,) = client.get(THREADS).json()["data"]
    assert (thread["id"], thread["projectId"], thread["metadata"]) == (thread_id, scene.workspace, None)


def test_row_36_a_thread_is_created_with_metadata_and_log_and_read_again(client: httpx.Client, scene: Scene) -> None:
    body = {"metadata": {"user": "Bo", "n": 1.5}, "createLog": {"messages": [{"role": "user"}]}}
    made = client.post(THREADS, json=body).json()
    assert made == client.get(f"{THREADS}/{made['id']}").json()
    assert {name: made[name] for name in ("metadata", "createLog", "projectId", "deletedAt")} == {
        **body,
        "projectId": scene.workspace,
        "deletedAt": None,
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made["createdAt"])
    scene.assistant()
    scene.replies(answers("Hello."))
    invoked(client, scene, threadId=made["id"], messages=["Hi"])
    assert texts(client, made["id"]) == ["Hi", "Hello."]
    assert client.get(f"{THREADS}/{made['id']}").json() == made


def test_row_37_an_update_replaces_the_metadata_whole(client: httpx.Client) -> None:
    thread_id = created(client, metadata={"a": 1, "b": 2})
    changed = client.post(f"{THREADS}/{thread_id}", json={"metadata": {"c": 3}}).json()
    assert changed["metadata"] == client.get(f"{THREADS}/{thread_id}").json()["metadata"] == {"c": 3}
    assert refused(client.post(f"{THREADS}/{thread_id}", json={}), 400, "invalid_request")


def test_row_38_a_deleted_thread_is_gone_with_its_messages(client: httpx.Client, scene: Scene) -> None:
    thread_id = created(client)
    message_id = added(client, thread_id, "Hi")
    answer = client.delete(f"{THREADS}/{thread_id}")
    assert answer.json() == {"id": thread_id, "object": "thread", "deleted": True}
    one, messages = f"{THREADS}/{thread_id}", f"{THREADS}/{thread_id}/messages"
    scene.assistant()
    for gone in (
        client.get(one),
        client.delete(one),
        client.post(one, json={"metadata": {}}),
        client.get(messages),
        client.get(f"{messages}/{message_id}"),
        client.delete(f"{messages}/{message_id}"),
        add(client, thread_id, "Hi"),
        invoke(client, scene, {"threadId": thread_id}),
    ):
        assert refused(gone, 404, "thread_not_found"), gone.text
    assert client.get(THREADS).json()["data"] == []
    assert scene.asked == []


def test_row_38_a_job_that_names_a_deleted_thread_begins_it_anew(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.plays(lambda *_: answers("ok"))
    invoked(client, scene, threadId="customer-7", messages=["old"], metadata={})
    client.post(f"{THREADS}/customer-7", json={"metadata": {"old": 1}})
    client.delete(f"{THREADS}/customer-7")
    # As a row of a file, or another program, names it.
    scene.succeeds("new", thread_id="customer-7")
    scene.succeeds("newer", thread_id="customer-7")
    assert [text for _, text in said(scene.asked[-1])] == ["Help.", "new", "ok", "newer"]
    assert texts(client, "customer-7") == ["new", "ok", "newer", "ok"]
    assert client.get(f"{THREADS}/customer-7").json()["metadata"] is None


def test_row_38_what_a_job_says_while_its_thread_is_deleted_is_not_kept(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    thread_id = created(client)
    deleted = threading.Event()
    scene.plays(lambda *_: hang_until(deleted, then=answers("late")))
    job_id = scene.enqueue("Hi", thread_id=thread_id)
    until(lambda: scene.asked, what="the job is at the provider")
    client.delete(f"{THREADS}/{thread_id}")
    deleted.set()
    (result,) = scene.works.results([job_id])
    assert result.output == "late"
    assert refused(client.get(f"{THREADS}/{thread_id}"), 404, "thread_not_found")
    assert scene.turns(thread_id) == []


def test_row_39_messages_are_listed_in_order_or_backwards_in_pages(client: httpx.Client) -> None:
    thread_id = created(client)
    ids = [added(client, thread_id, str(n)) for n in range(5)]
    assert texts(client, thread_id) == ["0", "1", "2", "3", "4"]
    assert texts(client, thread_id, order="desc", limit=2) == ["4", "3"]
    assert texts(client, thread_id, order="desc", limit=2, after=ids[3]) == ["2", "1"]
    page = client.get(f"{THREADS}/{thread_id}/messages", params={"limit": 2, "after": ids[1]}).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[2:4], True)
    assert (page["first_id"], page["last_id"]) == (ids[2], ids[3])
    one = client.get(f"{THREADS}/{thread_id}/messages/{ids[2]}").json()
    assert one == page["data"][0]
    assert (one["threadId"], one["content"], one["requestLogId"]) == (
        thread_id,
        {"role": "user", "content": "2"},
        None,
    )


def test_row_39_a_message_of_another_thread_is_unknown(client: httpx.Client) -> None:
    thread_id, other = created(client), created(client)
    message_id = added(client, other, "Hi")
    for wrong in (message_id, "msg_99999999999999999999", "msg_4294967297", "msg_0", "thread", "%00"):
        answer = client.get(f"{THREADS}/{thread_id}/messages/{wrong}")
        assert refused(answer, 404, "message_not_found"), answer.text
    listed = client.get(f"{THREADS}/{thread_id}/messages", params={"after": message_id})
    assert refused(listed, 400, "bad_cursor")
    assert refused(client.get(f"{THREADS}/%00/messages"), 404, "thread_not_found")


def test_row_40_a_created_message_is_what_the_next_invocation_continues(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("Bo."))
    thread_id = created(client)
    added(client, thread_id, "I am {{ name }}.", metadata={"by": "hand"})
    added(client, thread_id, "Noted.", role="assistant")
    invoked(client, scene, threadId=thread_id, messages=["Who am I?"])
    assert said(scene.asked[0])[1:] == [
        ("user", "I am {{ name }}."),
        ("assistant", "Noted."),
        ("user", "Who am I?"),
    ]
    listed = client.get(f"{THREADS}/{thread_id}/messages").json()["data"]
    assert [each["metadata"] for each in listed] == [{"by": "hand"}, None, None, None]


def test_row_40_only_a_messages_metadata_can_be_changed(client: httpx.Client) -> None:
    thread_id = created(client)
    path = f"{THREADS}/{thread_id}/messages/{added(client, thread_id, 'Hi', metadata={'a': 1})}"
    changed = client.post(path, json={"metadata": {"b": 2}, "content": "other"}).json()
    assert changed == client.get(path).json()
    assert (changed["metadata"], changed["content"]["content"]) == ({"b": 2}, "Hi")


def test_row_40_a_deleted_message_is_gone_for_the_worker_too(client: httpx.Client, scene: Scene) -> None:
    scene.assistant()
    scene.replies(answers("ok"))
    thread_id = created(client)
    first, second = (added(client, thread_id, text) for text in ("keep", "forget"))
    answer = client.delete(f"{THREADS}/{thread_id}/messages/{second}")
    assert answer.json() == {"id": second, "object": "message", "deleted": True}
    assert refused(client.get(f"{THREADS}/{thread_id}/messages/{second}"), 404, "message_not_found")
    assert texts(client, thread_id, after=first) == []
    invoked(client, scene, threadId=thread_id, messages=["go"])
    assert [text for _, text in said(scene.asked[0])] == ["Help.", "keep", "go"]
    assert texts(client, thread_id) == ["keep", "go", "ok"]


def test_row_40_no_message_parts_a_tool_call_from_its_answers(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(tools=[ASK])
    scene.replies(completion(calls=[("c1", "ask_person", {}), ("c2", "ask_person", {})]), answers("ok"))
    thread_id = thread_of(invoked(client, scene, messages=["go"]))
    assert refused(add(client, thread_id, "But"), 409, "tool_answers_missing")
    assert refused(add(client, thread_id, "?", role="tool", tool_call_id="c9"), 409, "no_such_call")
    answer_id = added(client, thread_id, "one", role="tool", tool_call_id="c1")
    assert refused(add(client, thread_id, "But"), 409, "tool_answers_missing")
    added(client, thread_id, "two", role="tool", tool_call_id="c2")
    invoked(client, scene, threadId=thread_id, messages=["go on"])
    assert [role for role, _ in said(scene.asked[1])] == ["system", "user", "assistant", "tool", "tool", "user"]

    messages = f"{THREADS}/{thread_id}/messages"
    assert refused(client.delete(f"{messages}/{answer_id}"), 409, "answers_a_tool_call")
    calling = client.get(messages).json()["data"][1]
    assert client.delete(f"{messages}/{calling['id']}").status_code == 200
    assert texts(client, thread_id) == ["go", "go on", "ok"]


def test_row_40_messages_that_are_written_while_turns_are_settled_are_all_kept(
    client: httpx.Client, scene: Scene
) -> None:
    scene.assistant()
    scene.plays(lambda *_: answers("ok"))
    thread_id = created(client)
    jobs = [scene.enqueue(f"job {n}", thread_id=thread_id) for n in range(20)]
    for n in range(40):
        added(client, thread_id, f"hand {n}")
    assert all(result.succeeded for result in scene.works.results(jobs))
    kept = texts(client, thread_id)
    assert sorted(kept) == sorted([f"hand {n}" for n in range(40)] + [f"job {n}" for n in range(20)] + ["ok"] * 20)
    assert [text for text in kept if text.startswith("hand")] == [f"hand {n}" for n in range(40)]
    # A turn stays together.
    assert all(kept[at + 1] == "ok" for at, text in enumerate(kept) if text.startswith("job"))


def test_row_41_every_error_has_the_envelope(gateway: ServedGateway, client: httpx.Client) -> None:
    assert refused(httpx.get(f"{gateway.url}{THREADS}"), 401, "missing_api_key")
    assert refused(client.get(f"{THREADS}/unknown"), 404, "thread_not_found")
    assert refused(client.post(THREADS, json={"metadata": 1}), 400, "invalid_request")
    assert refused(
        client.post(THREADS, content=b"{", headers={"content-type": "application/json"}), 400, "invalid_request"
    )
    assert refused(client.put(THREADS), 405, "method_not_allowed")
    thread_id = created(client)
    assert refused(client.post(f"{THREADS}/{thread_id}/messages", json={"role": "robot"}), 400, "invalid_request")
    assert refused(client.post(f"{THREADS}/{thread_id}/messages", json={"role": "tool"}), 400, "invalid_request")


def test_threads_of_another_workspace_are_as_those_that_do_not_exist(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    thread_id = created(client)
    message_id = added(client, thread_id, "Hi")
    with gateway.client(Scene(scene.works).workspace) as foreign:
        for suffix in ("", "/messages", f"/messages/{message_id}"):
            assert refused(foreign.get(f"{THREADS}/{thread_id}{suffix}"), 404, "thread_not_found")
        mine = created(foreign)
        assert refused(foreign.get(f"{THREADS}/{mine}/messages/{message_id}"), 404, "message_not_found")
        assert [each["id"] for each in foreign.get(THREADS).json()["data"]] == [mine]
