"""What a key with shared assistants sees and may do (producer/gateway/access.py), in every dialect alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from producer.written_job import WrittenJob
from tests.at_work import Scene, Works
from tests.gateway.own import problem
from tests.loopback_provider import answers, hang_until
from tests.openai_batches import create, ended, jsonl, request_line
from tests.processes import until
from tests.served_gateway import ServedGateway

_BYTES_BELOW_ANY_JOB = 200
SAID = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def mine(gateway: ServedGateway, scene: Scene) -> Iterator[httpx.Client]:
    """A key that the scene's assistant alone is shared with."""
    scene.assistant()
    scene.plays(lambda _body, _n: answers("Yes."))
    with gateway.client(scene.workspace, assistants=[scene.address]) as client:
        yield client


@pytest.fixture
def others(gateway: ServedGateway, scene: Scene, mine: httpx.Client) -> Iterator[httpx.Client]:
    """A key of the same workspace, that another assistant of the same model is shared with, `…/tests/others`."""
    address = f"{scene.workspace}/tests/others"
    scene.works.assistants.apply(scene.assistant().model_copy(update={"assistant": address}))
    with gateway.client(scene.workspace, assistants=[address]) as client:
        yield client


@pytest.mark.parametrize("named", ["langdock", "langtail", "agent"])
def test_no_assistant_that_a_service_hosts_comes_over_http(client: httpx.Client, scene: Scene, named: str) -> None:
    hosted = {"provider": named, "provider_assistant": "acme/private/bot/production"}
    answer = client.put("/v1/assistants/p/a", json=hosted)
    assert problem(answer) == (403, "provider_not_allowed")
    ours = client.put("/v1/assistants/p/a", json={"model": scene.model, "instructions": "Help."})
    assert ours.status_code == 200
    assert problem(client.put("/v1/assistants/p/a", json=hosted)) == (403, "provider_not_allowed")
    assert "provider" not in client.get("/v1/assistants/p/a").json()["config"]


def test_what_a_file_says_of_a_service_stays_when_the_rest_is_changed_over_http(
    client: httpx.Client, scene: Scene
) -> None:
    hosted = {"provider": "langtail", "provider_assistant": "acme/p/bot/production"}
    scene.assistant(**hosted)
    path = f"/v1/assistants/{scene.address.partition('/')[2]}"
    same = {"model": scene.model, "instructions": "Help more.", **hosted}
    assert client.put(path, json=same).json()["version"] == 2
    assert client.put(path, json={**same, "environment": "staging"}).json()["version"] == 2
    for other in ({"provider_assistant": "acme/p/other/production"}, {"provider": "langdock"}):
        assert problem(client.put(path, json=same | other)) == (403, "provider_not_allowed")
    told = {"assistantId": scene.address, "instruction": "Help even more."}
    assert client.patch("/assistant/v1/update", json=told).status_code == 200
    shown = client.get(path).json()["config"]
    assert {name: shown[name] for name in hosted} == hosted


def test_a_plain_model_is_for_keys_that_inline_is_shared_with(
    gateway: ServedGateway, scene: Scene, mine: httpx.Client
) -> None:
    chat = {"model": scene.model, "messages": SAID}
    temporary = {"assistant": {"name": "a", "instructions": "b", "model": scene.model}, "messages": SAID}
    inline = {"inline": {"name": "a", "model": scene.model}, "messages": SAID}
    refused = mine.post("/v1/chat/completions", json=chat)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "assistant_not_shared")
    assert mine.post("/assistant/v1/chat/completions", json=temporary).status_code == 403
    assert problem(mine.post("/v1/jobs", json=inline)) == (403, "assistant_not_shared")
    batch = ended(mine, create(mine, jsonl([request_line("a", scene.model, "Hi")]))["id"])
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "assistant_not_shared")
    assert scene.asked == []
    with gateway.client(scene.workspace, assistants=[f"{scene.workspace}/inline/inline"]) as plain:
        assert plain.post("/v1/chat/completions", json=chat).status_code == 200
        assert plain.post("/assistant/v1/chat/completions", json=temporary).status_code == 200
        assert plain.post("/v1/jobs?wait_s=30", json=inline).json()["status"] == "succeeded"
        batch = ended(plain, create(plain, jsonl([request_line("a", scene.model, "Hi")]))["id"])
        assert batch["request_counts"]["completed"] == 1


