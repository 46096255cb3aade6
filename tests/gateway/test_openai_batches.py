"""Batches and files as OpenAI has them."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import Session, col, select

from producer.gateway.dialects.openai.batching.request_lines import MAX_LINE_BYTES
from producer.gateway.dialects.openai.batching.store import NewBatch, OpenAIBatches
from schemas import names
from schemas.tables import Batch, FileChunk, OpenAIBatch, StoredFile
from tests.at_work import Scene, completion
from tests.loopback_provider import Reply, answers, hang_until, status
from tests.openai_batches import create, ended, jsonl, lines_of, look, request_line, upload
from tests.processes import until
from tests.served_gateway import ServedGateway


def test_every_request_is_in_one_of_the_two_files_under_its_custom_id(client: httpx.Client, scene: Scene) -> None:
    def script(body: Any, _n: int) -> Reply:
        match body["messages"][-1]["content"]:
            case "refuse":
                return status(400, {"error": {"message": "no such thing", "type": "invalid_request_error"}})
            case "call":
                return completion(calls=[("c1", "weather", {})])
            case text:
                return answers(f"You said {text}.")

    scene.plays(script)
    weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    lines = [
        request_line("a", scene.model, "one"),
        request_line("b", scene.model, "refuse"),
        request_line("c", scene.model, "call", tools=[weather]),
    ]
    batch = create(client, jsonl([*lines[:1], "", *lines[1:]]), metadata={"night": "1"})
    assert batch["status"] == "validating"
    assert batch["metadata"] == {"night": "1"}
    assert batch["expires_at"] == batch["created_at"] + 24 * 3600
    batch = ended(client, batch["id"])
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 3, "completed": 2, "failed": 1})
    assert batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]
    first, called = lines_of(client, batch["output_file_id"])
    assert (first["custom_id"], called["custom_id"], first["error"]) == ("a", "c", None)
    assert first["response"]["status_code"] == 200
    body = first["response"]["body"]
    assert (body["object"], body["choices"][0]["message"]["content"]) == ("chat.completion", "You said one.")
    assert batch["usage"]["total_tokens"] >= body["usage"]["total_tokens"] > 0
    assert called["response"]["body"]["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
    (refused,) = lines_of(client, batch["error_file_id"])
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("b", 400)
    assert refused["response"]["body"]["error"]["code"] == "request_refused"
    assert len(scene.asked) == 3
    assert not scene.has_thread(f"thread_{first['response']['request_id']}")
    file = client.get(f"/v1/files/{batch['output_file_id']}").json()
    assert (file["purpose"], file["expires_at"]) == ("batch_output", None)


def test_all_gateways_are_told_when_a_batch_is_made_and_when_its_last_row_has_ended(
    client: httpx.Client, gateway: ServedGateway, scene: Scene
) -> None:
    scene.plays(lambda _body, _n: answers("Yes."))
    with gateway.works.redis.pubsub(ignore_subscribe_messages=True) as words:
        words.subscribe(names.BATCHES_CHANNEL)
        until(lambda: gateway.works.redis.pubsub_numsub(names.BATCHES_CHANNEL)[0][1] == 2, what="we listen too")
        batch_id = ended(client, create(client, jsonl([request_line("a", scene.model, "Hi")]))["id"])["id"]
        heard: list[str] = []

        def hears_two() -> bool:
            word = words.get_message(timeout=1)
            heard.extend([] if word is None else [word["data"].decode()])
            return len(heard) == 2

        until(hears_two, what="both words come")
    assert heard == [batch_id, batch_id]


def test_a_file_with_any_faulty_line_fails_whole_and_says_which_and_nothing_is_asked(
    client: httpx.Client, scene: Scene
) -> None:
    good = request_line("good", scene.model, "Hi")
    faulty = [
        good,
        "{no json",
        "[]",
        {**good, "custom_id": None},
        good,
        {**good, "custom_id": "m", "method": "GET"},
        {**good, "custom_id": "u", "url": "/v1/embeddings"},
        {**good, "custom_id": "b", "body": {"model": scene.model, "messages": "hello"}},
        {**good, "custom_id": "s", "body": {**good["body"], "stream": True}},
        {**good, "custom_id": "n", "body": None},
    ]
    batch = ended(client, create(client, jsonl(faulty))["id"])
    assert (batch["status"], batch["output_file_id"], batch["error_file_id"]) == ("failed", None, None)
    assert batch["failed_at"] is not None
    told = [(fault["line"], fault["code"], fault["param"]) for fault in batch["errors"]["data"]]
    assert told == [
        (2, "invalid_json_line", None),
        (3, "invalid_json_line", None),
        (4, "missing_required_parameter", "custom_id"),
        (5, "duplicate_custom_id", "custom_id"),
        (6, "invalid_method", "method"),
        (7, "invalid_url", "url"),
        (8, "invalid_request", "body.messages"),
        (9, "invalid_request", "body.stream"),
        (10, "missing_required_parameter", "body"),
    ]
    assert not scene.asked
    many = ended(client, create(client, b"{\n" * 500)["id"])
    assert len(many["errors"]["data"]) == 100
    empty = ended(client, create(client, b"\n \n")["id"])
    assert [fault["code"] for fault in empty["errors"]["data"]] == ["empty_file"]
    assert client.post(f"/v1/batches/{batch['id']}/cancel").status_code == 409


def test_a_line_that_cannot_be_read_is_named_by_its_number_blank_ones_counted(
    client: httpx.Client, scene: Scene
) -> None:
    good = jsonl([request_line("a", scene.model, "Hi")])
    too_long = b'"' + b"x" * MAX_LINE_BYTES + b'"\n'
    batch = ended(client, create(client, good + b"\r\n" + b'{"custom_id": "\xff"}\n' + good + too_long)["id"])
    told = [(fault["line"], fault["code"]) for fault in batch["errors"]["data"]]
    assert (batch["status"], told) == (
        "failed",
        [(3, "invalid_json_line"), (4, "duplicate_custom_id"), (5, "line_too_long")],
    )


def test_a_file_may_have_a_byte_order_mark_windows_ends_blank_lines_and_several_models(
    client: httpx.Client, scene: Scene
) -> None:
    scene.plays(lambda _body, _n: answers("Yes."))
    models = [scene.model, f"{scene.model}-2"]
    scene.works.scripts[models[1]] = scene.works.scripts[models[0]]
    lines = jsonl(request_line(model, model, "Hi") for model in models).replace(b"\n", b"\r\n\r\n")
    batch = ended(client, create(client, b"\xef\xbb\xbf" + lines.rstrip())["id"])
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 2)
    answered = {
        line["custom_id"]: line["response"]["body"]["model"] for line in lines_of(client, batch["output_file_id"])
    }
    assert answered == {model: model for model in models}


def test_a_batch_that_is_cancelled_tells_what_was_answered_and_what_never_ran(
    client: httpx.Client, scene: Scene
) -> None:
    held = threading.Event()
    scene.plays(lambda body, _n: answers("done") if body["messages"][-1]["content"] == "0" else hang_until(held))
    batch = create(client, jsonl(request_line(f"r{n}", scene.model, str(n)) for n in range(40)))
    until(lambda: look(client, batch["id"])["request_counts"]["completed"] == 1, what="the first is answered")
    running = look(client, batch["id"])
    assert (running["status"], running["request_counts"]["total"]) == ("in_progress", 40)
    cancelled = client.post(f"/v1/batches/{batch['id']}/cancel").json()
    assert (cancelled["status"], cancelled["output_file_id"]) == ("cancelling", None)
    held.set()
    batch = ended(client, batch["id"])
    assert batch["status"] == "cancelled"
    assert batch["cancelling_at"] <= batch["cancelled_at"]
    answered = lines_of(client, batch["output_file_id"])
    rest = lines_of(client, batch["error_file_id"])
    assert {line["custom_id"] for line in answered + rest} == {f"r{n}" for n in range(40)}
    assert len(answered) + len(rest) == 40
    assert "r0" in {line["custom_id"] for line in answered}
    assert {(line["error"]["code"], line["response"]) for line in rest} == {("batch_cancelled", None)}
    assert len(scene.asked) < 40
    # Once more is no fault.
    assert client.post(f"/v1/batches/{batch['id']}/cancel").json()["status"] == "cancelled"


def test_a_batch_whose_day_is_over_has_expired_and_its_answers_can_be_had(
    client: httpx.Client, scene: Scene, gateway: ServedGateway
) -> None:
    held = threading.Event()
    scene.plays(lambda body, _n: answers("done") if body["messages"][-1]["content"] == "0" else hang_until(held))
    batch = create(client, jsonl(request_line(f"r{n}", scene.model, str(n)) for n in range(40)))
    until(lambda: look(client, batch["id"])["request_counts"]["completed"] == 1, what="the first is answered")
    # The day is over: as worker/queue has it, with the time that the batch was given.
    redis = gateway.works.redis
    redis.zadd("aq:expiring", {batch["id"]: 1})
    redis.hset(f"aq:batch:{batch['id']}", "expires_ms", 1)
    until(lambda: redis.hexists(f"aq:batch:{batch['id']}", "expired_ms"), what="the batch expires")
    held.set()
    batch = ended(client, batch["id"])
    assert (batch["status"], batch["expired_at"] is not None) == ("expired", True)
    assert "r0" in {line["custom_id"] for line in lines_of(client, batch["output_file_id"])}
    assert {line["error"]["code"] for line in lines_of(client, batch["error_file_id"])} == {"batch_expired"}


def test_rows_that_a_cancelled_batch_never_took_are_in_its_error_file(
    client: httpx.Client, scene: Scene, gateway: ServedGateway
) -> None:
    batch = create(client, jsonl(request_line(f"r{n}", scene.model, "Hi") for n in range(3)))
    batch = ended(client, batch["id"])
    # As one whose last row was not enqueued when it was cancelled.
    with gateway.works.engine.begin() as connection:
        connection.execute(
            update(OpenAIBatch)
            .where(col(OpenAIBatch.id) == batch["id"])
            .values(total=4, ended_at=None, input_file_id=upload(client, _four(scene))["id"])
        )
        connection.execute(update(Batch).where(col(Batch.id) == batch["id"]).values(state="cancelled"))
    gateway.works.redis.publish(names.BATCHES_CHANNEL, batch["id"])
    until(lambda: look(client, batch["id"])["error_file_id"], what="the files are written again")
    assert len(lines_of(client, look(client, batch["id"])["output_file_id"])) == 3
    (never,) = lines_of(client, look(client, batch["id"])["error_file_id"])
    assert (never["custom_id"], never["error"]["code"]) == ("r3", "batch_cancelled")


def _four(scene: Scene) -> bytes:
    return jsonl(request_line(f"r{n}", scene.model, "Hi") for n in range(4))


def test_batches_are_listed_newest_first_by_pages_and_other_workspaces_see_none(
    gateway: ServedGateway, scene: Scene
) -> None:
    workspace = f"{scene.workspace}-list"
    with gateway.client(workspace) as client, gateway.client(f"{workspace}-other") as other:
        made = [create(client, b"{")["id"] for _ in range(3)]
        page = client.get("/v1/batches", params={"limit": 2}).json()
        assert [batch["id"] for batch in page["data"]] == [made[2], made[1]]
        assert (page["object"], page["has_more"]) == ("list", True)
        assert (page["first_id"], page["last_id"]) == (made[2], made[1])
        rest = client.get("/v1/batches", params={"after": page["last_id"]}).json()
        assert ([batch["id"] for batch in rest["data"]], rest["has_more"]) == ([made[0]], False)
        assert other.get("/v1/batches").json()["data"] == []
        file_id = client.get(f"/v1/batches/{made[0]}").json()["input_file_id"]
        foreign = [
            other.get(f"/v1/batches/{made[0]}"),
            other.post(f"/v1/batches/{made[0]}/cancel"),
            other.get(f"/v1/files/{file_id}"),
            other.get(f"/v1/files/{file_id}/content"),
            other.delete(f"/v1/files/{file_id}"),
        ]
        assert {answer.status_code for answer in foreign} == {404}
        asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        assert other.post("/v1/batches", json=asked).status_code == 404


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {f"k{n}": "v" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"input_file_id": None}, "input_file_id"),
    ],
)
def test_what_a_batch_cannot_be_is_told_in_openais_form(
    client: httpx.Client, change: dict[str, Any], param: str
) -> None:
    asked = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h", **change}
    answer = client.post("/v1/batches", json=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_files_are_kept_as_they_came_and_gone_once_deleted_or_over(
    client: httpx.Client, gateway: ServedGateway
) -> None:
    content = bytes(range(256)) * 10_000
    file = upload(client, content, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
    assert (file["object"], file["bytes"], file["purpose"]) == ("file", len(content), "batch")
    assert file["expires_at"] - file["created_at"] in (3599, 3600)
    assert client.get(f"/v1/files/{file['id']}/content").content == content
    other = upload(client, b"{}")
    listed = client.get("/v1/files", params={"purpose": "batch", "limit": 1}).json()
    assert ([each["id"] for each in listed["data"]], listed["has_more"]) == ([other["id"]], True)
    after = client.get("/v1/files", params={"after": other["id"]}).json()
    assert [each["id"] for each in after["data"]] == [file["id"]]
    assert client.delete(f"/v1/files/{other['id']}").json() == {"id": other["id"], "object": "file", "deleted": True}
    with gateway.works.engine.begin() as connection:
        over = datetime.now(UTC) - timedelta(seconds=1)
        connection.execute(update(StoredFile).where(col(StoredFile.id) == file["id"]).values(expires_at=over))
    for gone in (file, other):
        assert client.get(f"/v1/files/{gone['id']}").status_code == 404
        assert client.get(f"/v1/files/{gone['id']}/content").status_code == 404
    with Session(gateway.works.engine) as session:
        assert not session.exec(select(FileChunk).where(FileChunk.file_id == other["id"])).all()


@pytest.mark.parametrize(
    ("sent", "status_code", "param"),
    [
        ({"files": {"file": ("x", b"{}")}, "data": {"purpose": "fine-tune"}}, 400, "purpose"),
        ({"files": {"other": ("x", b"{}")}, "data": {"purpose": "batch"}}, 400, "file"),
        ({"files": {"file": ("x", b"{}")}, "data": {"purpose": "batch", "expires_after[anchor]": "created_at"}}, 400,
         "expires_after[seconds]"),
        ({"json": {"purpose": "batch"}}, 415, None),
        ({"content": b"--x\r\nnonsense", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "file"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 400, None),
    ],
)  # fmt: skip
def test_an_upload_that_is_none_is_refused(
    client: httpx.Client, sent: dict[str, Any], status_code: int, param: str | None
) -> None:
    answer = client.post("/v1/files", **sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status_code, param), answer.text


def test_a_batch_whose_file_is_gone_before_it_is_read_fails(
    client: httpx.Client, gateway: ServedGateway, scene: Scene
) -> None:
    file = upload(client, jsonl([request_line("a", scene.model, "Hi")]))
    client.delete(f"/v1/files/{file['id']}")
    new = NewBatch(
        workspace=scene.workspace,
        assistants=None,
        input_file_id=file["id"],
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    batch_id = OpenAIBatches(gateway.works.engine).create(new).id
    gateway.works.redis.publish(names.BATCHES_CHANNEL, batch_id)
    batch = ended(client, batch_id)
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "file_not_found")


def test_a_line_may_name_a_stored_assistant_that_is_shared_with_the_key(gateway: ServedGateway, scene: Scene) -> None:
    scene.assistant(instructions="Be brief.")
    scene.plays(lambda _body, _n: answers("Yes."))
    line = request_line("a", scene.address, "Are you?")
    with gateway.client(scene.workspace, assistants=[scene.address]) as client:
        batch = ended(client, create(client, jsonl([line]))["id"])
        (answer,) = lines_of(client, batch["output_file_id"])
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == "Yes."
    assert scene.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    with gateway.client(scene.workspace, assistants=[]) as stranger:
        batch = ended(stranger, create(stranger, jsonl([line]))["id"])
    fault = batch["errors"]["data"][0]
    assert (batch["status"], fault["code"], fault["param"]) == ("failed", "model_not_found", "body.model")


def test_a_gateway_that_is_told_to_end_leaves_a_batch_to_the_next_at_once(
    gateway: ServedGateway, client: httpx.Client, scene: Scene
) -> None:
    scene.plays(lambda _body, _n: answers("x"))
    batch = create(client, jsonl(request_line(f"r{n}", scene.model, "Hi. " * 200) for n in range(5_000)))
    until(lambda: _stored(gateway, batch["id"]).claims == 1, what="the file is being checked")
    gateway.stop()
    row = _stored(gateway, batch["id"])
    assert row.enqueued_at is None
    assert row.claimed_until is not None
    assert row.claimed_until <= datetime.now(UTC)
    gateway.start()
    client.base_url = gateway.url
    until(lambda: _stored(gateway, batch["id"]).claims > 1, what="the next gateway takes it")
    client.post(f"/v1/batches/{batch['id']}/cancel").raise_for_status()
    assert ended(client, batch["id"])["status"] == "cancelled"


def _stored(gateway: ServedGateway, batch_id: str) -> OpenAIBatch:
    with Session(gateway.works.engine) as session:
        return session.exec(select(OpenAIBatch).where(OpenAIBatch.id == batch_id)).one()
