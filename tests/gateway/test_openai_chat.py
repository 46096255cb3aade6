"""OpenAI's chat completions over the queue."""

from __future__ import annotations

import httpx

from tests.at_work import Scene
from tests.loopback_provider import Reply


def test_a_chat_completion_is_a_job_of_its_own_that_leaves_no_thread(client: httpx.Client, scene: Scene) -> None:
    scene.replies(Reply(text="Hello."))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answer = client.post("/v1/chat/completions", json={"model": scene.model, "messages": messages})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello.", "refusal": None}
    assert scene.asked[0]["messages"] == messages
    assert not scene.has_thread(f"thread_{body['id'].removeprefix('chatcmpl-')}")


def test_a_wrong_key_and_a_wrong_body_are_told_in_openais_form(client: httpx.Client) -> None:
    denied = httpx.post(f"{client.base_url}/v1/chat/completions", json={}, headers={"authorization": "Bearer no"})
    assert (denied.status_code, denied.json()["error"]["code"]) == (401, "invalid_api_key")
    refused = client.post("/v1/chat/completions", json={"model": "m", "messages": "hello"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