def test_a_thread_is_of_the_keys_that_its_jobs_assistants_are_shared_with_in_every_dialect(
    client: httpx.Client, scene: Scene, mine: httpx.Client, others: httpx.Client
) -> None:
    thread_id = mine.post(f"/{scene.address}/production", json={"messages": SAID}).headers["x-langtail-thread-id"]
    path = f"/v2/threads/{thread_id}"
    message = mine.get(f"{path}/messages").json()["data"][0]["id"]
    kept = client.get(f"{path}/messages").json()
    for method, behind, body in (
        ("GET", "", None),
        ("POST", "", {"metadata": {"a": "b"}}),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("POST", "/messages", {"role": "user", "content": "Hi"}),
        ("GET", f"/messages/{message}", None),
        ("POST", f"/messages/{message}", {"metadata": {"a": "b"}}),
        ("DELETE", f"/messages/{message}", None),
    ):
        theirs = others.request(method, path + behind, json=body)
        assert (theirs.status_code, theirs.json()["error"]["code"]) == (404, "thread_not_found"), (method, behind)
    assert client.get(f"{path}/messages").json() == kept
    assert others.get("/v2/threads").json()["data"] == others.get("/v1/threads").json()["data"] == []
    assert others.get("/v2/threads", params={"after": thread_id}).status_code == 400
    assert [each["id"] for each in mine.get("/v2/threads").json()["data"]] == [thread_id]


def test_a_thread_that_a_key_began_is_its_own_until_another_assistant_speaks_in_it(
    client: httpx.Client, scene: Scene, mine: httpx.Client, others: httpx.Client
) -> None:
    thread_id = mine.post("/v2/threads", json={}).json()["id"]
    path = f"/v2/threads/{thread_id}"
    assert [each.get(path).status_code for each in (client, mine, others)] == [200, 200, 404]
    said = {"messages": SAID, "threadId": thread_id}
    assert others.post(f"/{scene.workspace}/tests/others/production", json=said).status_code == 404
    assert mine.post(f"/{scene.address}/production", json=said).status_code == 200
    assert client.post(f"/{scene.workspace}/tests/others/production", json=said).status_code == 200
    assert [each.get(path).status_code for each in (client, mine, others)] == [200, 404, 404]
    whole = client.post("/v2/threads", json={}).json()["id"]
    assert mine.get(f"/v2/threads/{whole}").status_code == 404


def test_nobody_goes_on_with_a_conversation_of_an_assistant_that_is_not_shared_with_the_key(
    scene: Scene, mine: httpx.Client, others: httpx.Client
) -> None:
    agents = "/api/v1/compatibility/openai/v1/agents"
    name = scene.address.rpartition("/")[2]
    begun = mine.post(f"{agents}/tests:{name}/chat/completions", json={"messages": SAID, "create_session": True}).json()
    session = begun["session_id"]
    asked = len(scene.asked)
    stored = {"messages": SAID, "store_in_session": session}
    job = {"assistant": "tests/others", "messages": SAID, "thread_id": session}
    csv = f"message,thread_id\nHi,{session}\n"
    rows = others.post(
        "/v1/job-batches", content=csv, headers={"content-type": "text/csv"}, params={"assistant": "tests/others"}
    )
    assert others.post(f"{agents}/tests:others/chat/completions", json=stored).status_code == 404
    invoked = others.post(f"/{scene.workspace}/tests/others/production", json={"messages": SAID, "threadId": session})
    assert (invoked.status_code, invoked.json()["error"]["code"]) == (404, "thread_not_found")
    assert problem(others.post("/v1/jobs", json=job)) == (404, "thread_unknown")
    assert problem(others.post("/v1/job-batches", json={"jobs": [job]})) == (404, "thread_unknown")
    assert problem(rows) == (404, "thread_unknown")
    assert len(scene.asked) == asked
    assert mine.post(f"{agents}/tests:{name}/chat/completions", json=stored).status_code == 200


