"""Langdock's calls that create, update and show a stored assistant: CONTRACT.md row 84."""

from __future__ import annotations

import uuid
from typing import Any

import httpx

from producer.gateway.keys import Scope
from tests.at_work import Scene, said
from tests.loopback_provider import Reply
from tests.served_gateway import ServedGateway

CREATE, UPDATE, GET = "/assistant/v1/create", "/assistant/v1/update", "/assistant/v1/get"
ASK = "/assistant/v1/chat/completions"


def create(client: httpx.Client, **fields: Any) -> Any:
    answer = client.post(CREATE, json={"name": "Document Analyzer", **fields})
    assert answer.status_code == 201, answer.text
    assert answer.json()["status"] == "success"
    return answer.json()["assistant"]


def update(client: httpx.Client, assistant_id: str, **fields: Any) -> Any:
    answer = client.patch(UPDATE, json={"assistantId": assistant_id, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["assistant"]


def get(client: httpx.Client, assistant_id: str) -> httpx.Response:
    return client.get(GET, params={"assistantId": assistant_id})


def ask(client: httpx.Client, assistant_id: str) -> httpx.Response:
    messages = [{"role": "user", "content": "Hello"}]
    return client.post(ASK, json={"assistantId": assistant_id, "messages": messages})


def test_row_84_a_created_assistant_has_defaults_and_answers_by_its_id(client: httpx.Client, scene: Scene) -> None:
    made = create(client, instruction="Use {{x}}.", model=scene.model)
    assert str(uuid.UUID(made["id"])) == made["id"]
    assert (made["temperature"], made["inputType"], made["name"]) == (0.3, "PROMPT", "Document Analyzer")
    assert (made["emojiIcon"], made["description"], made["conversationStarters"]) == (None, None, [])
    assert get(client, made["id"]).json() == {"status": "success", "assistant": made}
    scene.plays(lambda _body, _n: Reply(text="Hi."))
    assert ask(client, made["id"]).status_code == 200
    # Its instruction is text, no template.
    assert said(scene.asked[-1]) == [("system", "Use {{x}}."), ("user", "Hello")]
    assert scene.asked[-1]["temperature"] == 0.3
    # It is an assistant like any other, with an address of its own.
    (address,) = [each.address for each in scene.works.assistants.all() if each.address.startswith(scene.workspace)]
    assert address.startswith(f"{scene.workspace}/langdock/document-analyzer-")
    assert ask(client, address).status_code == 200


def test_row_84_an_update_changes_what_is_given_and_null_clears(client: httpx.Client, scene: Scene) -> None:
    given = {"description": "Reads", "emoji": "📄", "instruction": "Read.", "creativity": 0.5, "model": scene.model}
    made = create(client, **given, conversationStarters=["Go"])
    changed = update(client, made["id"], name="Reader", creativity=0)
    assert changed == {**made, "name": "Reader", "temperature": 0, "updatedAt": changed["updatedAt"]}
    cleared = update(
        client, made["id"], description=None, emoji=None, instruction=None, creativity=None, conversationStarters=None
    )
    assert [cleared[name] for name in ("description", "emojiIcon", "instruction", "conversationStarters")] == [
        None,
        None,
        None,
        [],
    ]
    assert (cleared["temperature"], cleared["name"], cleared["model"]) == (0.3, "Reader", scene.model)
    refused = client.patch(UPDATE, json={"assistantId": made["id"], "name": None})
    assert (refused.status_code, refused.json().keys()) == (400, {"message"})
    (listed,) = [each for each in scene.works.assistants.all() if each.address.startswith(scene.workspace)]
    assert listed.newest == 3
    scene.replies(Reply(text="Hi."))
    assert ask(client, made["id"]).status_code == 200
    assert said(scene.asked[-1]) == [("user", "Hello")]


def test_row_84_an_assistant_of_a_file_is_shown_and_updated_by_its_address(client: httpx.Client, scene: Scene) -> None:
    scene.assistant(tools=[{"type": "python", "name": "echo"}], instructions="Help {{name}}.", variables={"name": "us"})
    shown = get(client, scene.address).json()["assistant"]
    assert (shown["id"], shown["instruction"], shown["model"]) == (scene.address, "Help {{name}}.", scene.model)
    assert shown["actions"] == [{"actionId": "echo", "requiresConfirmation": False}]
    changed = update(client, scene.address, emoji="🤖", description="Ours", actions=shown["actions"])
    assert (changed["emojiIcon"], changed["instruction"]) == ("🤖", "Help {{name}}.")
    # From now on it has an id; its tools and variables are as they were.
    config, version = scene.works.assistants.config(scene.address)
    assert (version, [tool.type for tool in config.tools or ()], config.variables) == (2, ["python"], {"name": "us"})
    assert get(client, changed["id"]).json()["assistant"] == changed


def test_row_84_actions_and_attachments_are_kept_and_replaced(client: httpx.Client, scene: Scene) -> None:
    upload = client.post("/attachment/v1/upload", files={"file": ("a.txt", b"What is in it")})
    attachment_id = upload.json()["attachmentId"]
    action = {"name": "look_up", "url": "https://example.com"}
    made = create(client, instruction="Read.", model=scene.model, attachments=[attachment_id], actions=[action])
    assert made["attachments"] == [attachment_id]
    assert [each["actionId"] for each in made["actions"]] == ["look_up"]
    scene.replies(Reply(text="Hi."))
    assert ask(client, made["id"]).status_code == 200
    assert "What is in it" in said(scene.asked[-1])[1][1]
    assert [tool["function"]["name"] for tool in scene.asked[-1]["tools"]] == ["look_up"]
    assert update(client, made["id"], attachments=[], actions=[])["actions"] == []
    for fields, status in (
        ({"attachments": [str(uuid.uuid4())]}, 404),
        ({"attachments": ["no-uuid"]}, 400),
        ({"actions": [{**action, "secret": "crm"}]}, 403),
        ({"actions": [{"actionId": str(uuid.uuid4())}]}, 501),
        ({"webSearch": True}, 501),
        ({"imageGeneration": True}, 501),
        ({"creativity": 1.1}, 400),
        ({"name": "n" * 256}, 400),
        ({"inputType": "FORM"}, 400),
    ):
        for answer in (
            client.post(CREATE, json={"name": "A", **fields}),
            client.patch(UPDATE, json={"assistantId": made["id"], **fields}),
        ):
            assert (answer.status_code, answer.json().keys()) == (status, {"message"}), (fields, answer.text)
    # Lone surrogates are no text that can be kept.
    for unkept in (
        rb'"inputFields": [{"label": "\ud800"}]',
        rb'"actions": [{"name": "a", "url": "https://a", "body": "\ud800"}]',
    ):
        answer = client.post(
            CREATE, content=b'{"name": "A", %s}' % unkept, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, answer.text
    ours = [each for each in scene.works.assistants.all() if each.address.startswith(scene.workspace)]
    assert [each.newest for each in ours] == [2]


def test_row_84_who_may_see_and_change_an_assistant(gateway: ServedGateway, client: httpx.Client, scene: Scene) -> None:
    made = create(client, instruction="Secret.")
    with gateway.client(f"{scene.workspace}-else") as foreign:
        nothing = get(foreign, str(uuid.uuid4()))
        for answer in (get(foreign, made["id"]), foreign.patch(UPDATE, json={"assistantId": made["id"]})):
            assert (answer.status_code, "Secret" in answer.text) == (nothing.status_code, False) == (404, False)
    with gateway.client(scene.workspace, scopes=[Scope.RUN]) as runs:
        assert get(runs, made["id"]).status_code == 403
        assert runs.post(CREATE, json={"name": "A"}).status_code == 403
    with gateway.client(scene.workspace, scopes=[Scope.READ]) as reads:
        assert get(reads, made["id"]).status_code == 200
        assert reads.post(CREATE, json={"name": "A"}).status_code == 403
    # What a key makes is shared with it, and what others made is not.
    with gateway.client(scene.workspace, assistants=[scene.address]) as narrow:
        assert get(narrow, made["id"]).status_code == 403
        own = create(narrow, instruction="Mine.")
        # At once, though the gateway has just looked the key up.
        assert get(narrow, own["id"]).status_code == 200
    assert client.get(GET).status_code == 400
