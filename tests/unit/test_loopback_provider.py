"""The scripted provider itself: other tests rest on what it records and how it breaks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.loopback_provider import (
    LoopbackProvider,
    Reply,
    answers,
    cut_connection,
    hang_until,
    hang_up,
    malformed_json,
    status,
)

ROOT = Path(__file__).parents[2]
ENUM_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "output",
        "schema": {
            "type": "object",
            "properties": {"result": {"type": "string", "enum": ["positive", "neutral", "negative"]}},
            "required": ["result"],
        },
    },
}


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as client:
        yield client


def ask(client: httpx.Client, provider: LoopbackProvider, content: str = "hello", **fields: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **fields}
    return client.post(f"{provider.base_url}/chat/completions", json=body)


def text_of(response: httpx.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def test_a_completion_counts_four_characters_a_token_and_four_tokens_a_message(client, loopback_provider):
    loopback_provider.queue(answers("12345678"))
    usage = ask(client, loopback_provider, "1234").json()["usage"]
    assert usage == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


def test_completion_tokens_stay_within_max_tokens(client, loopback_provider):
    loopback_provider.queue(answers("x" * 400))
    assert ask(client, loopback_provider, max_tokens=8).json()["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(("review", "label"), [("a good one", "positive"), ("a bad one", "negative")])
def test_an_enum_is_answered_by_the_content(client, loopback_provider, review, label):
    response = ask(client, loopback_provider, review, response_format=ENUM_FORMAT)
    assert json.loads(text_of(response)) == {"result": label}


def test_an_ambiguous_review_gets_the_same_label_every_time(client, loopback_provider):
    texts = {text_of(ask(client, loopback_provider, "so so", response_format=ENUM_FORMAT)) for _ in range(3)}
    assert len(texts) == 1


def test_without_a_schema_the_answer_is_an_echo(client, loopback_provider):
    assert text_of(ask(client, loopback_provider, "hello")) == "echo: hello"


def test_requests_are_recorded_in_order_of_arrival(client, loopback_provider):
    for content in ("one", "two", "three"):
        ask(client, loopback_provider, content)
    requests = loopback_provider.requests
    assert [request.body["messages"][0]["content"] for request in requests] == ["one", "two", "three"]
    assert [request.n for request in requests] == [1, 2, 3]
    assert requests[0].headers["content-type"] == "application/json"
    assert requests[0].arrived_s <= requests[2].arrived_s
    assert loopback_provider.count == 3


def test_queued_replies_come_before_the_script(client, loopback_provider):
    loopback_provider.script(lambda body, n: answers(f"reply {n} to {body['messages'][0]['content']}"))
    loopback_provider.queue(status(429, headers={"Retry-After": "2"}))
    first, second = ask(client, loopback_provider), ask(client, loopback_provider)
    assert (first.status_code, first.headers["retry-after"]) == (429, "2")
    assert first.json()["error"]["message"] == "scripted 429"
    assert text_of(second) == "reply 2 to hello"


def test_a_cut_connection_breaks_the_read_of_the_body(client, loopback_provider):
    loopback_provider.queue(cut_connection())
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        ask(client, loopback_provider)
    assert text_of(ask(client, loopback_provider)) == "echo: hello"


def test_a_hang_up_comes_before_any_byte_but_the_request_counts(client, loopback_provider):
    loopback_provider.queue(hang_up())
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        ask(client, loopback_provider)
    assert loopback_provider.count == 1


def test_malformed_json_arrives_as_a_200(client, loopback_provider):
    loopback_provider.queue(malformed_json())
    response = ask(client, loopback_provider)
    assert response.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        response.json()


def test_a_held_request_has_arrived_and_is_answered_when_its_event_is_set(client, loopback_provider):
    event = threading.Event()
    loopback_provider.queue(hang_until(event, then=answers("at last")))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ask, client, loopback_provider)
        loopback_provider.wait_for_requests(1)
        assert not future.done()
        event.set()
        assert text_of(future.result(timeout=10)) == "at last"


def test_leaving_frees_what_is_held(client):
    event = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with LoopbackProvider(lambda _body, _n: hang_until(event)) as provider:
            future = pool.submit(ask, client, provider)
            provider.wait_for_requests(1)
        assert event.is_set()
        # Answered or cut, but at an end.
        assert future.exception(timeout=10) is None or isinstance(future.exception(), httpx.TransportError)


def test_waiting_for_requests_that_do_not_come_ends_at_the_deadline(loopback_provider):
    with pytest.raises(TimeoutError, match="0 of 1 requests"):
        loopback_provider.wait_for_requests(1, deadline_s=0.01)


def test_sixty_four_calls_are_held_at_once():
    everyone_is_here = threading.Event()
    calls = 64

    def reply(_body: Any, n: int) -> Reply:
        if n == calls:
            everyone_is_here.set()
        return hang_until(everyone_is_here, then=answers("ok"))

    limits = httpx.Limits(max_connections=calls)
    with (
        LoopbackProvider(reply) as provider,
        httpx.Client(timeout=30, limits=limits) as client,
        ThreadPoolExecutor(calls) as pool,
    ):
        replies = list(pool.map(lambda n: ask(client, provider, str(n)), range(calls)))
        assert {text_of(response) for response in replies} == {"ok"}
        assert provider.peak_in_flight == calls


def test_a_script_that_raises_fails_the_test_that_gave_it(client):
    with pytest.raises(KeyError, match="absent"), LoopbackProvider(lambda body, _n: body["absent"]) as provider:
        assert ask(client, provider).status_code == 500


def test_the_models_are_listed_and_not_counted(client, loopback_provider):
    loopback_provider.models = ("a", "b")
    listed = client.get(f"{loopback_provider.base_url}/models").json()["data"]
    assert [model["id"] for model in listed] == ["a", "b"]
    assert loopback_provider.count == 0


def test_as_a_process_it_logs_every_request_before_it_answers_and_ends_on_sigterm(client, tmp_path):
    log = tmp_path / "requests.jsonl"
    command = [sys.executable, "-m", "tests.loopback_provider", "--port", "0", "--log", str(log)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            for n in (1, 2):
                body = {"messages": [{"role": "user", "content": f"row {n}"}]}
                response = client.post(f"{url}/chat/completions", json=body)
                lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
                assert text_of(response) == f"echo: row {n}"
                assert (lines[-1]["n"], lines[-1]["body"]) == (n, body)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()