def test_nobody_waits_behind_a_job_of_others_to_hear_what_it_says(
    scene: Scene, mine: httpx.Client, others: httpx.Client
) -> None:
    goes_on = threading.Event()
    scene.plays(lambda _body, _n: hang_until(goes_on, then=answers("Secret.")))
    job = {"messages": SAID, "thread_id": "t"}
    try:
        assert mine.post("/v1/jobs", json={"assistant": scene.address, **job}).status_code == 202
        assert problem(others.post("/v1/jobs", json={"assistant": "tests/others", **job})) == (404, "thread_unknown")
    finally:
        goes_on.set()


def test_of_two_keys_that_begin_a_thread_in_the_same_moment_one_alone_gets_it(works: Works, scene: Scene) -> None:
    scene.assistant()
    address = f"{scene.workspace}/tests/others"
    works.assistants.apply(scene.assistant().model_copy(update={"assistant": address}))
    scene.plays(lambda _body, _n: answers("Secret."))
    job = {"messages": SAID, "thread_id": "t"}
    found: dict[str, httpx.Response] = {}

    def begin(key: httpx.Client, assistant: str) -> None:
        found[assistant] = key.post("/v1/jobs", json={"assistant": assistant, **job}, params={"wait_s": 30})

    redis_url = works.settings["ASSISTQ_REDIS_URL"]
    named = redis_url + ("&" if "?" in redis_url else "?") + "client_name=gateway"
    with ServedGateway(works, ASSISTQ_REDIS_URL=named) as gateway, ExitStack() as stack:
        keys = {
            each: stack.enter_context(gateway.client(scene.workspace, assistants=[each]))
            for each in (scene.address, address)
        }
        # Both look, and neither can enqueue before the other has looked.
        works.redis.client_pause(60_000, all=False)
        try:
            threads = [threading.Thread(target=begin, args=(key, each)) for each, key in keys.items()]
            for thread in threads:
                thread.start()
            until(lambda: _held_up(works) == 2, what="both are about to enqueue")
        finally:
            works.redis.client_unpause()
        for thread in threads:
            thread.join(60)
        ends = {each: found[each].json() for each in keys}
        assert sorted(end["status"] for end in ends.values()) == ["failed", "succeeded"], ends
        (first,) = [each for each, end in ends.items() if end["status"] == "succeeded"]
        (second,) = set(keys) - {first}
        assert ends[second]["error"]["code"] == "thread_unknown"
        assert len(scene.asked) == 1
        # Whoever was first goes on, as if the other had never come.
        assert keys[first].get("/v1/threads/t").status_code == 200
        assert keys[second].get("/v1/threads/t").status_code == 404
        begin(keys[first], first)
        assert found[first].json()["status"] == "succeeded"


def _held_up(works: Works) -> int:
    """Return how many enqueues of the gateway Redis holds back: what else it may hold has no job among its words."""
    return sum(
        each["name"] == "gateway" and "b" in each["flags"] and int(each["argv-mem"]) > _BYTES_BELOW_ANY_JOB
        for each in works.redis.client_list()
    )


def test_rows_of_a_file_are_bound_to_the_keys_assistants_too(works: Works, scene: Scene) -> None:
    scene.assistant()
    scene.plays(lambda _body, _n: answers("Yes."))
    scene.succeeds("Hi", thread_id="t")
    row = WrittenJob(
        json=scene.job("Hi", thread_id="t").model_dump_json(exclude_defaults=True).encode(),
        workspace=scene.workspace,
        route=scene.job().route,
        thread_id="t",
    )
    ids = []
    for within in ([f"{scene.workspace}/tests/others"], [scene.address]):
        batch = works.producer.enqueue_many([row], within=within)
        ids.append(f"{batch.id}.0")
    assert [each.error_code for each in works.results(ids)] == ["thread_unknown", None]


def test_a_job_that_failed_is_not_retried_in_a_thread_that_became_anothers(
    client: httpx.Client, scene: Scene, others: httpx.Client
) -> None:
    job = {"assistant": "tests/others", "messages": SAID, "thread_id": "t"}
    failed = others.post("/v1/jobs?wait_s=30", json={**job, "environment": "none"}).json()
    batch = others.post("/v1/job-batches", json={"jobs": [{**job, "environment": "none"}]}).json()["id"]
    until(lambda: others.get(f"/v1/job-batches/{batch}").json()["status"] == "completed", what="the batch ends")
    said = client.post("/v1/jobs?wait_s=30", json={**job, "assistant": scene.address}).json()
    assert (failed["status"], said["status"]) == ("failed", "succeeded")
    assert problem(others.post(f"/v1/jobs/{failed['id']}/retry")) == (404, "thread_unknown")
    assert problem(others.post(f"/v1/job-batches/{batch}/retry")) == (404, "thread_unknown")


def test_files_and_batches_are_seen_by_keys_that_have_all_of_their_makers_assistants(
    gateway: ServedGateway, client: httpx.Client, scene: Scene, mine: httpx.Client, others: httpx.Client
) -> None:
    batch = ended(mine, create(mine, jsonl([request_line("a", scene.address, "Hi")]))["id"])
    files = [batch["input_file_id"], batch["output_file_id"]]
    for file_id in files:
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            assert others.request(method, f"/v1/files/{file_id}{path}").status_code == 404
        assert others.get("/v1/files", params={"after": file_id}).status_code == 400
        asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        assert others.post("/v1/batches", json=asked).status_code == 404
    assert others.get(f"/v1/batches/{batch['id']}").status_code == 404
    assert others.post(f"/v1/batches/{batch['id']}/cancel").status_code == 404
    assert others.get("/v1/batches", params={"after": batch["id"]}).status_code == 400
    assert others.get("/v1/files").json()["data"] == others.get("/v1/batches").json()["data"] == []
    both = [scene.address, f"{scene.workspace}/tests/others"]
    with gateway.client(scene.workspace, assistants=both) as wider:
        for key in (mine, wider, client):
            assert {each["id"] for each in key.get("/v1/files").json()["data"]} == set(files)
            assert [each["id"] for each in key.get("/v1/batches").json()["data"]] == [batch["id"]]
            assert key.get(f"/v1/files/{files[1]}/content").status_code == 200
        theirs = ended(wider, create(wider, jsonl([request_line("a", scene.address, "Hi")]))["id"])
    assert mine.get(f"/v1/batches/{theirs['id']}").status_code == 404
    assert client.get("/v1/batches").json()["data"][0]["id"] == theirs["id"]


def test_an_attachment_is_its_makers_and_an_assistants_own_go_with_it(
    client: httpx.Client, scene: Scene, mine: httpx.Client, others: httpx.Client
) -> None:
    def uploaded(by: httpx.Client) -> str:
        answer = by.post("/attachment/v1/upload", files={"file": ("a.txt", b"The secret is 7.")})
        return str(answer.raise_for_status().json()["attachmentId"])

    def asks(by: httpx.Client, assistant: str, *attached: str) -> int:
        said = {"role": "user", "content": "Hi", "attachmentIds": attached}
        told = {"assistantId": assistant, "messages": [said]}
        return by.post("/assistant/v1/chat/completions", json=told).status_code

    own = uploaded(mine)
    theirs = f"{scene.workspace}/tests/others"
    assert asks(mine, scene.address, own) == 200
    assert asks(others, theirs, own) == 404
    assert others.post("/assistant/v1/create", json={"name": "A", "attachments": [own]}).status_code == 404
    assert others.request("DELETE", "/attachment/v1/delete", json={"attachmentId": own}).status_code == 404
    whole = uploaded(client)
    told = {"assistantId": theirs, "attachments": [whole]}
    assert client.patch("/assistant/v1/update", json=told).status_code == 200
    assert asks(others, theirs) == 200
    assert "The secret is 7." in str(scene.asked[-1])
    assert others.patch("/assistant/v1/update", json=told).status_code == 200
    assert others.request("DELETE", "/attachment/v1/delete", json={"attachmentId": whole}).status_code == 404
